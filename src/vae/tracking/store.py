"""The MLflow store, and the runs in it.

The life of a run:

1. A training opens its run: RUNNING, with the tag `vae.training` (the key of the training). Its epochs arrive live.
   If the training is killed or fails, the run ends as KILLED or FAILED. The same training, started again, continues it.
2. `track` completes the run: the tag `vae.pending` names the key of the state that it writes. If `track` is cut short,
   the next `track` of that state continues this run.
3. The run is whole: FINISHED, with the tag `vae.key`, which is set last. `vae.pending` is removed.

A state whose stages came from the cache had no training, so its run begins at 2. A state that already has a whole run
keeps it, and `track` deletes a run that a training opened on the way to that state."""

from vae.runtime import checkpoint
from vae.runtime.files import sha256
from vae.runtime.network import shown
from vae.runtime.repository import main_repository, state_folder

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Experiment, FileInfo, LoggedModel, LoggedModelStatus, Metric, Param, Run, RunTag

from vae.errors import InputError
from vae.params import load
from vae.tracking.address import (
    SERVERS,
    bounded,
    drop_foreign_settings,
    made_by_another,
    reach,
    registry_uri,
    sqlite_file,
    store_errors,
    store_uri,
)
from vae.tracking.places import ARTIFACTS, local_path, settle

INPUTS = ("params.yaml", "dvc.yaml", "dvc.lock", "working-tree.diff")  # what a reproduction needs of a run
MODEL_PARTS = ("MLmodel", "code/", "artifacts/")  # of a logged model: its description, code and weights
LOCK_SECONDS = 1800  # a store behind a slow line takes minutes for one run, and runs are written one by one
CHAMPION_METRIC = "val_neg_elbo_nats"  # every epoch has it, and models are chosen by it
SOURCE = "dvc.yaml"  # shown by the UI as the source of a run


