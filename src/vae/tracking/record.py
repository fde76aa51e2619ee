"""The record of a state: everything that is logged to its MLflow run."""

from vae.runtime import repository
from vae.runtime.files import read_json, sha256
from vae.runtime.network import shown

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, Metric, Run
from PIL import Image
from safetensors import safe_open

from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE, leaves, load
from vae.tracking import datasets, page, registry, servable, sweep, worktree
from vae.tracking.address import store_errors
from vae.tracking.changes import Changes, uncommitted_changes
from vae.tracking.experiments import experiment_names
from vae.tracking.state import State, dependencies, read_curves
from vae.tracking.store import CHAMPION_METRIC, SOURCE, Store, Tag, store_lock

IMAGES = "validation_images"
FINAL_STEP = 0  # of test metrics and pictures, because the UI compares runs at equal steps
SCHEMA = "2"  # of the record. 1: no tag, no note, one data set, figures of runs alone


def record(state: State, root: Path) -> str:
    """Makes this state of the pipeline one complete MLflow run, and returns its id.
    If a finished run has the key of the state, it is kept, and the name of the experiment is added to it. If it has
    lost files, it gets them again. Otherwise the open run of the model's training is completed. If there is none, a new
    run is written, with curves from the file.
    Raises InputError if the store cannot be reached or written."""
    store = Store(root, state.config.track.experiment)
    with store_errors(store.uri), store_lock(root):
        finished = [run for run in store.find({Tag.KEY: state.key}) if run.info.status == "FINISHED"]
        for run in finished:
            if not (lost := store.lost(run)):
                add_experiment(store, run, state.config.track.tags)
                store.discard_live(state.model_sha256)
                return sweep.join(store, run.info.run_id)
            print(f"MLflow run {run.info.run_id} has lost {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}")
        return sweep.join(store, _write(store, state, finished))


def add_experiment(store: Store, run: Run, tags: dict[str, str]) -> None:
    """Adds the name of the present DVC experiment, which reached the same state, and the user's tags."""
    if name := os.environ.get("DVC_EXP_NAME"):
        names = sorted(item.replace(",", "\\,") for item in experiment_names(run) | {name})
        tags = tags | {Tag.EXPERIMENTS: ",".join(names)}
    store.set_tags(run.info.run_id, tags)


def _write(store: Store, state: State, damaged: list[Run]) -> str:
    """Completes a run of this state that has lost files, or the open run of this model's training, or a new one.
    Continues an interrupted attempt without logging anything twice."""
    config, changes = state.config, uncommitted_changes(state.outputs, dependencies(Path("dvc.lock")))
    changed, (started, message) = page.changed_params(state.params), page.dvc_command()
    name = page.run_name(state, changed)
    if damaged:
        found, name = damaged[0], damaged[0].info.run_name
        if Tag.QUALITY in found.data.tags:
            store.delete_tag(found.info.run_id, Tag.QUALITY)  # `track_quality` must add its files again
    else:
        opened = store.to_complete(state.model_sha256, state.key)
        found = opened or store.create_run(store.experiment.experiment_id, started)
    mlflow.set_tracking_uri(store.uri)
    tags = {Tag.PENDING: state.key, Tag.PLACE: repository.address(store.root)}
    with mlflow.start_run(found.info.run_id, run_name=name, tags=tags) as run:
        run_id = run.info.run_id
        store.update_run(run_id, name=name)
        used = {name: value for name, value in leaves(config).items() if name.partition(".")[0] not in NOT_IN_PIPELINE}
        store.log_params(run_id, used)
        evaluation, validation = read_json(state.evaluation), read_json(state.validation)
        data = datasets.inputs(state, validation[IMAGES])
        store.log_inputs(run_id, list(data.values()))
        log_files(store, run_id, state, changes)  # before the model, so that a full disk leaves no half of one
        uri = store.model_of(run) or servable.log_model(store, run_id, state.model, used)
        curves, stored = read_curves(state.curves), store.epochs(run_id)
        store.log_metrics(run_id, [row for row in curves if row[0] not in stored])
        now, logged = int(time.time() * 1000), run.data.metrics
        last = max(store.get_metric_history(run_id, CHAMPION_METRIC), key=lambda point: point.step)
        used_images = [Metric(IMAGES, validation[IMAGES], now, FINAL_STEP)] if IMAGES not in logged else []
        rate(store, run_id, uri, data[datasets.VALIDATION].dataset, [last, *used_images])
        final = {name: float(value) for name, value in evaluation.items() if not isinstance(value, str)}
        points = [Metric(name, value, now, FINAL_STEP) for name, value in final.items() if name not in logged]
        rate(store, run_id, uri, data[datasets.TEST].dataset, points)
        tags = provenance(state, message, store.root, dirty=bool(changes.diff))
        text = page.note(name, run_id, state, found.data.tags | tags, changed, evaluation, validation)
        split = registry.split_name(validation[IMAGES], state.data_sha256)
        scored = {CHAMPION_METRIC: repr(validation[CHAMPION_METRIC]), registry.SPLIT: split}
        scored |= {name: repr(value) for name, value in final.items() if name in page.FIGURES}
        registry.register(store, registry.registered_name(used), run_id, uri, scored, state.model_sha256, text)
        page.describe(store, changed, pictures=[key for key, _ in pictures(state)])
        add_experiment(store, found, config.track.tags)
        store.set_tags(run_id, tags | {"mlflow.note.content": text})  # last, because the key marks a whole run
        store.delete_tag(run_id, Tag.PENDING)
    store.discard_live(state.model_sha256)  # a run of the same training that a repeated request created
    return run_id


