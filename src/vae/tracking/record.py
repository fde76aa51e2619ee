"""The record of a state: everything that is logged to its MLflow run."""

from vae.runtime import repository
from vae.runtime.files import files_below, read_json, sha256

import json
import os
import sys
import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from PIL import Image
from safetensors import safe_open

from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE, leaves, load, parse
from vae.tracking import registry, servable, sweep, worktree
from vae.tracking.address import shown, store_errors
from vae.tracking.changes import Changes, uncommitted_changes
from vae.tracking.state import State, dependencies, read_curves
from vae.tracking.store import CHAMPION_METRIC, SOURCE, Store, Tag, experiment_names, store_lock

IMAGES = "validation_images"
FINAL_STEP = 0  # of test metrics and pictures, because the UI compares runs at equal steps


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
                add_experiment(store, run)
                store.discard_live(state.model_sha256)
                return sweep.join(store, run.info.run_id)
            print(f"MLflow run {run.info.run_id} has lost {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}")
        return sweep.join(store, _write(store, state, finished))


def add_experiment(store: Store, run: Run) -> None:
    """Adds the name of the present DVC experiment, which reached the same state."""
    if name := os.environ.get("DVC_EXP_NAME"):
        store.set_tags(run.info.run_id, {Tag.EXPERIMENTS: ",".join(sorted(experiment_names(run) | {name}))})


def _write(store: Store, state: State, damaged: list[Run]) -> str:
    """Completes a run of this state that has lost files, or the open run of this model's training, or a new one.
    Continues an interrupted attempt without logging anything twice."""
    config, changes = state.config, uncommitted_changes(state.outputs, dependencies(Path("dvc.lock")))
    name = os.environ.get("DVC_EXP_NAME") or f"{config.data.name}-{state.key[:7]}"
    if damaged:
        found, name = damaged[0], damaged[0].info.run_name
        if Tag.QUALITY in found.data.tags:
            store.delete_tag(found.info.run_id, Tag.QUALITY)  # `track_quality` must add its files again
    else:
        found = store.to_complete(state.model_sha256, state.key) or store.create_run(store.experiment.experiment_id)
    mlflow.set_tracking_uri(store.uri)
    tags = {Tag.PENDING: state.key, Tag.PLACE: repository.address(store.root)}
    with mlflow.start_run(found.info.run_id, run_name=name, tags=tags) as run:
        run_id = run.info.run_id
        store.update_run(run_id, name=name)
        curves, stored = read_curves(state.curves), store.epochs(run_id)
        used = {name: value for name, value in leaves(config).items() if name.partition(".")[0] not in NOT_IN_PIPELINE}
        store.log_params(run_id, used)
        store.log_metrics(run_id, [row for row in curves if row[0] not in stored])
        evaluation, validation = read_json(state.evaluation), read_json(state.validation)
        final = {name: float(value) for name, value in evaluation.items() if not isinstance(value, str)}
        final[IMAGES] = validation[IMAGES]
        store.log_metrics(run_id, [(FINAL_STEP, final)] if not final.keys() & run.data.metrics.keys() else [])
        store.log_inputs(run_id, [dataset_input(state)])
        log_files(store, run_id, state, changes)
        uri = store.model_of(run) or servable.log_model(run_id, state.model)
        split = registry.split_name(validation[IMAGES], state.data_sha256)
        registry.register(store, config, run_id, uri, validation[CHAMPION_METRIC], split)
        add_experiment(store, found)
        store.set_tags(run_id, provenance(state, dirty=bool(changes.diff)))  # last, because the key marks a whole run
        store.delete_tag(run_id, Tag.PENDING)
    store.discard_live(state.model_sha256)  # a run of the same training that a repeated request created
    return run_id


def provenance(state: State, dirty: bool) -> dict[str, str]:
    """The tags that link a run to git, to DVC, and to its files."""
    commit = worktree.head()
    tags = {
        Tag.KEY: state.key,
        Tag.MODEL: state.model_sha256,
        Tag.DATA: state.data_sha256,
        Tag.COMMIT: commit,
        Tag.DIRTY: str(dirty).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": SOURCE,
        Tag.EXPERIMENT: os.environ.get("DVC_EXP_NAME", ""),
        **trained_on(state.model),
        Tag.BASELINE: os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    return {name: value for name, value in tags.items() if value}


def trained_on(model: Path) -> dict[str, str]:
    """The device and the precision that a model file names. Empty for a file that names none."""
    with safe_open(model, framework="numpy") as file:
        described = json.loads((file.metadata() or {}).get("model", "{}"))
    return {f"model.{name}": value for name, value in described.get("trained", {}).items()}


def dataset_input(state: State) -> DatasetInput:
    """The data set, for the run's page in MLflow."""
    source = json.dumps({"files": [path.name for path in files_below(state.data)]})
    return DatasetInput(
        Dataset(name=state.config.data.name, digest=state.data_sha256[:16], source_type="local", source=source),
        [InputTag("mlflow.data.context", "train")],
    )


def log_files(client: MlflowClient, run_id: str, state: State, changes: Changes) -> None:
    """Logs the pictures, as images that the UI compares and as files, and everything that a reproduction needs."""
    shown = {Path(item.path).name for item in client.list_artifacts(run_id, "images")}
    for folder in (state.plots, state.samples):
        client.log_artifacts(run_id, str(folder), folder.name)
        for picture in sorted(folder.rglob("*.png")):
            key = f"{folder.name}_{picture.stem}"  # the same in each run
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
    values, digest = read_json(quality), sha256(quality)
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
        hashes, text = store.recorded(run_id, "hashes.json", "params.yaml")
        name = next(name for name, digest in json.loads(hashes).items() if digest == tags[Tag.MODEL])
        servable.check(model := Path(store.download_artifacts(run_id, name, scratch)))
        mlflow.set_tracking_uri(store.uri)
        mlflow.set_experiment(experiment_id=store.experiment.experiment_id)
        uri = servable.log_model(run_id, model)
        if versions := store.search_model_versions(f"run_id = '{run_id}'"):
            registry.register_again(store, versions, uri)
        else:
            config, metrics = parse(text, Path(f"{run_id}/params.yaml")), store.get_run(run_id).data.metrics
            split = registry.split_name(int(metrics[IMAGES]), tags[Tag.DATA])
            registry.register(store, config, run_id, uri, metrics[CHAMPION_METRIC], split)
