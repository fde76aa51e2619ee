"""DVC experiments: their list with the MLflow run of each, and the tasks of the queue that nothing runs."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities import Run

from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE, Params, parse
from vae.tracking.store import Tag
from vae.tracking.worktree import git

TASKS = ".dvc/tmp/exps/celery"  # where DVC keeps the tasks of its queue


@dataclass(frozen=True)
class Experiment:
    """A DVC experiment, and the MLflow run that its metrics/mlflow.json names."""

    name: str
    revision: str
    baseline: str
    run_id: str | None


def content(revision: str, path: Path, root: Path = Path()) -> dict[str, Any]:
    """A YAML or JSON file in a revision, or in the workspace if none is named, with all values as text. Empty if there
    is no such file, or if it is broken."""
    try:
        text = git("show", f"{revision}:./{path}", folder=root).decode() if revision else (root / path).read_text()
        tree = yaml.load(text, Loader=yaml.BaseLoader)
    except (InputError, OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def settings(revision: str, params: Path) -> dict[str, str]:
    """The leaves of a params.yaml that a stage of dvc.yaml uses, also if they are of another version of the schema."""
    sections = {name: keys for name, keys in content(revision, params).items() if name not in NOT_IN_PIPELINE}
    leaves = {f"{name}.{key}": value for name, keys in sections.items() for key, value in dict(keys).items()}
    return {name: str(value).replace("'", "") for name, value in leaves.items()}


def with_values(text: str, values: Mapping[str, str], path: Path = Path("params.yaml")) -> Params:
    """A params.yaml with other values, as the option `-S` of DVC writes them. Raises InputError as `params.parse` does,
    in which `path` has the values."""
    tree = yaml.load(text, Loader=yaml.BaseLoader)
    for key, value in values.items():
        section, _, name = key.partition(".")
        try:
            tree.setdefault(section, {})[name] = yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise InputError(f"{path}: {key}: {value} is not valid YAML") from error
    return parse(yaml.safe_dump(tree), path)


def recorded_run(root: Path, revision: str, result: Path) -> str | None:
    """The run id in the metrics/mlflow.json of a revision, or None if it has none."""
    return content(revision, result, root).get("run_id")


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


def experiment_names(run: Run) -> set[str]:
    """The names of the DVC experiments that reached the state of this run. The tag has a backslash, which git allows in
    no name, before each comma of a name."""
    parts = re.split(r"(?<!\\),", run.data.tags.get(Tag.EXPERIMENTS, ""))
    return {name.replace("\\,", ",") for name in parts if name}


def commits(run: Run) -> set[str]:
    """The commits whose state this run is known to be."""
    tags = run.data.tags
    clean = {tags[Tag.COMMIT]} if tags.get(Tag.DIRTY) == "false" else set()
    return clean | {name for name in tags.get(Tag.COMMITS, "").split(",") if name}


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
