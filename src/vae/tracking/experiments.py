"""DVC experiments: their list with the MLflow run of each, and the tasks of the queue that nothing runs."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run

from vae.errors import InputError
from vae.tracking.store import experiment_names
from vae.tracking.worktree import git

TASKS = ".dvc/tmp/exps/celery"  # where DVC keeps the tasks of its queue


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


def experiments_of(run: Run, known: list[Experiment], stored: Collection[str]) -> list[Experiment]:
    """The experiments that name this run. An experiment with its name counts too, unless its own run is `stored`."""
    names, run_id = experiment_names(run), run.info.run_id
    return [item for item in known if item.run_id == run_id or (item.name in names and item.run_id not in stored)]


def abandoned(root: Path) -> list[tuple[str, str]]:
    """The names of the tasks that DVC's queue calls running although no worker has them, each with its folder."""
    from dvc.repo import Repo

    if not (root / TASKS).is_dir():
        return []
    with Repo(str(root)) as repo:
        queue = repo.experiments.celery_queue
        active = list(queue.iter_active())
        workers = queue.worker_status() if active else {}  # asks the workers, which takes a second
        held = {task["args"][0]["stash_rev"] for tasks in workers.values() for task in tasks}
        files = {item: Path(queue.get_infofile_path(item.stash_rev)) for item in active if item.stash_rev not in held}
        return [
            (item.name or item.stash_rev[:7], json.loads(file.read_text())["root_dir"] if file.is_file() else "")
            for item, file in files.items()
        ]
