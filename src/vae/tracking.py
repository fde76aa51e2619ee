"""The MLflow record: one run for one state of the pipeline. The only importer of mlflow."""

import csv
import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from PIL import Image

from vae.errors import InputError
from vae.params import Params, leaves, load

LOCK_SECONDS = 120
PARAMS_AT_ONCE = 100  # MLflow's limit for one request
METRICS_AT_ONCE = 1000
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")  # of the model that is served


def store_uri(root: Path) -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, or a database in the main repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """One process at a time: creates the schema, or looks for a run and writes it if there is none."""
    folder = root / ".checkpoints"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS):
        yield


class Store:
    """The experiment in the tracking store, created where it is not there.

    Raises:
        InputError: the store cannot be reached.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = root.resolve()
        self.uri = store_uri(root)
        try:
            with store_lock(root):
                self.client = MlflowClient(self.uri)
                self.experiment = self._experiment(experiment)
        except MlflowException as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"MLflow store {self.uri}: {reason}; check MLFLOW_TRACKING_URI") from error

    def _experiment(self, name: str) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server places artifacts itself; a database's default would be a folder of the current directory,
            # which under `dvc exp run --temp` is deleted.
            artifacts = None if self.uri.startswith("http") else (self.root / "mlartifacts").as_uri()
            found = self.client.get_experiment(self.client.create_experiment(name, artifacts))
        if found.lifecycle_stage != "active":
            raise InputError(f"MLflow experiment {name} is deleted; restore it, or change track.experiment")
        return found

    def find(self, **tags: str) -> list[Run]:
        """The runs that carry these tags (`__` in a name stands for a dot), newest first."""
        conditions = [f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items()]
        return list(self.client.search_runs([self.experiment.experiment_id], " and ".join(conditions)))

    def log_params(self, run_id: str, values: dict[str, Any]) -> None:
        items = [Param(name, str(value)) for name, value in values.items()]
        for start in range(0, len(items), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=items[start : start + PARAMS_AT_ONCE])

    def log_metrics(self, run_id: str, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Logs (step, values) rows, where NaN stands for nothing."""
        now = int(time.time() * 1000)
        items = [Metric(name, value, now, step) for step, row in rows for name, value in row.items() if value == value]
        for start in range(0, len(items), METRICS_AT_ONCE):
            self.client.log_batch(run_id, metrics=items[start : start + METRICS_AT_ONCE])

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LiveRun:
    """The run of a training while it goes on. It stays open for the track stage when the training ends well."""

    def __init__(self, params: Path, root: Path, key: str) -> None:
        config = load(params)
        self.store = Store(root, config.track.experiment)
        name = os.environ.get("DVC_EXP_NAME") or f"train-{key[:7]}"
        unfinished = [run for run in self.store.find(vae__training=key) if run.info.status != "FINISHED"]
        if unfinished:  # killed, and started again
            self.run_id = unfinished[0].info.run_id
            self.store.client.update_run(self.run_id, status="RUNNING", name=name)
        else:
            tags = {"vae.training": key}
            self.run_id = self.store.client.create_run(
                self.store.experiment.experiment_id, tags=tags, run_name=name
            ).info.run_id
        trained = {name: value for name, value in leaves(config).items() if name.startswith(("data", "model", "train"))}
        self.store.log_params(self.run_id, trained)

    def log(self, record: dict[str, Any], seconds: float) -> None:
        epoch = record.pop("epoch")
        self.store.log_metrics(self.run_id, [(epoch, record | {"epoch_seconds": seconds})])

    def trained(self, model: Path) -> None:
        self.store.set_tags(self.run_id, {"vae.model_sha256": file_sha256(model)})

    def end(self, outcome: str) -> None:
        if outcome != "TRAINED":
            self.store.client.set_terminated(self.run_id, outcome)


@dataclass(frozen=True)
class State:
    """The files that stand for one state of the pipeline."""

    params: Path
    data: Path
    model: Path
    curves: Path
    evaluation: Path
    plots: Path
    samples: Path

    def outputs(self) -> list[Path]:
        return [self.model, self.curves, self.evaluation, self.plots, self.samples]

    def key(self) -> str:
        """The hash of all content: the same state has the same key on any machine."""
        digest = hashlib.sha256(load(self.params).model_dump_json(exclude={"track"}).encode())
        for root in (self.data, *self.outputs()):
            for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
                if path.is_file():
                    digest.update(f"{path.relative_to(root)} {file_sha256(path)}\n".encode())
        return digest.hexdigest()


