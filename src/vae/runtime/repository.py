"""The main repository, and the folder in it that keeps the state of this machine."""

import os
import socket
from pathlib import Path

from vae.errors import InputError

COPIES = ".dvc/tmp/exps"  # of the repository, in which DVC runs queued and temporary experiments


def main_repository() -> Path:
    """The project in the main work tree of its repository, which has the store, the checkpoints and the locks.
    It is the same one in a linked work tree (`git worktree add`), and in the copy in which a queued or temporary
    experiment runs.
    Raises InputError in a copy of a shallow clone, because DVC would lose the experiment without a word."""
    root = Path(os.environ.get("DVC_ROOT", "."))
    if is_shallow(root) and Path().resolve().is_relative_to((root / COPIES).resolve()):
        raise InputError(
            f"{root} is a shallow clone, in which DVC loses queued and temporary experiments; run it in the workspace, "
            "or use `git fetch --unshallow` first"
        )
    return main_work_tree(root)


def main_work_tree(root: Path) -> Path:
    """The folder of the project in the main work tree, if `root` is in a linked one. Otherwise `root` itself."""
    top, folder = git_folder(root)
    main = folder.parent / root.resolve().relative_to(top)
    return main if folder.name == ".git" and folder.parent != top and main.is_dir() else root


def is_shallow(root: Path) -> bool:
    """Whether the repository is a clone without its older commits."""
    return (git_folder(root)[1] / "shallow").is_file()


def git_folder(root: Path) -> tuple[Path, Path]:
    """The top of the work tree around `root`, and the folder in which git keeps its repository: often top/.git.
    They are read from files, because git itself may be missing or refuse the folder."""
    around = (root.resolve(), *root.resolve().parents)
    top = next((folder for folder in around if (folder / ".git").exists()), root.resolve())
    link = top / ".git"
    if not link.is_file():
        return top, link
    own = top / link.read_text().removeprefix("gitdir:").strip()  # of a submodule, or of a linked work tree
    common = own / "commondir"
    return top, (own / common.read_text().strip() if common.is_file() else own).resolve()


def state_folder(root: Path) -> Path:
    """The folder of checkpoints and locks, created if it is missing. `dvc exp run --temp` does not delete it."""
    folder = root / ".checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def address(root: Path) -> str:
    """Tells this repository apart from all others that use the same store."""
    return f"{socket.gethostname()}:{root.resolve()}"
