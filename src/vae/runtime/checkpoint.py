"""Checkpoints from which a killed training resumes. They lie outside the outputs that DVC deletes before a stage."""

from vae.runtime.files import sha256, write_whole
from vae.runtime.repository import state_folder

import hashlib
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK_SECONDS = 1  # longer than `is_held` holds the lock
DIGEST_BYTES = 32  # before the content of a checkpoint
LIBRARY = Path(__file__).parents[1]


def training_key(config: str, files: list[Path]) -> str:
    """One hash of everything that a training depends on.
    This is its configuration, its data and script (`files`), the library's code that makes a model (the files directly
    in src/vae), and the version of torch."""
    digest = hashlib.sha256(f"{config}\n{version('torch')}".encode())
    for path in [*sorted(LIBRARY.glob("*.py")), *sorted(files)]:
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


class Checkpoint:
    """The last state of one training, written whole or not at all."""

    def __init__(self, path: Path, own: bool) -> None:
        self.path = path
        self.own = own  # False: another process runs the same training, and only that one keeps checkpoints

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the saved state. A full disk keeps the previous one, with a warning."""
        import torch  # imported here, so that callers which only look up trainings do not load torch

        if not self.own:
            return
        torch.save(state, written := io.BytesIO())
        try:
            write_whole(self.path, self._digest(written.getvalue()) + written.getvalue())
        except OSError as error:  # a full disk. The previous checkpoint is intact
            print(f"{self.path}: no checkpoint ({error.strerror}); the training goes on without", file=sys.stderr)

    def _digest(self, content: bytes) -> bytes:
        """Tells a whole checkpoint of this training from a damaged one, and from one of another training."""
        return hashlib.sha256(self.path.stem.encode() + content).digest()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None if there is none that can be read."""
        if not self.own or not self.path.is_file():
            return None
        import torch

        try:
            content = self.path.read_bytes()
            digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
            if digest != self._digest(content):
                raise ValueError("damaged, or of another training")
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # noqa: BLE001 (any damaged file means a training from the start)
            reason = str(error).partition("\n")[0]
            print(f"{self.path}: unreadable checkpoint ({reason}); training from the start", file=sys.stderr)
            return None

    def finish(self, model: Path) -> None:
        """Notes which training made this model, so that its MLflow run can be found, and deletes the checkpoint."""
        write_whole(self.path.with_name(f"{sha256(model)}.training"), self.path.stem.encode())
        if self.own:
            self.path.unlink(missing_ok=True)


def training_of(root: Path, model_sha256: str) -> str | None:
    """The key of the training that made this model, or None if it was not made in this repository."""
    note = state_folder(root) / f"{model_sha256}.training"
    key = note.read_text(errors="replace") if note.is_file() else ""
    return key if re.fullmatch("[0-9a-f]{64}", key) else None  # a damaged note says nothing


def is_held(root: Path, key: str) -> bool:
    """Whether a living process runs the training `key`."""
    path = state_folder(root) / f"{key}.lock"
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
    folder = state_folder(root)
    path, lock = folder / f"{key}.pt", FileLock(folder / f"{key}.lock")
    with suppress(Timeout):
        lock.acquire(timeout=LOCK_SECONDS)
    try:
        yield Checkpoint(path, own=lock.is_locked)
    finally:
        lock.release()
