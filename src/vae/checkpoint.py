"""Checkpoints that a killed training resumes from, outside of what DVC deletes before a stage runs."""

import hashlib
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout


def training_key(config: str, files: list[Path]) -> str:
    """What a training depends on, as one hash: its configuration, its data, the code that is loaded, and torch."""
    digest = hashlib.sha256(f"{config}\n{torch.__version__}".encode())
    modules = {name: module for name, module in sys.modules.items() if name.startswith("vae.")}
    code = [Path(module.__file__) for _, module in sorted(modules.items()) if module.__file__]
    for path in [*code, *sorted(files)]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Checkpoint:
    """The last state of one training, written whole or not at all."""

    def __init__(self, path: Path | None) -> None:
        self.path = path  # None: another process trains the same; it alone keeps checkpoints

    def save(self, state: dict[str, Any]) -> None:
        if self.path:
            partial = self.path.with_suffix(".partial")
            torch.save(state, partial)
            os.replace(partial, self.path)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none that can be read."""
        if not self.path or not self.path.is_file():
            return None
        try:
            return torch.load(self.path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"{self.path}: unreadable checkpoint ({error}); training from the start", file=sys.stderr)
            return None

    def remove(self) -> None:
        if self.path:
            self.path.unlink(missing_ok=True)


@contextmanager
def checkpoint(folder: Path, key: str) -> Iterator[Checkpoint]:
    """The checkpoint of the training `key`, held by this process until it ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield Checkpoint(None)
        return
    with lock:
        yield Checkpoint(folder / f"{key}.pt")
