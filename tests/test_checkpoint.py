"""Checkpoints: whole files, held by one process, and never the reason why a training fails."""

from vae.runtime import checkpoint

import hashlib
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

KEY = "key"
HANG_SECONDS = 300  # far longer than any of these tests takes on a slow machine
STATE = {"fit": {"weight": torch.arange(5.0), "epoch": 3, "nested": {"step": torch.tensor(7)}}, "records": [(1, 2.5)]}


def equal(one: object, other: object) -> bool:
    """Whether two nested states are equal, tensors included."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_round_trip(tmp_path):
    """The next process loads the last state that was saved."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert saved.load() is None
        saved.save(STATE)
        saved.save(STATE | {"records": [(1, 2.5), (2, 1.5)]})
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert equal(saved.load(), STATE | {"records": [(1, 2.5), (2, 1.5)]})


def test_each_training_has_its_own_checkpoint(tmp_path):
    """The key of another training finds nothing."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved, checkpoint.checkpoint(tmp_path, "other") as other:
        saved.save(STATE)
        assert other.load() is None


def test_finished_training_leaves_no_checkpoint(tmp_path):
    """The next training of the same key starts from the beginning, and no file of tensors is left."""
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"model")
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        saved.finish(model)
        assert saved.load() is None
    assert [path for path in tmp_path.rglob("*") if path.suffix in {".pt", ".partial"}] == []


def test_the_training_of_a_model_is_known(tmp_path):
    """Also if another process holds the checkpoint, because that process makes the same model."""
    model, sha256 = tmp_path / "vae.safetensors", hashlib.sha256(b"model").hexdigest()
    model.write_bytes(b"model")
    assert checkpoint.training_of(tmp_path, sha256) is None
    for own in (True, False):
        key = f"{own:064x}"
        checkpoint.Checkpoint(checkpoint.state_folder(tmp_path) / f"{key}.pt", own).finish(model)
        assert checkpoint.training_of(tmp_path, sha256) == key
    assert checkpoint.training_of(tmp_path, "0" * 64) is None
    (note,) = tmp_path.rglob("*.training")
    for damaged in (b"", b"\xff", b"' or 1", (note.read_bytes()[:-1])):
        note.write_bytes(damaged)
        assert checkpoint.training_of(tmp_path, sha256) is None


def test_a_write_that_fails_keeps_the_previous_checkpoint(tmp_path, monkeypatch, capsys):
    """The disk is full in the middle of a write. The last whole checkpoint stays, and the training continues."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        monkeypatch.setattr(os, "fsync", full)  # the disk reports it here at the latest
        saved.save({"fit": {}, "records": []})
        assert "no checkpoint (No space left on device)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert equal(saved.load(), STATE)


def broken(content: bytes) -> dict[str, bytes]:
    """Unreadable versions of a checkpoint, by the kind of damage."""
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
        "one bit": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :] if content else b"",
    }


@pytest.mark.parametrize("damage", list(broken(b"")))
def test_an_unreadable_checkpoint_is_none(tmp_path, capfd, damage):
    """One line says so, and the training starts from the beginning: a bad checkpoint never makes it fail."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        (path,) = tmp_path.rglob("*.pt")
        path.write_bytes(broken(path.read_bytes())[damage])
        assert saved.load() is None
        warning = capfd.readouterr().err
        assert str(path) in warning
        assert "training from the start" in warning
        assert len(warning.splitlines()) == 1
        saved.save(STATE)
        assert equal(saved.load(), STATE)


def test_the_checkpoint_of_another_training_is_unreadable(tmp_path, capsys):
    """Its tensors would have other names or shapes, or would silently continue another training."""
    with checkpoint.checkpoint(tmp_path, KEY) as saved, checkpoint.checkpoint(tmp_path, "other") as other:
        saved.save(STATE)
        saved.path.rename(other.path)
        assert other.load() is None
    assert "damaged, or of another training; training from the start" in capsys.readouterr().err.replace(")", "")


def test_a_checkpoint_runs_no_code(tmp_path):
    """A pickle that would run code when loaded is unreadable."""
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple:
            return trace.touch, ()

    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        saved.save(STATE)
        (path,) = tmp_path.rglob("*.pt")
        for before in (b"", None):  # with the digest of a whole checkpoint, too
            torch.save(Payload(), content := io.BytesIO())
            path.write_bytes((saved._digest(content.getvalue()) if before is None else before) + content.getvalue())
            assert saved.load() is None
    assert not trace.exists()


def test_one_process_holds_a_checkpoint(tmp_path):
    """Two processes run the same training. The second has no checkpoint, and does not change the first one's."""
    model = tmp_path / "vae.safetensors"
    model.write_bytes(b"model")
    with checkpoint.checkpoint(tmp_path, KEY) as first:
        first.save(STATE)
        with checkpoint.checkpoint(tmp_path, KEY) as second:
            assert second.load() is None
            second.save({"fit": {}, "records": []})
            second.finish(model)
        assert equal(first.load(), STATE)


def test_a_training_is_held_while_it_runs(tmp_path):
    """It is held neither before its start nor after its end."""
    assert not checkpoint.is_held(tmp_path, KEY)
    with checkpoint.checkpoint(tmp_path, KEY):
        assert checkpoint.is_held(tmp_path, KEY)
        assert not checkpoint.is_held(tmp_path, "other")
    assert not checkpoint.is_held(tmp_path, KEY)


def test_released_by_an_error(tmp_path):
    """An error that ends a training releases it, even if the traceback keeps its frames alive."""

    def train() -> None:
        with checkpoint.checkpoint(tmp_path, KEY):
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged") as caught:
        train()
    assert not checkpoint.is_held(tmp_path, KEY)
    assert caught.value.args == ("diverged",)


def test_released_by_a_kill(tmp_path):
    """A killed process holds nothing, and the next process finds its checkpoint."""
    code = (
        "import sys; from pathlib import Path; from vae.runtime import checkpoint\n"
        "with checkpoint.checkpoint(Path(sys.argv[1]), 'key') as saved:\n"
        "    saved.save({'epoch': 4}); print('saved', flush=True); sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "saved\n"
        assert checkpoint.is_held(tmp_path, KEY)
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_SECONDS)
    assert not checkpoint.is_held(tmp_path, KEY)
    with checkpoint.checkpoint(tmp_path, KEY) as saved:
        assert saved.load() == {"epoch": 4}


def test_training_key(tmp_path):
    """It depends on the configuration and on the contents of files, but not on their order or their times."""
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


def test_training_key_depends_on_the_release_of_torch(tmp_path, monkeypatch):
    """Another release of torch does not continue this training."""
    key = checkpoint.training_key("{}", [])
    monkeypatch.setattr(checkpoint, "version", lambda _: "0.0")
    assert checkpoint.training_key("{}", []) != key


def test_training_key_depends_on_the_code_that_makes_a_model(tmp_path, monkeypatch):
    """A changed file directly in src/vae makes another training. A changed file in a folder below it does not."""
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