def rate(store: Store, run_id: str, uri: str, data: Dataset, figures: list[Metric]) -> None:
    """Logs figures of a run that are figures of its model too, with the data set that they are of."""
    parts = ((item.key, item.value, item.timestamp, item.step) for item in figures if item.value == item.value)
    store.log_batch(run_id, [Metric(*part, uri.rpartition("/")[2], data.name, data.digest, run_id) for part in parts])


def provenance(state: State, message: str, root: Path, dirty: bool) -> dict[str, str]:
    """The tags that link a run to git, to DVC, and to its files."""
    commit = worktree.head()
    tags = {
        Tag.KEY: state.key,
        Tag.SCHEMA: SCHEMA,
        Tag.MODEL: state.model_sha256,
        Tag.DATA: state.data_sha256,
        Tag.COMMIT: commit,
        Tag.DIRTY: str(dirty).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
        Tag.EXPERIMENT: os.environ.get("DVC_EXP_NAME", ""),
        **trained_on(state.model),
        Tag.MESSAGE: message,
        Tag.REMOTE: page.remote(root),
        Tag.BASELINE: os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def trained_on(model: Path) -> dict[str, str]:
    """The device and the precision that a model file names. Empty for a file that names none."""
    with safe_open(model, framework="numpy") as file:
        described = json.loads((file.metadata() or {}).get("model", "{}"))
    return {f"model.{name}": value for name, value in described.get("trained", {}).items()}


def pictures(state: State) -> list[tuple[str, Path]]:
    """The pictures of a state, with the keys under which the UI compares them. The keys are the same in each run."""
    folders = (state.samples, state.plots)
    return [(f"{folder.name}_{path.stem}", path) for folder in folders for path in sorted(folder.rglob("*.png"))]


def log_files(client: MlflowClient, run_id: str, state: State, changes: Changes) -> None:
    """Logs the pictures, as images that the UI compares and as files, and everything that a reproduction needs."""
    shown = {Path(item.path).name for item in client.list_artifacts(run_id, "images")}
    for folder in (state.plots, state.samples):
        client.log_artifacts(run_id, str(folder), folder.name)
    for key, picture in pictures(state):
        if not any(name.startswith(key) for name in shown):
            log_picture(client, run_id, key, picture)
    for path in (state.model, state.curves, state.validation, state.evaluation):
        client.log_artifact(run_id, str(path), path.parent.name)
    for path in (state.params, Path("dvc.yaml"), Path("dvc.lock")):
        if path.is_file():
            client.log_artifact(run_id, str(path))
    with tempfile.TemporaryDirectory() as scratch:
        diff = Path(scratch) / "working-tree.diff"
        diff.write_bytes(changes.diff)
        client.log_artifact(run_id, str(diff))
    if changes.needed or changes.others:
        client.log_dict(run_id, {"needed": changes.needed, "others": changes.others}, "left-out.json")
    for name, reason in changes.needed.items():
        print(f"warning: {name} is not in the record, and a stage may need it: {reason}", file=sys.stderr)
    client.log_dict(run_id, state.output_hashes(), "hashes.json")


def log_picture(client: MlflowClient, run_id: str, key: str, picture: Path) -> None:
    """Logs a picture that the UI can compare with the same picture of other runs."""
    client.log_image(run_id, Image.open(picture), key=key, step=FINAL_STEP, synchronous=True)


def record_quality(params: Path, quality: Path, picture: Path, root: Path) -> list[str]:
    """Adds the quality of a model's samples to every run of that model, and returns the ids of these runs.
    Raises InputError if the store cannot be reached or written, or has no run of the model."""
    values, digest = read_json(quality, model_sha256=str), sha256(quality)
    figures = {name: value for name, value in values.items() if isinstance(value, float)}
    store = Store(root, load(params).track.experiment)
    with store_errors(store.uri), store_lock(root):
        runs = store.find({Tag.MODEL: values["model_sha256"]})
        if not runs:
            raise InputError(
                f"MLflow store {shown(store.uri)}: no run of the model in {quality}; `dvc repro --force track` first"
            )
        for run in runs:
            if run.data.tags.get(Tag.QUALITY) != digest:
                run_id = run.info.run_id
                if (data := datasets.tested(run)) and (uri := store.model_of(run)):
                    now = int(time.time() * 1000)
                    points = [Metric(name, value, now, FINAL_STEP) for name, value in figures.items()]
                    rate(store, run_id, uri, data, points)
                else:  # a run of schema 1
                    store.log_metrics(run_id, [(FINAL_STEP, figures)])
                store.log_artifact(run_id, str(quality), quality.parent.name)
                log_picture(store, run_id, f"quality_{picture.stem}", picture)
                store.set_tags(run_id, {Tag.QUALITY: digest})  # last, because it marks that the quality is whole
    return [run.info.run_id for run in runs]


def record_serving(params: Path, run_id: str, root: Path) -> None:
    """Logs the model of a run again, with the present code of serving/, and registers it as a new version.
    Raises InputError if the store cannot be reached or written, if it has no whole run with this id, or if the present
    code cannot answer with this model."""
    store = Store(root, load(params).track.experiment)
    with store_errors(store.uri), store_lock(root), tempfile.TemporaryDirectory() as scratch:
        tags = store.run_tags(run_id, Tag.KEY, Tag.MODEL, Tag.DATA)
        run, (hashes,) = store.get_run(run_id), store.recorded(run_id, "hashes.json")
        files = [name for name, digest in json.loads(hashes).items() if digest == tags[Tag.MODEL]]
        if not files or {"..", "/"} & {*Path(file := files[0]).parts}:  # a hostile store could name any file
            raise InputError(f"run {run_id}: its hashes.json was changed, and names no model file; name another run")
        servable.check(model := Path(store.download_artifacts(run_id, file, scratch)))
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_experiment(experiment_id=store.experiment.experiment_id)
        uri, name = servable.log_model(store, run_id, model, run.data.params), registry.registered_name(run.data.params)
        if versions := registry.versions_of(store, name, run_id, tags[Tag.MODEL]):
            registry.register_again(store, versions, uri)
        else:
            split = registry.split_name(int(run.data.metrics[IMAGES]), tags[Tag.DATA])
            scored = {CHAMPION_METRIC: repr(run.data.metrics[CHAMPION_METRIC]), registry.SPLIT: split}
            registry.register(store, name, run_id, uri, scored, tags[Tag.MODEL], tags.get("mlflow.note.content", ""))
