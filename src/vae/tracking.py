"""The MLflow record: one run for one state of the pipeline. The only importer of mlflow."""

import csv
import hashlib
import json
import math
import os
import shutil
import socket
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
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; by default a dead server is waited for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import numpy as np
from filelock import FileLock, Timeout
from mlflow import MlflowClient, MlflowException, pyfunc
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, Metric, Param, Run, RunTag
from mlflow.models import Model
from PIL import Image

from vae import checkpoint, plots
from vae.errors import InputError
from vae.params import Params, leaves, load

SQLITE = "sqlite:///"
LOCK_SECONDS = 1800  # a store at the other end of a slow line takes minutes for a run, and runs come one by one
PARAMS_AT_ONCE = 100  # MLflow's limit for one request
METRICS_AT_ONCE = 1000
FINAL_STEP = 0  # of test metrics and pictures: the UI lays runs side by side at equal steps
DIGITS_BY_EPOCH = "training_samples"
SOURCE = "dvc.yaml"  # what the UI shows as the source of a run
CHAMPION, CHAMPION_METRIC, SPLIT = "champion", "val_neg_elbo_nats", "data.validation"
TOOLS = {"annealing", "classifier", "quality"}  # sections of params.yaml that no stage of dvc.yaml reads
CURVE_NAMES = {"rate_nats": "train_rate_nats", "distortion_nats": "train_distortion_nats"}
REQUIREMENTS = ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")  # of the model that is served


def store_uri(root: Path) -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, or a database in the main repository.

    The path of a database starts at the main repository, also in the copy of it that a temporary experiment runs in.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{root.resolve() / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """One process at a time: creates the schema, or looks for a run and writes it if there is none."""
    folder = root / checkpoint.FOLDER
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / "mlflow.lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{lock.lock_file}: held by another process for {LOCK_SECONDS} s; wait for it, or end it"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns whatever a store raises, of any client library, into the error that names the store.

    An error of a file that has a name says what is wrong by itself.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"MLflow store {uri}: {reason}; check MLFLOW_TRACKING_URI") from error