def read_curves(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of metrics/train.csv as (epoch, values)."""
    with path.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [(int(row.pop("epoch")), row) for row in rows]


def git(*arguments: str, **environment: str) -> str:
    """What git prints, or nothing where there is no repository or no commit."""
    try:
        return subprocess.run(
            ["git", *arguments], check=True, capture_output=True, text=True, env=os.environ | environment
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def working_tree_diff(outputs: list[Path]) -> str:
    """What separates the working tree from its commit, new files included and the pipeline's own outputs left out.

    A throwaway index holds the tree, so that the user's index stays as it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        git("read-tree", "HEAD", **index)
        git("add", "--all", **index)
        own = [f":(exclude){path}" for path in [*outputs, "dvc.lock"]]
        return git("diff", "--cached", "--binary", "HEAD", "--", ".", *own, **index)


def provenance(state: State, key: str, diff: str) -> dict[str, str]:
    """The tags that tie a run to git, to DVC, and to the files it stands for."""
    commit = git("rev-parse", "HEAD").strip()
    tags = {
        "vae.key": key,
        "vae.model_sha256": file_sha256(state.model),
        "vae.data_sha256": data_digest(state.data),
        "git.commit": commit,
        "git.dirty": str(bool(diff)).lower(),
        "mlflow.source.git.commit": commit,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def data_digest(folder: Path) -> str:
    """One hash of the data set's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def dataset_input(name: str, folder: Path) -> DatasetInput:
    """The data set as MLflow's run page shows it."""
    source = json.dumps({"files": sorted(path.name for path in folder.iterdir())})
    digest = data_digest(folder)[:16]
    return DatasetInput(
        Dataset(name=name, digest=digest, source_type="local", source=source), [InputTag("mlflow.data.context", "train")]
    )


def log_model(run_id: str, state: State) -> str:
    """Logs the servable model with its signature, input example and pinned requirements; returns its URI."""
    import mlflow  # and with it pandas: only the complete record needs them

    library = Path(__file__).parent
    return mlflow.pyfunc.log_model(
        name="model",
        python_model=library / "serving.py",
        artifacts={"model": str(state.model)},
        code_paths=[str(library)],
        input_example=[{"task": "generate", "n": 1, "seed": 0}],
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
    ).model_uri


def record(state: State, root: Path) -> str:
    """Makes this state of the pipeline one complete MLflow run, and returns its id.

    A finished run with the state's key is kept, and the experiment's name is added to it. Else the open run of this
    model's training is completed. Else a new run is written, its curves replayed from the file.

    Raises:
        InputError: the store cannot be reached or written.
    """
    config = load(state.params)
    store = Store(root, config.track.experiment)
    key = state.key()
    with store_lock(root):
        for run in store.find(vae__key=key):
            if run.info.status == "FINISHED":
                add_experiment(store, run)
                return run.info.run_id
        return _write(store, state, config, key)


def add_experiment(store: Store, run: Run) -> None:
    """Adds the name of the DVC experiment that has come to the same state."""
    name = os.environ.get("DVC_EXP_NAME")
    known = [known for known in run.data.tags.get("dvc.experiments", "").split(",") if known]
    if name and name not in known:
        store.set_tags(run.info.run_id, {"dvc.experiments": ",".join([*known, name])})


def _write(store: Store, state: State, config: Params, key: str) -> str:
    """Completes the open run of this model's training, or writes a new one."""
    import mlflow

    client, diff = store.client, working_tree_diff(state.outputs())
    tags = provenance(state, key, diff)
    name = os.environ.get("DVC_EXP_NAME") or f"{config.data.name}-{key[:7]}"
    live = [run for run in store.find(vae__model_sha256=tags["vae.model_sha256"]) if run.info.status == "RUNNING"]
    mlflow.set_tracking_uri(store.uri)
    with mlflow.start_run(
        run_id=live[0].info.run_id if live else None, experiment_id=store.experiment.experiment_id, run_name=name
    ) as run:
        run_id = run.info.run_id
        client.update_run(run_id, name=name)
        curves = read_curves(state.curves)
        epochs = curves[-1][0]
        stored = {point.step for point in client.get_metric_history(run_id, "val_neg_elbo_nats")}
        store.log_params(run_id, leaves(config))
        store.log_metrics(run_id, [row for row in curves if row[0] not in stored])
        evaluation = json.loads(state.evaluation.read_text())
        store.log_metrics(
            run_id, [(epochs, {name: float(value) for name, value in evaluation.items() if not isinstance(value, str)})]
        )
        client.log_inputs(run_id, [dataset_input(config.data.name, state.data)])
        for picture in sorted([*state.plots.rglob("*.png"), *state.samples.rglob("*.png")]):
            client.log_image(run_id, Image.open(picture), key=picture.stem, step=epochs, synchronous=True)
            client.log_artifact(run_id, str(picture), picture.parent.name)
        for path in (state.params, Path("dvc.yaml"), Path("dvc.lock")):
            if path.is_file():
                client.log_artifact(run_id, str(path))
        for path in (state.curves, state.evaluation):
            client.log_artifact(run_id, str(path), path.parent.name)
        client.log_text(run_id, diff, "working-tree.diff")
        log_model(run_id, state)
        if "dvc.experiment" in tags:
            tags["dvc.experiments"] = tags["dvc.experiment"]
        store.set_tags(run_id, tags)  # last: the key marks a run that is whole
    return run_id
