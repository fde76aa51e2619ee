"""Checkpoints: written whole, held by one process, and never a reason to fail."""

from vae.runtime import checkpoint

import os
import signal
import subprocess
import sys

import pytest
import torch

KEY = "key"
STATE = {"fit": {"weight": torch.arange(5.0), "epoch": 3, "nested": {"step": torch.tensor(7)}}, "records": [(1, 2.5)]}


def equal(one: object, other: object) -> bool:
    """Equality that reaches into tensors."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_round_trip(tmp_path):
    """What was saved last is what the next process loads."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert saved.load() is None
        saved.save(STATE)
        saved.save(STATE | {"records": [(1, 2.5), (2, 1.5)]})
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert equal(saved.load(), STATE | {"records": [(1, 2.5), (2, 1.5)]})


def test_keys_are_apart(tmp_path):
    """Another training has another checkpoint."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved, checkpoint.checkpoint(tmp_path, "other") as other:
        saved.save(STATE)
        assert other.load() is None


def test_finished_training_leaves_no_checkpoint(tmp_path):
    """The next training of the same key starts anew, and no file of tensors stays behind."""
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"model")
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        saved.finish(model)
        assert saved.load() is None
    assert [path for path in tmp_path.rglob("*") if path.suffix in {".pt", ".partial"}] == []


def test_a_write_that_fails_keeps_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    """A full disk in the middle of an epoch's checkpoint leaves the last whole one, and the training goes on."""
    write = torch.save

    def full(state: object, path: object) -> None:
        write(state, path)
        os.truncate(path, 100)
        raise OSError(28, "No space left on device", str(path))

    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        monkeypatch.setattr(torch, "save", full)
        saved.save({"fit": {}, "records": []})
        assert "no checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert equal(saved.load(), STATE)


def broken(content: bytes) -> dict[str, bytes]:
    """Ways in which a checkpoint is unreadable."""
    half = len(content) // 2
    return {
        "empty": b"",
        "one byte": content[:1],
        "short": content[:100],
        "half": content[:half],
        "last byte": content[:-1],
        "text": b"not a checkpoint\n",
        "zeros": bytes(1000),
        "no magic": b"XX" + content[2:],
        "pickle": b"\x80\x02]q\x00.",
        "a stopped pickle": b"\x80\x02.",
        "a cut pickle": b"\x80\x02}q\x00X",
        "tail only": content[half:],
    }


@pytest.mark.parametrize("damage", list(broken(b"")))
def test_an_unreadable_checkpoint_is_none(tmp_path, capfd, damage):
    """It is said on one line, and training starts anew: a bad checkpoint never fails a run."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        (path,) = tmp_path.rglob("*.pt")
        path.write_bytes(broken(path.read_bytes())[damage])
        assert saved.load() is None
        said = capfd.readouterr().err
        assert str(path) in said
        assert "training from the start" in said
        assert len(said.splitlines()) == 1
        saved.save(STATE)
        assert equal(saved.load(), STATE)


def test_a_checkpoint_runs_no_code(tmp_path):
    """A pickle that would run code when loaded is unreadable."""
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple:
            return trace.touch, ()

    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        (path,) = tmp_path.rglob("*.pt")
        torch.save(Payload(), path)
        assert saved.load() is None
    assert not trace.exists()


def test_one_holder(tmp_path):
    """Of two that train the same, the second runs without a checkpoint, and changes nothing of the first's."""
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"model")
    with checkpoint.checkpoint(tmp_path, KEY) as first:
        first.save(STATE)
        with checkpoint.checkpoint(tmp_path, KEY) as second:
            assert second.load() is None
            second.save({"fit": {}, "records": []})
            second.finish(model)
        assert equal(first.load(), STATE)


def test_held_while_it_lasts(tmp_path):
    """A training is held from its start to its end, whichever end, and not before or after."""
    assert not checkpoint.is_held(tmp_path, KEY)
    with checkpoint.checkpoint(tmp_path, KEY):
        assert checkpoint.is_held(tmp_path, KEY)
        assert not checkpoint.is_held(tmp_path, "other")
    assert not checkpoint.is_held(tmp_path, KEY)


def test_released_by_an_error(tmp_path):
    """An error that ends a training releases it, also while the error is looked at."""

    def train() -> None:
        with checkpoint.checkpoint(tmp_path, KEY):
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged") as caught:
        train()
    assert not checkpoint.is_held(tmp_path, KEY)
    assert caught.value.args == ("diverged",)


def test_released_by_a_kill(tmp_path):
    """A process that is killed holds nothing, and its checkpoint is there for the next."""
    code = (
        "import sys, time; from pathlib import Path; from vae.runtime import checkpoint\n"
        "with checkpoint.checkpoint(Path(sys.argv[1]), 'key') as saved:\n"
        "    saved.save({'epoch': 4}); print('saved', flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "saved\n"
        assert checkpoint.is_held(tmp_path, KEY)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert not checkpoint.is_held(tmp_path, KEY)
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert saved.load() == {"epoch": 4}


def test_training_key(tmp_path):
    """It is of the configuration and of the contents of the data, whatever the order in which files are given."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 10)
    files = [tmp_path / "a", tmp_path / "b"]
    key = checkpoint.training_key("{}", files)
    assert checkpoint.training_key("{}", files[::-1]) == key
    assert checkpoint.training_key('{"seed": 1}', files) != key
    assert checkpoint.training_key("{}", files[:1]) != key
    files[0].touch()
    assert checkpoint.training_key("{}", files) == key
    files[0].write_bytes(b"other")
    assert checkpoint.training_key("{}", files) != key


def test_training_key_is_of_torch(tmp_path, monkeypatch):
    """Another release of torch does not take up the training of this one."""
    key = checkpoint.training_key("{}", [])
    monkeypatch.setattr(checkpoint, "version", lambda _: "0.0")
    assert checkpoint.training_key("{}", []) != key


def test_training_key_is_of_the_code_that_makes_a_model(tmp_path, monkeypatch):
    """A change of a file directly in src/vae makes another training. A change below it, in a room, does not."""
    monkeypatch.setattr(checkpoint, "LIBRARY", tmp_path)
    (tmp_path / "tracking").mkdir()
    for name, counts in (("model.py", True), ("tracking/store.py", False), ("notes.txt", False)):
        (tmp_path / name).write_text("x = 1\n")
        key = checkpoint.training_key("{}", [])
        assert checkpoint.training_key("{}", []) == key
        (tmp_path / name).write_text("x = 2\n")
        assert (checkpoint.training_key("{}", []) != key) is counts


def test_the_code_of_a_training_key_is_this_library():
    assert checkpoint.LIBRARY.name == "vae"
    assert {"model.py", "training.py"} <= {path.name for path in checkpoint.LIBRARY.glob("*.py")}
