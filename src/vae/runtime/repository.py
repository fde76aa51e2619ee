"""The main repository, and the folder in it that keeps the state of this machine."""

import os
import socket
from pathlib import Path


def main_repository() -> Path:
    """The main repository, also inside the copy of it in which a queued or temporary experiment runs."""
    return Path(os.environ.get("DVC_ROOT", "."))


def state_folder(root: Path) -> Path:
    """The folder of checkpoints and locks, created if it is missing. `dvc exp run --temp` does not delete it."""
    folder = root / ".checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def address(root: Path) -> str:
    """Tells this repository apart from all others that use the same store."""
    return f"{socket.gethostname()}:{root.resolve()}"