class Store:
    """The experiment in the tracking store, created where it is not there.

    Raises:
        InputError: the store cannot be reached.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        self.root = root.resolve()
        self.uri = store_uri(root)
        with reported(self.uri), store_lock(root):
            self._create_database()
            self.client = MlflowClient(self.uri)
            self.experiment = self._experiment(experiment)

    def _create_database(self) -> None:
        """Creates the schema of a new SQLite store aside: a process killed in its midst leaves no half of it."""
        path = Path(self.uri.removeprefix(SQLITE))
        if not self.uri.startswith(SQLITE) or path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        partial = path.with_name(f"{path.name}.partial")
        partial.unlink(missing_ok=True)
        SqlAlchemyStore(f"{SQLITE}{partial}", str(self.root / "mlartifacts"))._dispose_engine()
        os.replace(partial, path)

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
        conditions = " and ".join(f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items())
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment.experiment_id], conditions, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def unfinished(self, training: str) -> list[Run]:
        """The runs of a training that are open, or that were ended before their time."""
        return [run for run in self.find(vae__training=training) if run.info.status != "FINISHED"]

    def unfinished_of(self, model_sha256: str) -> list[Run]:
        """The same for the training that made this model, also where its observer was lost on the way."""
        training = checkpoint.training_of(self.root, model_sha256)
        return self.unfinished(training) if training else []

    def to_complete(self, model_sha256: str, key: str) -> Run | None:
        """The unfinished run that a state is recorded in: its training's, or that of an attempt that was cut short.

        An attempt at another state of the same model, with params of its own, stays as it is.
        """
        runs = self.find(vae__pending=key) + self.unfinished_of(model_sha256)
        open_runs = [run for run in runs if run.info.status != "FINISHED"]
        return next((run for run in open_runs if run.data.tags.get("vae.pending", key) == key), None)

    def discard_live(self, model_sha256: str) -> None:
        """Deletes the open runs of a training that came to a state which has its run."""
        for run in self.unfinished_of(model_sha256):
            if run.info.status == "RUNNING":
                self.client.delete_run(run.info.run_id)

    def run_tags(self, run_id: str, *needed: str) -> dict[str, str]:
        """The tags of a run.

        Raises:
            InputError: there is no such run, or it lacks one of the `needed` tags.
        """
        try:
            tags = self.client.get_run(run_id).data.tags
        except MlflowException as error:
            raise InputError(f"{run_id}: no such run in {self.uri}; `make ui` shows the runs and their ids") from error
        if missing := [name for name in needed if name not in tags]:
            raise InputError(
                f"run {run_id} has no {', '.join(missing)}: it was never completed, or not made from a commit"
            )
        return tags

    def training_seconds(self, run_id: str) -> float:
        """What the epochs of a model took, each counted once, from the run that followed its training live.

        Raises:
            InputError: no run of this model followed all of its epochs; the times are known to no one.
        """
        model = self.run_tags(run_id, "vae.model_sha256")["vae.model_sha256"]
        for run in self.find(vae__model_sha256=model):
            history = [
                self.client.get_metric_history(run.info.run_id, name) for name in ("epoch_seconds", CHAMPION_METRIC)
            ]
            seconds, epochs = ({point.step: point.value for point in points} for points in history)
            if seconds and seconds.keys() == epochs.keys():
                return sum(seconds.values())
        raise InputError(
            f"run {run_id}: no run in {self.uri} followed every epoch of its model's training; "
            "train it again with `dvc repro --force train`"
        )

    def recorded(self, run_id: str, *paths: str) -> list[str]:
        """The text of a run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            return [self.download(run_id, path, Path(folder)).read_text() for path in paths]

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Copies a run's artifacts below `path` into `folder`."""
        return Path(self.client.download_artifacts(run_id, path, str(folder)))

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

    def epochs(self, run_id: str) -> set[int]:
        """The epochs whose curves a run has."""
        return {point.step for point in self.client.get_metric_history(run_id, CHAMPION_METRIC)}

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def place(root: Path) -> str:
    """The repository, among all that share a store."""
    return f"{socket.gethostname()}:{root.resolve()}"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(root: Path) -> list[Path]:
    """The files of a folder, or the one file that `root` is, in order."""
    return [path for path in (sorted(root.rglob("*")) if root.is_dir() else [root]) if path.is_file()]


class LiveRun:
    """The run of a training while it goes on. It stays open for the track stage when the training ends well."""

    def __init__(self, params: Path, root: Path, key: str) -> None:
        config = load(params)
        self.store = Store(root, config.track.experiment)
        name = os.environ.get("DVC_EXP_NAME") or f"train-{key[:7]}"
        self.stored: set[int] = set()  # epochs that the run has
        unfinished = [run for run in self.store.unfinished(key) if "vae.pending" not in run.data.tags]
        if unfinished:  # killed, and started again
            self.run_id = unfinished[0].info.run_id
            self.store.client.update_run(self.run_id, status="RUNNING", name=name)
            self.stored = self.store.epochs(self.run_id)
        else:
            tags = {"vae.training": key, "vae.place": place(root), "mlflow.source.name": SOURCE}
            self.run_id = self.store.client.create_run(
                self.store.experiment.experiment_id, tags=tags, run_name=name
            ).info.run_id
        trained = {name: value for name, value in leaves(config).items() if name.startswith(("data", "model", "train"))}
        self.store.log_params(self.run_id, trained)

    def log(self, record: dict[str, Any], seconds: float) -> None:
        epoch, values = curve_point(record)
        if epoch not in self.stored:
            self.store.log_metrics(self.run_id, [(epoch, values | {"epoch_seconds": seconds})])

    def show(self, epoch: int, digits: bytes) -> None:
        """A grid of digits (N, 784), a byte of grey for each pixel, which the UI pages through by epoch."""
        if epoch in self.stored:
            return
        images = np.frombuffer(digits, np.uint8).reshape(-1, plots.SIDE**2) / 255
        picture = plots.grid(images, math.isqrt(len(images)))
        self.store.client.log_image(self.run_id, picture, key=DIGITS_BY_EPOCH, step=epoch, synchronous=True)

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
        digest = hashlib.sha256(load(self.params).model_dump_json(exclude=TOOLS | {"track"}).encode())
        for root in (self.data, *self.outputs()):
            for path in files_below(root):
                digest.update(f"{path.relative_to(root)} {file_sha256(path)}\n".encode())
        return digest.hexdigest()


