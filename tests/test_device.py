"""The device that computes, its precision and its instruction set."""

from vae.runtime import command

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae import device
from vae.errors import InputError

CPU = torch.device("cpu")
ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture
def machine(monkeypatch):
    """Makes a CPU of these features, under these limits of torch and oneDNN."""

    def make(architecture: str = "x86_64", capability: str = "AVX512", isa: str = "", **features: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": architecture, **features})
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        for name in ISA:
            monkeypatch.delenv(name, raising=False)
        if isa:
            monkeypatch.setenv(ISA[0], isa)

    return make


def test_device(small):
    """`auto` is CUDA if there is a CUDA device, else the CPU."""
    assert device.setup(small(train={"device": "cpu"}).train).type == "cpu"
    assert device.setup(small().train).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_missing_device(small, monkeypatch):
    """The error names the key and the way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"params\.yaml: train\.device: no cuda device.*auto or cpu"):
        device.setup(small(train={"device": "cuda"}).train)


def test_processes_share_out_the_threads_of_their_machine(small, monkeypatch):
    threads = torch.get_num_threads()
    for processes, expected in ((1, 4), (2, 2), (3, 1), (8, 1)):
        monkeypatch.setattr(device.parallel, "local", lambda count=processes: (0, count))
        device.setup(small(train={"device": "cpu", "threads": 4}).train)
        assert torch.get_num_threads() == expected
    torch.set_num_threads(threads)


def test_more_processes_than_gpus(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(device.parallel, "local", lambda: (0, 3))
    with pytest.raises(
        InputError, match=r"^TORCHRUN: 3 processes, but this machine has 2 GPUs; start one for each GPU$"
    ):
        device.setup(small(train={"device": "cuda"}).train)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_f": True}, "fp32"),  # AVX-512 without bf16, like Skylake
        ({"capability": "AVX2", "avx2": True}, "fp32"),
        ({"capability": "AVX2", "avx512_bf16": True}, "fp32"),  # limited by ATEN_CPU_CAPABILITY
        ({"isa": "AVX2", "avx512_bf16": True}, "fp32"),
        ({"isa": "AVX512_CORE_VNNI", "avx512_bf16": True}, "fp32"),
        ({"isa": "AVX512_CORE_BF16", "avx512_bf16": True}, "bf16"),
        ({"isa": "DEFAULT", "avx512_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "capability": "DEFAULT", "bf16": True}, "bf16"),
        ({"architecture": "aarch64", "capability": "DEFAULT", "neon": True}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it(machine, monkeypatch, cpu, expected):
    """The choice and the line that explains it agree, and depend on the hardware and its limits alone."""
    monkeypatch.setattr(sys, "platform", "linux")
    machine(**cpu)
    assert device.precision("auto", CPU) == expected
    assert device.explain("auto", CPU).startswith(f"precision: {expected};")
    assert device.precision("bf16", CPU) == "bf16"
    assert device.precision("fp32", CPU) == "fp32"
    warned = "10 to 30 times slower" in device.explain("bf16", CPU)
    assert warned == (expected == "fp32")


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp32")])
def test_auto_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert device.precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("text", ["avx2", '"avx2"', "'avx2'  # a comment"])
def test_instructions_are_limited_before_torch_is_loaded(tmp_path, text):
    """The variables are set from the script's params.yaml, whatever quotes it has."""
    params = tmp_path / "params.yaml"
    params.write_text(f"train:\n  instructions: {text}\n")
    script = (
        "from vae.runtime import command; import os, torch; print(torch.backends.cpu.get_cpu_capability(), "
        "*(os.environ[name] for name in command.AVX2_ALONE))"
    )
    shown = subprocess.run([sys.executable, "-c", script, params], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["AVX2", *command.AVX2_ALONE.values()]


def test_native_instructions_set_nothing(monkeypatch):
    for name in command.AVX2_ALONE:
        monkeypatch.delenv(name, raising=False)
    command.limit_instructions(["script", str(Path(__file__).parents[1] / "params.yaml")])
    assert not command.AVX2_ALONE.keys() & os.environ.keys()


def test_instructions_that_the_cpu_lacks(machine, small):
    machine(capability="DEFAULT")
    with pytest.raises(InputError, match=r"train\.instructions: this CPU has no AVX2; use native"):
        device.setup(small(train={"instructions": "avx2"}).train)