class Tag:
    """The names of the tags on a run."""

    KEY = "vae.key"  # of the state; its presence means that the run is whole
    PENDING = "vae.pending"  # the key of the state that `track` is writing
    TRAINING = "vae.training"  # the key of the training that opened the run
    PLACE = "vae.place"  # the repository on which machine
    MODEL = "vae.model_sha256"
    DATA = "vae.data_sha256"
    QUALITY = "vae.quality_sha256"  # of the metrics/quality.json that was added
    COMMIT = "git.commit"
    COMMITS = "git.commits"  # other commits of the same state, separated by commas
    DIRTY = "git.dirty"  # "true" if there are uncommitted changes
    EXPERIMENT = "dvc.experiment"  # the name under which the state was first reached
    EXPERIMENTS = "dvc.experiments"  # all names under which it was reached, separated by commas
    BASELINE = "dvc.baseline"  # the commit from which the experiment started
    MESSAGE = "dvc.message"  # given with `dvc exp run -m`
    REMOTE = "mlflow.source.git.repoURL"  # without name and password
    SCHEMA = "vae.schema"  # of the record; runs of version 1 have no such tag
    GROUP = "vae.group"  # of a parent run: the name of its sweep or search
    GROUPS = "vae.groups"  # of a child: the names of all its groups, separated by commas
    PRUNED = "vae.pruned"  # why a search ended this training early


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Lets one process at a time create the schema, or look for a run and write it if there is none.
    Each has a bounded time."""
    with FileLock(state_folder(root) / "mlflow.lock", timeout=LOCK_SECONDS), bounded():
        yield


class Store(MlflowClient):
    """MLflow's client, for one experiment in one store. Both are created if they are missing.
    Raises InputError if the store cannot be reached."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = root.resolve()
        self.uri, registry = store_uri(root), registry_uri(root)
        drop_foreign_settings(experiment)
        with store_errors(self.uri), store_lock(root):
            for uri in filter(None, (self.uri, registry)):
                reach(uri, self.root)
            super().__init__(self.uri, registry)
            if file := sqlite_file(self.uri):
                settle(file, self.root)
            self.experiment = self._experiment(experiment)

    def _experiment(self, name: str) -> Experiment:
        if self.uri.startswith("databricks") and not name.startswith("/"):
            raise InputError(f"track.experiment: Databricks needs a path such as /Shared/{name}, got {name!r}")
        found = self.get_experiment_by_name(name)
        if found is None:
            # A server has a place for artifacts. The default of a database is a folder of the current directory, which
            # `dvc exp run --temp` deletes.
            artifacts = None if self.uri.startswith(SERVERS) else (self.root / ARTIFACTS).as_uri()
            with made_by_another():
                self.create_experiment(name, artifacts)
            return self._experiment(name)
        if found.lifecycle_stage != "active":
            raise InputError(f"MLflow experiment {name} is deleted; restore it, or change track.experiment")
        return found

    def find(self, tags: dict[str, str] | None = None) -> list[Run]:
        """The runs with these tags, newest first. Runs that only group others must be asked for by a tag."""
        conditions = " and ".join(f"tags.`{name}` = '{value}'" for name, value in (tags or {}).items())
        conditions = conditions or f"tags.`{Tag.GROUP}` IS NULL"
        search = partial(self.search_runs, [self.experiment.experiment_id], conditions)
        page = search(page_token=None)
        found = list(page)
        while page.token:
            page = search(page_token=page.token)
            found += page
        return found

    def unfinished(self, training: str | None) -> list[Run]:
        """The runs of a training that are open, or that ended before their time, even if its observer died."""
        return [run for run in self.find({Tag.TRAINING: training or ""}) if run.info.status != "FINISHED"]

    def to_complete(self, model_sha256: str, key: str) -> Run | None:
        """The unfinished run in which to record a state: one left by an interrupted `track`, or else its training's.
        An interrupted record of another state of the same model stays as it is."""
        runs = self.find({Tag.PENDING: key}) + self.unfinished(checkpoint.training_of(self.root, model_sha256))
        open_runs = [run for run in runs if run.info.status != "FINISHED"]
        return next((run for run in open_runs if run.data.tags.get(Tag.PENDING, key) == key), None)

    def discard_live(self, model_sha256: str) -> None:
        """Deletes the open runs of the training that made this model, whose state already has its run."""
        for run in self.unfinished(checkpoint.training_of(self.root, model_sha256)):
            if run.info.status == "RUNNING":
                self.delete_run(run.info.run_id)

    def run_tags(self, run_id: str, *needed: str) -> dict[str, str]:
        """The tags of a run.
        Raises InputError if no run is named, if there is no such run, or if it lacks one of the `needed` tags."""
        if not run_id:
            raise InputError("no run is named; give it as RUN=<run id>, which `make ui` and `make which` show")
        try:
            tags = self.get_run(run_id).data.tags
        except MlflowException as error:
            where = shown(self.uri)
            raise InputError(f"{run_id}: no such run in {where}; `make ui` shows the runs and their ids") from error
        if missing := ", ".join(name for name in needed if name not in tags):
            raise InputError(f"run {run_id} has no {missing}: it was never completed, or not made from a commit")
        return tags

    def training_seconds(self, run_id: str) -> float:
        """The seconds that the epochs of a model took, each counted once, from the run that followed its training.
        Raises InputError if no run of this model followed all of its epochs, so the times are not known."""
        model = self.run_tags(run_id, Tag.MODEL)[Tag.MODEL]
        for run in self.find({Tag.MODEL: model}):
            history = [self.get_metric_history(run.info.run_id, name) for name in ("epoch_seconds", CHAMPION_METRIC)]
            seconds, epochs = ({point.step: point.value for point in points} for points in history)
            if seconds and seconds.keys() == epochs.keys():
                return sum(seconds.values())
        raise InputError(
            f"run {run_id}: no run in {shown(self.uri)} followed every epoch of its model's training; "
            "train it again with `dvc repro --force train`"
        )

    def lost(self, run: Run) -> list[str]:
        """The files that the record of a whole run must have, but that it lacks, and on this machine those with other
        content. They were deleted or damaged behind MLflow's back."""
        there = _sizes(partial(self.list_artifacts, run.info.run_id))
        try:
            hashes = json.loads(self.recorded(run.info.run_id, "hashes.json")[0] if there.get("hashes.json") else "")
        except ValueError:
            return ["hashes.json"]
        lost = {name for name in INPUTS if name not in there} | {name for name in hashes if not there.get(name)}
        if folder := local_path(run.info.artifact_uri):
            lost |= {name for name in hashes.keys() - lost if sha256(folder / name) != hashes[name]}
        return sorted(lost if self.model_of(run) else lost | {"the model to serve"})

    def model_of(self, run: Run) -> str | None:
        """The address of the last model of a run that can be loaded, or None."""
        models = [f"models:/{name}" for name in _model_ids(run)]
        return next(filter(self.loads, reversed(models)), None)

    def begun_model(self, run_id: str) -> LoggedModel | None:
        """A model that was made for this run, but that the run did not get, because its logging was cut short."""
        made = self.search_logged_models([self.experiment.experiment_id], f"source_run_id = '{run_id}'")
        got = _model_ids(self.get_run(run_id))
        return next((model for model in made if model.model_id not in got), None)

    def loads(self, uri: str) -> bool:
        """Whether the files of a logged model are there: its description, and the code and the weights of a model of
        this project. On this machine the weights must be the recorded ones."""
        model = _found(self.get_logged_model, uri.rpartition("/")[2])
        if model is None or model.status != LoggedModelStatus.READY:
            return False
        run = _found(self.get_run, model.source_run_id)
        there = _sizes(partial(self.list_logged_model_artifacts, model.model_id))
        parts = [[name for name in there if name.startswith(part) and there[name]] for part in MODEL_PARTS]
        if run is None or Tag.MODEL not in run.data.tags:  # a model that was made in another way
            return bool(parts[0])
        folder, digest = local_path(model.artifact_location), run.data.tags[Tag.MODEL]
        return all(parts) and (folder is None or digest in [sha256(folder / name) for name in parts[-1]])

    def recorded(self, run_id: str, *paths: str) -> list[str]:
        """The text of a run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            return [Path(self.download_artifacts(run_id, path, folder)).read_text() for path in paths]

    def log_params(self, run_id: str, values: dict[str, Any]) -> None:
        """Logs parameters."""
        self.log_batch(run_id, params=[Param(name, str(value)) for name, value in values.items()])

    def log_metrics(self, run_id: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs (step, values) rows without NaN. CHAMPION_METRIC comes first: it is shown when runs are compared."""
        now = int(time.time() * 1000)
        items = [Metric(name, value, now, step) for step, row in rows for name, value in row.items() if value == value]
        self.log_batch(run_id, metrics=sorted(items, key=lambda item: item.key != CHAMPION_METRIC))

    def epochs(self, run_id: str) -> set[int]:
        """The epochs that are in the curves of a run."""
        return {point.step for point in self.get_metric_history(run_id, CHAMPION_METRIC)}

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Sets tags in one request."""
        self.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def open_store(params: Path) -> Store:
    """The store of the main repository, with the experiment that params.yaml names."""
    return Store(main_repository(), load(params).track.experiment)


def _model_ids(run: Run) -> list[str]:
    """The logged models that a run has, the last one last."""
    return [item.model_id for item in (run.outputs.model_outputs if run.outputs else [])]


def _sizes(listed: Callable[[str | None], list[FileInfo]], folder: str | None = None) -> dict[str, int]:
    """The size of every file below a folder of artifacts, by its path."""
    found: dict[str, int] = {}
    for item in listed(folder):
        found |= _sizes(listed, item.path) if item.is_dir else {item.path: item.file_size or 0}
    return found


def _found(get: Callable[[str], Any], name: str) -> Any:
    """The thing with this name, or None if there is none."""
    try:
        return get(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
