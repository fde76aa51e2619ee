"""The DVC side of the link between experiments and runs: what DVC knows, and work trees of it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vae.errors import InputError


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment, and the MLflow run that its metrics/mlflow.json names."""

    name: str
    revision: str
    baseline: str
    run_id: str | None


def execute(command: list[str], folder: Path, **environment: str) -> str:
    """Runs a command and returns what it prints.

    Raises:
        InputError: it failed; the message ends with the last line that it wrote.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",  # git quotes lines of files, of whatever encoding
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise InputError(f"`{' '.join(command)}` failed in {folder}: {last}")
    return done.stdout


def recorded_run(root: Path, revision: str, result: Path) -> str | None:
    """The run id that a revision's metrics/mlflow.json holds."""
    try:
        return json.loads(execute(["git", "show", f"{revision}:{result}"], root))["run_id"]
    except (InputError, ValueError, KeyError):
        return None


def experiments(root: Path, result: Path) -> list[Experiment]:
    """Every experiment that DVC has, on any commit."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            listed = repo.experiments.ls(all_commits=True)
    except DvcException as error:
        raise InputError(f"{root}: {error}; run from the root of the repository") from error
    return [
        Experiment(name, revision, baseline, recorded_run(root, revision, result))
        for baseline, found in listed.items()
        for name, revision in found
    ]


@contextmanager
def worktree(root: Path, name: str, commit: str, keep: bool) -> Iterator[Path]:
    """A separate work tree of `commit`, sharing the DVC cache; the user's own tree is not touched.

    Raises:
        InputError: another process is at the work tree of this name, or the commit is not in the repository.
    """
    folder = root / ".dvc" / "tmp" / "worktrees" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(f"{folder}.lock", blocking=False).acquire()
    except Timeout as error:
        raise InputError(f"{folder}: another process is at work there; wait for it, or end it") from error
    with held:
        yield from _worktree(root, folder, commit, keep)


def _worktree(root: Path, folder: Path, commit: str, keep: bool) -> Iterator[Path]:
    if folder.exists():
        _remove(root, folder)
    try:
        execute(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root)
    except InputError as error:
        raise InputError(f"commit {commit} is not in this clone; fetch it with `git fetch --all` first") from error
    execute(["git", "worktree", "prune"], root)  # of one whose folder was removed by hand
    execute(["git", "worktree", "add", "--detach", str(folder), commit], root)
    try:
        cache = execute(["dvc", "cache", "dir"], root).strip()
        execute(["dvc", "cache", "dir", "--local", str((root / cache).resolve())], folder)
        yield folder
    finally:
        if not keep:
            _remove(root, folder)


def _remove(root: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    execute(["git", "worktree", "prune"], root)


def record_again(root: Path, experiment: Experiment) -> None:
    """Runs `track` on an experiment's files, which DVC's cache still has, as if the experiment had just ended."""
    with worktree(root, f"record-{experiment.name}", experiment.baseline, keep=False) as folder:
        execute(["git", "checkout", experiment.revision, "--", "."], folder)
        execute(["git", "reset", "--quiet"], folder)  # what the experiment changed is the tree's diff again
        execute(["dvc", "checkout", "--force"], folder)
        execute(
            ["dvc", "repro", "--single-item", "--force", "track"],
            folder,
            DVC_ROOT=str(root),
            DVC_EXP_NAME=experiment.name,
            DVC_EXP_BASELINE_REV=experiment.baseline,
        )
