"""Checkpoints that a killed training resumes from, outside of what DVC deletes before a stage runs."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

FOLDER = ".checkpoints"  # in the main repository, which `dvc exp run --temp` does not delete
LOCK_SECONDS = 1  # longer than `is_held` has it


def repository() -> Path:
    """The main repository, also in the copy of it that a queued or temporary experiment runs in."""
    return Path(os.environ.get("DVC_ROOT", "."))


def training_key(config: str, files: list[Path]) -> str:
    """What a training depends on, as one hash: its configuration, its data and script, the library that is loaded, and
    torch."""
    digest = hashlib.sha256(f"{config}\n{version('torch')}".encode())
    modules = {name: module for name, module in sys.modules.items() if name.startswith("vae.")}
    code = [Path(module.__file__) for _, module in sorted(modules.items()) if module.__file__]
    for path in [*code, *sorted(files)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Checkpoint:
    """The last state of one training, written whole or not at all."""

    def __init__(self, path: Path, own: bool) -> None:
        self.path = path
        self.own = own  # else another process trains the same, and it alone keeps checkpoints

    def save(self, state: dict[str, Any]) -> None:
        import torch  # here, as is below: who asks for trainings only does not wait for it

        if not self.own:
            return
        partial = self.path.with_suffix(".partial")
        try:
            torch.save(state, partial)
            os.replace(partial, self.path)
        except (OSError, RuntimeError) as error:  # a full disk, which torch calls either; the last checkpoint is there
            partial.unlink(missing_ok=True)
            reason = str(error).partition("\n")[0]
            print(f"{self.path}: no checkpoint ({reason}); the training goes on without", file=sys.stderr)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none that can be read."""
        if not self.own or not self.path.is_file():
            return None
        import torch

        try:
            return torch.load(self.path, weights_only=True)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with the file, training starts anew)
            reason = str(error).partition("\n")[0]
            print(f"{self.path}: unreadable checkpoint ({reason}); training from the start", file=sys.stderr)
            return None

    def finish(self, model: Path) -> None:
        """Notes which training made this model, for who looks for its run, and drops the checkpoint."""
        _note(self.path.parent, hashlib.sha256(model.read_bytes()).hexdigest()).write_text(self.path.stem)
        if self.own:
            self.path.unlink(missing_ok=True)


def _note(folder: Path, model_sha256: str) -> Path:
    return folder / f"{model_sha256}.training"


def training_of(root: Path, model_sha256: str) -> str | None:
    """The key of the training that made this model, where it was made here."""
    note = _note(root / FOLDER, model_sha256)
    return note.read_text() if note.is_file() else None


def is_held(root: Path, key: str) -> bool:
    """Whether a living process holds the training `key`."""
    path = root / FOLDER / f"{key}.lock"
    if not path.is_file():
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


@contextmanager
def checkpoint(root: Path, key: str) -> Iterator[Checkpoint]:
    """The checkpoint of the training `key`, held by this process until it ends, however it ends."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path, lock = folder / f"{key}.pt", FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        yield Checkpoint(path, own=False)
        return
    try:
        yield Checkpoint(path, own=True)
    finally:
        lock.release()
