"""DVC experiments: their list with the MLflow run of each."""

import json
from dataclasses import dataclass
from pathlib import Path

from vae.errors import InputError
from vae.tracking.worktree import git


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment, and the MLflow run that its metrics/mlflow.json names."""

    name: str
    revision: str
    baseline: str
    run_id: str | None


def recorded_run(root: Path, revision: str, result: Path) -> str | None:
    """The run id in the metrics/mlflow.json of a revision, or None if it has none."""
    try:
        return json.loads(git("show", f"{revision}:./{result}", folder=root))["run_id"]
    except (InputError, ValueError, KeyError, TypeError):
        return None


def revision(root: Path, name: str) -> str | None:
    """The commit of the DVC experiment with this name, or None if there is none."""
    return git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}", folder=root).decode().strip() or None


def experiments(root: Path, result: Path) -> list[Experiment]:
    """All experiments that DVC has, on any commit.
    Raises InputError if `root` is not the root of a DVC repository."""
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
