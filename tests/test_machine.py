"""The machine in the record of a run."""

from vae.runtime import machine


def test_the_record_names_the_machine(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    tags = machine.describe(2, "cpu")
    assert all(tags.values())
    assert (tags["machine.threads"], tags["machine.device"]) == ("2", "cpu")
    assert "ATEN_CPU_CAPABILITY=avx2" in tags["machine.limits"]
    assert {f"version.{name}" for name in ("python", *machine.PACKAGES)} <= tags.keys()


def test_recorded_and_present_machine_stand_side_by_side():
    recorded = {"machine.cpu": "one", "version.torch": "1", "git.commit": "abc", "machine.os": "x"}
    present = {"machine.cpu": "other", "version.torch": "1", "machine.os": "x"}
    assert machine.differences(recorded, present) == ["machine.cpu: one when it was recorded, other here"]


def test_the_name_of_a_cpu(tmp_path, monkeypatch):
    """The hypervisor's name alone does not tell generations apart, so family and model are named too."""
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.model_name()
    (tmp_path / "cpuinfo").write_text("cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: Some CPU\n\nmodel\t: 1\n")
    assert machine.model_name() == "Some CPU, cpu family 25, model 1"
