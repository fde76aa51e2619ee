"""Git and DVC as commands, and separate work trees of a commit."""

from vae.runtime.network import shown
from vae.runtime.repository import main_work_tree

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vae.errors import InputError

# Settings of git that a user may have, and that would change files, differences or hashes here.
SETTINGS = {
    "apply.ignoreWhitespace": "no",
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "init.defaultObjectFormat": "sha1",
    "init.defaultRefFormat": "files",
    "submodule.recurse": "false",
}
OPTIONS = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
# A hook of git has these variables, which lead git to another repository than the one of its folder.
REDIRECTIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")


def execute(command: list[str], folder: Path = Path(), environment: dict[str, str] | None = None) -> bytes:
    """Runs a command and returns its output.
    Raises InputError if it failed. The message ends with the first error that it wrote, or with its last line, without
    the passwords in addresses."""
    inherited = {name: value for name, value in os.environ.items() if name not in REDIRECTIONS}
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, env=inherited | (environment or {}), stdin=subprocess.DEVNULL
        )
    except (FileNotFoundError, PermissionError) as error:
        message = f"`{command[0]}` cannot be started: {error.strerror}; install it, or put it on PATH"
        raise InputError(message) from error
    if done.returncode:
        written = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        first = re.search(r"^(error|fatal): .*", written, flags=re.M | re.S | re.I)
        last = written.splitlines()[-1].strip() if written else ""
        said = shown(" ".join(first[0].split()) if first else last)[:500]
        words = " ".join(["git", *command[len(OPTIONS) + 1 :]][:3] if command[0] == "git" else command)
        raise InputError(f"`{shown(words)}` failed in {folder.resolve()}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def git(*arguments: str, folder: Path = Path(), environment: dict[str, str] | None = None) -> bytes:
    """Runs git without the user's settings, and returns its output.
    Raises InputError like `execute`: a failure must not look like "no change"."""
    return execute(["git", *OPTIONS, *arguments], folder, {"LC_ALL": "C"} | (environment or {}))


def names(*arguments: str, environment: dict[str, str] | None = None) -> set[str]:
    """The paths that a command of git lists. They start at the current folder."""
    return {os.fsdecode(name) for name in git(*arguments, environment=environment).split(b"\0") if name}


def head() -> str:
    """The hash of the current commit."""
    return git("rev-parse", "HEAD").decode().strip()


def setting(name: str) -> str:
    """The value of a setting of git, empty if it is not set."""
    return git("config", "--default", "", "--get", name).decode().strip()


def place(root: Path, name: str) -> Path:
    """The folder of the work tree of this name."""
    return root / ".dvc" / "tmp" / "worktrees" / name


@contextmanager
def worktree(root: Path, name: str, commit: str, keep: bool) -> Iterator[Path]:
    """The project of `root` in a work tree of `commit`. It shares the objects of git and the cache of DVC with `root`.
    It is a repository of its own, so that the user's tree, hooks and settings have no part in it.
    Raises InputError if another process uses the work tree of this name, or the commit is not in the repository."""
    folder = place(root, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(f"{folder}.lock", blocking=False).acquire()
    except Timeout as error:
        raise InputError(f"{folder}: another process uses this work tree; wait for it, or end it") from error
    with held:
        if folder.exists():
            shutil.rmtree(folder)
        try:
            found = git("rev-parse", "--verify", f"{commit}^{{commit}}", folder=root).decode().strip()
        except InputError as error:
            raise InputError(f"commit {commit} is not in this clone; fetch it with `git fetch --all` first") from error
        try:
            asked = ("--git-path", "objects", "--show-prefix", "--absolute-git-dir")
            objects, inside, own = git("rev-parse", *asked, folder=root).split(b"\n")[:3]
            git("init", "--quiet", "--template=", str(folder), folder=root)
            alternates = folder / ".git/objects/info/alternates"
            alternates.parent.mkdir(exist_ok=True)
            alternates.write_bytes(os.fsencode((root / os.fsdecode(objects)).resolve()) + b"\n")
            # By the user's repository, because a partial clone fetches the files that it lacks.
            fetching = (f"--git-dir={os.fsdecode(own)}", "--work-tree=.", "-c", "core.sparseCheckout=false")
            index = {"GIT_INDEX_FILE": str((folder / ".git/index").resolve())}
            git(*fetching, "read-tree", "--reset", "-u", found, folder=folder, environment=index)
            git("update-ref", "--no-deref", "HEAD", found, folder=folder)
            project = folder / os.fsdecode(inside)
            share_cache(root, project)
            yield project
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)


def cache(root: Path) -> Path:
    """The folder of DVC's cache."""
    return (root / os.fsdecode(execute(["dvc", "cache", "dir"], root)).removesuffix("\n")).resolve()


def share_cache(root: Path, folder: Path) -> None:
    """Lets the project in `folder` use the DVC cache of the one in `root`."""
    if (shared := cache(root)) != cache(folder):
        # A relative path, because DVC cannot write letters outside ASCII, which the absolute one may have.
        execute(["dvc", "cache", "dir", "--local", os.path.relpath(shared, folder.resolve())], folder)


if __name__ == "__main__":  # a linked work tree shares the cache, as it shares the experiments
    share_cache(main_work_tree(Path()), Path())
