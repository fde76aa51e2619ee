"""Git: the uncommitted changes of the working tree, and separate work trees of a commit."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vae.errors import InputError


def execute(command: list[str], folder: Path = Path(), environment: dict[str, str] | None = None) -> bytes:
    """Runs a command and returns its output.
    Raises InputError if it failed. The message ends with the last line that it wrote."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, env=os.environ | (environment or {}), stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise InputError(
            f"`{command[0]}` cannot be started: {error.strerror}; install it, or put it on PATH"
        ) from error
    if done.returncode:
        written = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        last = written.splitlines()[-1].strip() if written else f"exit code {done.returncode}"
        raise InputError(f"`{' '.join(command)}` failed in {folder.resolve()}: {last}")
    return done.stdout


def git(*arguments: str, folder: Path = Path(), environment: dict[str, str] | None = None) -> bytes:
    """Runs git and returns its output. Raises InputError like `execute`: a failure must not look like "no change"."""
    return execute(["git", *arguments], folder, environment)


def head() -> str:
    """The hash of the current commit."""
    return git("rev-parse", "HEAD").decode().strip()


def uncommitted_changes(outputs: Iterable[Path]) -> bytes:
    """The difference between the working tree and its commit, with new files and without the folders of outputs.
    It is made in a temporary index, so that the user's index stays as it is. It is bytes, because files may have any
    encoding and any line ends."""
    with tempfile.TemporaryDirectory() as folder:
        objects = Path(git("rev-parse", "--git-path", "objects").decode().strip()).resolve()
        index = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": f"{folder}/objects",  # so that new files leave no trace in the repository
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }
        (Path(folder) / "objects").mkdir()
        git("read-tree", "HEAD", environment=index)
        with suppress(InputError):  # git adds everything except a folder that is a repository without a commit
            git("add", "--all", "--ignore-errors", environment=index)
        folders = {path if path.is_dir() else path.parent for path in outputs} - {Path()}  # never the whole tree
        excluded = [":(exclude,glob)**/dvc.lock"] + [f":(exclude){path}" for path in sorted(folders)]
        # These options make a difference that `git apply` accepts, whatever the user has configured.
        plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
        return git("diff", "--cached", "--binary", *plain, "HEAD", "--", ".", *excluded, environment=index)


@contextmanager
def worktree(root: Path, name: str, commit: str, keep: bool) -> Iterator[Path]:
    """A separate work tree of `commit`, which shares the DVC cache. The user's own tree is not touched.
    Raises InputError if another process uses the work tree of this name, or the commit is not in the repository."""
    folder = root / ".dvc" / "tmp" / "worktrees" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(f"{folder}.lock", blocking=False).acquire()
    except Timeout as error:
        raise InputError(f"{folder}: another process uses this work tree; wait for it, or end it") from error
    with held:
        if folder.exists():
            _remove(root, folder)
        try:
            git("cat-file", "-e", f"{commit}^{{commit}}", folder=root)
        except InputError as error:
            raise InputError(f"commit {commit} is not in this clone; fetch it with `git fetch --all` first") from error
        git("worktree", "prune", folder=root)  # forgets a work tree whose folder was removed by hand
        git("worktree", "add", "--detach", str(folder), commit, folder=root)
        try:
            cache = execute(["dvc", "cache", "dir"], root).decode().strip()
            execute(["dvc", "cache", "dir", "--local", str((root / cache).resolve())], folder)
            yield folder
        finally:
            if not keep:
                _remove(root, folder)


def _remove(root: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    git("worktree", "prune", folder=root)