def curve_point(row: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """A row of metrics/train.csv as (epoch, values); the training's rate is not to be taken for the test's."""
    values = {CURVE_NAMES.get(name, name): float(value) for name, value in row.items()}
    return int(values.pop("epoch")), values


def read_curves(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of metrics/train.csv as (epoch, values)."""
    with path.open(newline="") as file:
        return [curve_point(row) for row in csv.DictReader(file)]


def git(*arguments: str, **environment: str) -> bytes:
    """What git prints, or nothing where there is no repository or no commit."""
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, env=os.environ | environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def working_tree_diff(outputs: list[Path]) -> bytes:
    """What separates the working tree from its commit, new files included and the folders of outputs left out.

    A throwaway index holds the tree, so that the user's index stays as it is. In bytes: files of any encoding and
    with any line ends come back from it.
    """
    with tempfile.TemporaryDirectory() as folder:
        objects = Path(git("rev-parse", "--git-path", "objects").decode().strip()).resolve()
        index = {
            "GIT_INDEX_FILE": f"{folder}/index",
            "GIT_OBJECT_DIRECTORY": f"{folder}/objects",  # new files leave no trace in the repository
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }
        (Path(folder) / "objects").mkdir()
        git("read-tree", "HEAD", **index)
        git("add", "--all", "--ignore-errors", **index)
        folders = {path if path.is_dir() else path.parent for path in outputs}
        own = [":(exclude,glob)**/dvc.lock"] + [f":(exclude){path}" for path in sorted(folders)]
        # Whatever the user has set, git must be able to apply it.
        plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
        return git("diff", "--cached", "--binary", *plain, "HEAD", "--", ".", *own, **index)


def provenance(state: State, key: str, diff: bytes) -> dict[str, str]:
    """The tags that tie a run to git, to DVC, and to the files it stands for."""
    commit = git("rev-parse", "HEAD").decode().strip()
    tags = {
        "vae.key": key,
        "vae.model_sha256": file_sha256(state.model),
        "vae.data_sha256": data_digest(state.data),
        "git.commit": commit,
        "git.dirty": str(bool(diff)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
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
        Dataset(name=name, digest=digest, source_type="local", source=source),
        [InputTag("mlflow.data.context", "train")],
    )


class Servable:
    """The pyfunc flavor with an input example that is not tried: a trial would import torch, and tests do it."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, example: list[dict[str, Any]], **options: Any) -> None:
        """What `Model.log` calls to fill the folder of the model."""
        options.pop("validate_serving_input")  # of Model.log, which passes it on
        pyfunc.save_model(path, mlflow_model=mlflow_model, **options)
        info = {
            "artifact_path": "input_example.json",
            "type": "json_object",
            "serving_input_path": "serving_input.json",
        }
        for name, content in (("artifact_path", example), ("serving_input_path", {"inputs": example})):
            (Path(path) / info[name]).write_text(json.dumps(content))
        mlflow_model.saved_input_example_info = info
        mlflow_model.save(str(Path(path) / "MLmodel"))


def log_model(run_id: str, state: State) -> str:
    """Logs the servable model with its signature, input example and pinned requirements; returns its URI."""
    with tempfile.TemporaryDirectory() as folder:
        library = shutil.copytree(Path(__file__).parent, Path(folder) / "vae", ignore=lambda *_: ["__pycache__"])
        return Model.log(
            artifact_path=None,
            name="model",
            flavor=Servable,
            flavor_name="pyfunc",
            run_id=run_id,
            validate_serving_input=False,
            python_model=library / "serving.py",
            artifacts={"model": str(state.model)},
            code_paths=[str(library)],
            example=[{"task": "generate", "n": 1, "seed": 0}],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        ).model_uri


def hashes(state: State) -> dict[str, str]:
    """The SHA-256 of every file of this state that a reproduction must come to."""
    return {str(path): file_sha256(path) for root in state.outputs() for path in files_below(root)}


def register(store: Store, config: Params, run_id: str, uri: str, value: float) -> None:
    """Registers the model, and makes it the champion if it beats the present one on the same validation split.

    Models of another data set, or scored on other pixels, have a name of their own: their nats do not compare.
    """
    name = f"{config.track.registered_model}-{config.data.name}"
    if config.data.binarization == "none":
        name += "-grey"
    client = store.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    split = str(config.data.validation)
    there = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    scored = {CHAMPION_METRIC: repr(value), SPLIT: split}
    model_id = uri.rpartition("/")[2]  # a server, unlike a database, wants to be told which logged model this is
    made = there[0] if there else client.create_model_version(name, uri, run_id, scored, model_id=model_id)
    said = f"registered {name} version {made.version}: {CHAMPION_METRIC} {value:.2f}"
    tags = client.get_model_version(name, champion).tags if champion else {}
    if tags.get(SPLIT, split) != split:
        print(f"{said}; the champion, version {champion}, has another {SPLIT}: not compared, it stays")
        return
    if champion and CHAMPION_METRIC not in tags:
        print(f"{said}; the champion, version {champion}, was chosen by hand: it stays")
        return
    best = float(tags.get(CHAMPION_METRIC, "inf"))
    if value < best:
        client.set_registered_model_alias(name, CHAMPION, made.version)
    compared = f"the champion, version {champion}, with {best:.2f}" if champion else "no champion"
    print(f"{said} against {compared}: {'it is the new champion' if value < best else 'the champion stays'}")


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
    with reported(store.uri), store_lock(root):
        for run in store.find(vae__key=key):
            if run.info.status == "FINISHED":
                add_experiment(store, run)
                store.discard_live(file_sha256(state.model))
                return run.info.run_id
        return _write(store, state, config, key)


def experiment_names(run: Run) -> set[str]:
    """The DVC experiments that have come to the state of this run."""
    return {name for name in run.data.tags.get("dvc.experiments", "").split(",") if name}


def add_experiment(store: Store, run: Run) -> None:
    """Adds the name of the DVC experiment that has come to the same state."""
    if name := os.environ.get("DVC_EXP_NAME"):
        store.set_tags(run.info.run_id, {"dvc.experiments": ",".join(sorted(experiment_names(run) | {name}))})


def log_picture(client: MlflowClient, run_id: str, key: str, picture: Path) -> None:
    """Logs a picture for the UI to lay beside those of other runs."""
    client.log_image(run_id, Image.open(picture), key=key, step=FINAL_STEP, synchronous=True)


def log_files(client: MlflowClient, run_id: str, state: State, diff: bytes) -> None:
    """Logs the pictures, for the UI to compare and as files, and everything that a reproduction needs."""
    shown = {Path(item.path).name for item in client.list_artifacts(run_id, "images")}
    for folder in (state.plots, state.samples):
        client.log_artifacts(run_id, str(folder), folder.name)
        for picture in sorted(folder.rglob("*.png")):
            key = f"{folder.name}_{picture.stem}"  # the same in each run
            if not any(name.startswith(key) for name in shown):
                log_picture(client, run_id, key, picture)
    for path in (state.model, state.curves, state.evaluation):
        client.log_artifact(run_id, str(path), path.parent.name)
    for path in (state.params, Path("dvc.yaml"), Path("dvc.lock")):
        if path.is_file():
            client.log_artifact(run_id, str(path))
    with tempfile.TemporaryDirectory() as scratch:
        changes = Path(scratch) / "working-tree.diff"
        changes.write_bytes(diff)
        client.log_artifact(run_id, str(changes))
    client.log_dict(run_id, hashes(state), "hashes.json")


def _write(store: Store, state: State, config: Params, key: str) -> str:
    """Completes the open run of this model's training, or writes a new one.

    An attempt that was cut short is gone on with, and nothing that it logged is logged again.
    """
    client, diff = store.client, working_tree_diff(state.outputs())
    tags = provenance(state, key, diff)
    name = os.environ.get("DVC_EXP_NAME") or f"{config.data.name}-{key[:7]}"
    found = store.to_complete(tags["vae.model_sha256"], key)
    mlflow.set_tracking_uri(store.uri)
    with mlflow.start_run(
        run_id=found.info.run_id if found else None,
        experiment_id=store.experiment.experiment_id,
        run_name=name,
        tags={"vae.pending": key, "vae.place": place(store.root)},
    ) as run:
        run_id = run.info.run_id
        client.update_run(run_id, name=name)
        curves, stored = read_curves(state.curves), store.epochs(run_id)
        used = {name: value for name, value in leaves(config).items() if name.partition(".")[0] not in TOOLS}
        store.log_params(run_id, used)
        store.log_metrics(run_id, [row for row in curves if row[0] not in stored])
        evaluation = json.loads(state.evaluation.read_text())
        final = {name: float(value) for name, value in evaluation.items() if not isinstance(value, str)}
        store.log_metrics(run_id, [(FINAL_STEP, final)] if not final.keys() & run.data.metrics.keys() else [])
        client.log_inputs(run_id, [dataset_input(config.data.name, state.data)])
        log_files(client, run_id, state, diff)
        logged = run.outputs.model_outputs if run.outputs else []
        uri = f"models:/{logged[0].model_id}" if logged else log_model(run_id, state)
        register(store, config, run_id, uri, curves[-1][1][CHAMPION_METRIC])
        if "dvc.experiment" in tags:
            tags["dvc.experiments"] = tags["dvc.experiment"]
        store.set_tags(run_id, tags)  # last: the key marks a run that is whole
        client.delete_tag(run_id, "vae.pending")
    store.discard_live(tags["vae.model_sha256"])  # of a request that was sent twice
    return run_id


def record_quality(quality: Path, picture: Path, config: Params, root: Path) -> list[str]:
    """Adds the quality of a model's samples to every run of that model, and returns the ids of these runs.

    Raises:
        InputError: the store cannot be reached or written, or has no run of the model.
    """
    values, digest = json.loads(quality.read_text()), file_sha256(quality)
    figures = {name: value for name, value in values.items() if isinstance(value, float)}
    store = Store(root, config.track.experiment)
    with reported(store.uri), store_lock(root):
        runs = store.find(vae__model_sha256=values["model_sha256"])
        if not runs:
            raise InputError(
                f"MLflow store {store.uri}: no run of the model that {quality} is of; `dvc repro --force track` first"
            )
        for run in runs:
            if run.data.tags.get("vae.quality_sha256") != digest:
                run_id = run.info.run_id
                store.log_metrics(run_id, [(FINAL_STEP, figures)])
                store.client.log_artifact(run_id, str(quality), quality.parent.name)
                log_picture(store.client, run_id, f"quality_{picture.stem}", picture)
                store.set_tags(run_id, {"vae.quality_sha256": digest})  # last: it marks what is whole
    return [run.info.run_id for run in runs]
