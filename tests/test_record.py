"""The run of a state: whole, written once, and continued after an interruption. Real pipelines: tests/pipeline."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from PIL import Image
from safetensors.numpy import save_file
from sqlalchemy import Engine, event

from vae import idx
from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE
from vae.tracking import record as records
from vae.tracking.changes import Changes
from vae.tracking.experiments import experiment_names
from vae.tracking.places import local_path
from vae.tracking.state import State
from vae.tracking.store import Store, Tag

EVALUATION = {"neg_elbo_nats": 95.5, "active_units": 7, "binarization_sha256": "text"}
LABELS = {"train": [0, 1, 2] * 2000, "t10k": [7, 7, 1]}
PICTURES = ("plots/latent.png", "samples/grid.png")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A folder with a store. Its schema is made once, because that takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def experiment(request):
    """The name of an experiment for this test alone."""
    return request.node.name.translate(str.maketrans("[]", "--"))


@pytest.fixture
def state(tmp_path, root, monkeypatch, experiment):
    """A state in a repository with one commit, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    text = (root / "params.yaml").read_text()
    assert "experiment: vae" in text
    Path("params.yaml").write_text(text.replace("experiment: vae", f"experiment: {experiment}"))
    for name in ("data/labels", "models/vae", "metrics/train.csv", *PICTURES):
        Path(name).parent.mkdir(exist_ok=True)
    for name in ("dvc.yaml", "dvc.lock"):
        Path(name).write_text("stages: {}\n")
    for part, labels in LABELS.items():
        Path(f"data/{part}-labels-idx1-ubyte").write_bytes(idx.header("labels", len(labels)) + bytes(labels))
    described = {"model": json.dumps({"trained": {"device": "cpu", "precision": "fp32"}})}
    save_file({"w": np.zeros(2, np.float32)}, "models/vae", metadata=described)
    Path("metrics/train.csv").write_text("epoch,val_neg_elbo_nats,lr\n1,100.5,0.1\n2,90.5,0.05\n")
    Path("metrics/validation.json").write_text(json.dumps({"val_neg_elbo_nats": 90.5, "validation_images": 1200}))
    Path("metrics/evaluation.json").write_text(json.dumps(EVALUATION))
    for name in PICTURES:
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(name)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "base"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *command], check=True)
    metrics = ("metrics/train.csv", "metrics/validation.json", "metrics/evaluation.json")
    places = ("params.yaml", "data", "models/vae", *metrics, "plots", "samples")
    return State(*map(Path, places))


@pytest.fixture
def store(database, monkeypatch, experiment):
    """A real store. Models have no files and are not registered in it, because that takes seconds."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database / 'mlflow.db'}")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)  # which `record` sets
    models = {}

    def model_of(client: Store, run: Run) -> str:
        if run.info.run_id not in models:
            logged = client.create_logged_model(client.experiment.experiment_id, source_run_id=run.info.run_id)
            models[run.info.run_id] = f"models:/{logged.model_id}"
        return models[run.info.run_id]

    monkeypatch.setattr(Store, "model_of", model_of)
    monkeypatch.setattr(records.registry, "register", lambda *_: None)
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    return Store(database, experiment)


def logged(store: Store, run_id: str) -> dict[str, list[float]]:
    """The values of every metric, in the order in which they were logged."""
    names = store.get_run(run_id).data.metrics
    return {name: [point.value for point in store.get_metric_history(run_id, name)] for name in names}


def paths_of(state: State) -> list[Path]:
    """The paths of a state."""
    return [state.params, state.data, *state.outputs]


def test_a_state_becomes_one_whole_run(store, state):
    run_id = records.record(state, store.root)
    run = store.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"{state.config.data.name}-{state.key[:7]}")
    assert logged(store, run_id) == {
        "val_neg_elbo_nats": [100.5, 90.5],
        "lr": [0.1, 0.05],
        "neg_elbo_nats": [95.5],
        "active_units": [7.0],
        "validation_images": [1200.0],
    }
    sections = {name.partition(".")[0] for name in run.data.params}
    assert sections == set(type(state.config).model_fields) - NOT_IN_PIPELINE
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run.data.tags[Tag.KEY] == state.key
    assert run.data.tags[Tag.COMMIT] == head
    assert run.data.tags[Tag.DIRTY] == "false"
    assert run.data.tags[Tag.MODEL] == state.model_sha256
    assert not {Tag.PENDING, Tag.EXPERIMENT, Tag.EXPERIMENTS, Tag.BASELINE, Tag.REMOTE} & set(run.data.tags)
    assert run.data.tags[Tag.SCHEMA] == records.SCHEMA
    assert "1200 validation images" in run.data.tags["mlflow.note.content"]
    assert f"make reproduce RUN={run_id}" in run.data.tags["mlflow.note.content"]
    files = {
        item.path for folder in ("", "plots", "samples", "models") for item in store.list_artifacts(run_id, folder)
    }
    assert {"params.yaml", "hashes.json", "working-tree.diff", "models/vae", *PICTURES} <= files
    assert json.loads(store.recorded(run_id, "hashes.json")[0]) == state.output_hashes()


def test_the_model_has_the_figures_of_each_data_set(store, state):
    """So MLflow answers which model is best."""
    run_id = records.record(state, store.root)
    data = {item.dataset.name: item.dataset for item in store.get_run(run_id).inputs.dataset_inputs}
    (model,) = store.search_logged_models(
        [store.experiment.experiment_id],
        order_by=[{"field_name": "metrics.neg_elbo_nats", "ascending": True, "dataset_name": "mnist-test"}],
    )
    found = {item.key: (item.value, item.step, item.dataset_name, item.dataset_digest) for item in model.metrics}
    validation, test = data["mnist-validation"], data["mnist-test"]
    assert found == {
        "val_neg_elbo_nats": (90.5, 2, validation.name, validation.digest),
        "validation_images": (1200, 0, validation.name, validation.digest),
        "neg_elbo_nats": (95.5, 0, test.name, test.digest),
        "active_units": (7, 0, test.name, test.digest),
    }


def test_the_run_lasts_as_long_as_the_command_of_dvc(store, state, monkeypatch):
    """And it keeps the message that was given to it. All other stages may have come from the cache."""
    monkeypatch.setattr(records.page, "dvc_command", lambda: (1_700_000_000_000, "why"))
    monkeypatch.setenv("DVC_EXP_NAME", "crank-pail")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("latent_dim: 32", "latent_dim: 40"))
    run = store.get_run(records.record(state, store.root))
    assert run.info.start_time == 1_700_000_000_000
    assert run.info.run_name == "latent_dim=40"
    assert run.data.tags[Tag.MESSAGE] == "why"
    assert run.data.tags[Tag.EXPERIMENT] == "crank-pail"
    assert run.data.tags["mlflow.note.content"].startswith("**latent_dim=40** (experiment crank-pail): why")


def test_the_user_s_tags_are_added_also_to_a_run_that_is_there(store, state):
    """They are no part of the state."""
    path, text = Path("params.yaml"), Path("params.yaml").read_text()
    run_ids = []
    for tags in ("{owner: me}", "{owner: you, purpose: baseline}"):
        assert "tags: {}" in text
        path.write_text(text.replace("tags: {}", f"tags: {tags}"))
        run_ids.append(records.record(State(*paths_of(state)), store.root))
    assert len(set(run_ids)) == 1
    tags = store.get_run(run_ids[0]).data.tags
    assert (tags["owner"], tags["purpose"]) == ("you", "baseline")


def test_the_experiment_opens_with_the_figures_and_the_changed_parameters(store, state):
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("latent_dim: 32", "latent_dim: 40"))
    records.record(state, store.root)
    tags = store.get_experiment(store.experiment.experiment_id).tags
    view = json.loads(json.loads(tags["mlflow.sharedViewState.vae"])["state"])
    assert "params.`model.latent_dim`" in view["selectedColumns"]
    assert [card["imageKeys"] for card in view["compareRunCharts"] if card["type"] == "IMAGE"] == [
        ["samples_grid"],
        ["plots_latent"],
    ]
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_record_takes_as_many_queries_in_a_full_store_as_in_an_empty_one(store, state):
    counts = []

    def count(*_) -> None:
        counts[-1] += 1

    event.listen(Engine, "before_cursor_execute", count)
    try:
        for number in range(4):
            Path("metrics/evaluation.json").write_text(json.dumps(EVALUATION | {"neg_elbo_nats": 90.0 + number}))
            counts.append(0)
            records.record(State(*paths_of(state)), store.root)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert counts[1] == counts[2] == counts[3] > 0  # the first one describes the experiment


@pytest.fixture
def old_run(store, state):
    """The id of a run of this state as the version before recorded it: no schema, one data set, figures of the run."""
    run_id = store.create_run(store.experiment.experiment_id, run_name="mnist-0123456").info.run_id
    store.log_params(run_id, {"data.name": "mnist", "data.binarization": "dynamic", "track.registered_model": "vae"})
    store.log_metrics(run_id, [(1, {"val_neg_elbo_nats": 100.5}), (2, {"val_neg_elbo_nats": 90.5})])
    final = {"neg_elbo_nats": 95.5, "active_units": 7, "validation_images": 1200}
    store.log_metrics(run_id, [(0, final)])
    data = Dataset("mnist", state.data_sha256[:16], "local", json.dumps({"files": ["images"]}))
    store.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
    records.log_files(store, run_id, state, Changes(b""))
    tags = {Tag.KEY: state.key, Tag.MODEL: state.model_sha256, Tag.DATA: state.data_sha256, Tag.COMMIT: "0" * 40}
    store.set_tags(run_id, tags | {Tag.DIRTY: "false"})
    store.set_terminated(run_id)
    return run_id


def test_a_run_of_the_version_before_is_whole(store, state, old_run, quality):
    """It is kept as it is, and takes the quality of its samples."""
    assert store.lost(store.get_run(old_run)) == []
    before = store.get_run(old_run).data.to_dictionary()
    assert records.record(state, store.root) == old_run
    assert store.get_run(old_run).data.to_dictionary() == before
    assert records.record_quality(state.params, quality, Path("metrics/nearest.png"), store.root) == [old_run]
    assert logged(store, old_run)["frechet"] == [1.5]
    assert store.run_tags(old_run, Tag.COMMIT, Tag.KEY)  # what `make reproduce` asks for


def test_a_damaged_run_of_the_version_before_becomes_a_run_of_this_one(store, state, old_run):
    (local_path(store.get_run(old_run).info.artifact_uri) / "hashes.json").unlink()
    assert records.record(state, store.root) == old_run
    assert all(len(values) == len(set(values)) for values in logged(store, old_run).values())
    run = store.get_run(old_run)
    assert (run.data.tags[Tag.SCHEMA], run.info.run_name) == (records.SCHEMA, "mnist-0123456")


def test_a_state_that_has_a_run_gets_no_other(store, state, monkeypatch):
    """The second experiment that reaches a state adds its name to the run."""
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "baseline")
    run_id = records.record(state, store.root)
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    assert records.record(State(*paths_of(state)), store.root) == run_id
    run = store.get_run(run_id)
    assert len(store.find()) == 1
    assert run.info.run_name == run.data.tags[Tag.EXPERIMENT] == "first"
    assert run.data.tags[Tag.BASELINE] == "baseline"
    assert experiment_names(run) == {"first", "second"}


def test_a_name_with_a_comma_is_one_name(store, state, monkeypatch):
    """A tag of an older version, which has no backslashes, reads as before."""
    for name in ("a,b", "c", ",d,,e,"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        run_id = records.record(state, store.root)
    assert experiment_names(store.get_run(run_id)) == {"a,b", "c", ",d,,e,"}
    store.set_tags(run_id, {Tag.EXPERIMENTS: "old,older"})
    assert experiment_names(store.get_run(run_id)) == {"old", "older"}
    assert records.record(state, store.root) == run_id
    assert experiment_names(store.get_run(run_id)) == {"old", "older", ",d,,e,"}


def test_an_uncommitted_change_is_in_the_run(store, state, capsys):
    """The names of the files that are left out are in the run too. A file that a stage may need is a warning."""
    Path("code.py").write_text("x = 1\n")
    Path("unknown.py").write_text("x = 2\n")
    Path("dvc.lock").write_text("stages: {train: {deps: [{path: code.py}, {path: table.csv}]}}\n")
    Path("table.csv").write_text("1,2\n")
    run_id = records.record(state, store.root)
    assert store.get_run(run_id).data.tags[Tag.DIRTY] == "true"
    diff, left_out = store.recorded(run_id, "working-tree.diff", "left-out.json")
    assert "+x = 1" in diff
    assert "x = 2" not in diff
    assert json.loads(left_out) == {
        "needed": {"table.csv": "new; `git add` records it"},
        "others": {"unknown.py": "new; `git add` records it"},
    }
    assert "warning: table.csv is not in the record" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["hashes.json", "models/vae", "plots/latent.png", "."])
def test_a_damaged_record_is_written_again_whole(store, state, monkeypatch, capsys, lost):
    """Into the same run, so that all links to it stay. Nothing is logged twice."""
    monkeypatch.setenv("DVC_EXP_NAME", "first")
    run_id = records.record(state, store.root)
    store.set_tags(run_id, {Tag.QUALITY: "q"})
    path = local_path(store.get_run(run_id).info.artifact_uri) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setenv("DVC_EXP_NAME", "second")
    assert records.record(State(*paths_of(state)), store.root) == run_id
    assert f"MLflow run {run_id} has lost" in capsys.readouterr().out
    run = store.get_run(run_id)
    assert store.lost(run) == []
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert experiment_names(run) == {"first", "second"}
    assert Tag.QUALITY not in run.data.tags  # its files are to be added again
    assert all(len(values) == len(set(values)) for values in logged(store, run_id).values())
    assert len(run.inputs.dataset_inputs) == 3
    compared = [item.path for item in store.list_artifacts(run_id, "images")]
    assert sum(path.endswith(".png") for path in compared) == len(PICTURES)
    assert len(store.find()) == 1


def test_a_run_of_a_surrounding_system_is_not_written_into(store, state, monkeypatch):
    foreign = store.create_run("0").info.run_id
    for name, value in (("RUN_ID", foreign), ("EXPERIMENT_ID", "0"), ("EXPERIMENT_NAME", "other")):
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    run_id = records.record(state, store.root)
    assert run_id != foreign
    assert store.get_run(run_id).info.experiment_id == store.experiment.experiment_id
    assert store.get_run(foreign).data.tags.keys() == {"mlflow.runName"}
    assert store.get_experiment_by_name("other") is None


@pytest.mark.parametrize("step", ["log_files", "registry.register", "provenance"])
def test_an_interrupted_record_is_continued_and_nothing_is_logged_twice(store, state, monkeypatch, step):
    holder, name = (records.registry, "register") if "." in step else (records, step)

    def fail(*_, **__) -> None:
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, fail)
        with pytest.raises(InputError, match="the store is away"):
            records.record(state, store.root)
    (run,) = store.find()
    assert Tag.KEY not in run.data.tags  # so nobody takes it for a whole run
    assert records.record(state, store.root) == run.info.run_id
    assert all(len(values) == len(set(values)) for values in logged(store, run.info.run_id).values())
    compared = [item.path for item in store.list_artifacts(run.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in compared) == len(PICTURES)


def test_the_run_of_the_training_is_completed(store, state, monkeypatch):
    """It keeps the epochs that it has, and gets the others from the file."""
    opened = store.create_run(store.experiment.experiment_id, tags={Tag.TRAINING: "t"}).info.run_id
    store.log_metrics(opened, [(1, {"val_neg_elbo_nats": 100.5, "epoch_seconds": 3.0})])
    monkeypatch.setattr("vae.runtime.checkpoint.training_of", lambda *_: "t")
    assert records.record(state, store.root) == opened
    values = logged(store, opened)
    assert values["val_neg_elbo_nats"] == [100.5, 90.5]
    assert values["epoch_seconds"] == [3.0]
    assert store.get_run(opened).info.status == "FINISHED"


def test_the_open_run_of_a_training_is_deleted_if_the_state_has_a_run(store, state, monkeypatch):
    """The state was trained again, to the same result."""
    run_id = records.record(state, store.root)
    store.create_run(store.experiment.experiment_id, tags={Tag.TRAINING: "t"})
    monkeypatch.setattr("vae.runtime.checkpoint.training_of", lambda *_: "t")
    assert records.record(state, store.root) == run_id
    assert [run.info.run_id for run in store.find()] == [run_id]


def test_a_state_has_the_names_of_all_its_experiments(store, monkeypatch):
    run_id = store.create_run(store.experiment.experiment_id).info.run_id
    for name in ("one", "two", "one"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        records.add_experiment(store, store.get_run(run_id), {})
    monkeypatch.delenv("DVC_EXP_NAME")
    records.add_experiment(store, store.get_run(run_id), {})
    assert experiment_names(store.get_run(run_id)) == {"one", "two"}


@pytest.fixture
def quality(state):
    """The quality of the samples of this state's model."""
    path = Path("metrics/quality.json")
    path.write_text(json.dumps({"frechet": 1.5, "samples": 100, "model_sha256": state.model_sha256}))
    shutil.copy(PICTURES[0], "metrics/nearest.png")
    return path


def test_the_quality_is_added_to_every_run_of_the_model_once(store, state, quality):
    """A figure is logged again only if it was measured again."""
    picture = Path("metrics/nearest.png")
    first = records.record(state, store.root)
    Path("metrics/evaluation.json").write_text(json.dumps(EVALUATION | {"neg_elbo_nats": 95.0}))
    second = records.record(State(*paths_of(state)), store.root)
    assert first != second
    for _ in range(2):
        assert set(records.record_quality(state.params, quality, picture, store.root)) == {first, second}
    for run_id in (first, second):
        assert logged(store, run_id)["frechet"] == [1.5]
        assert "samples" not in logged(store, run_id)
        assert "metrics/quality.json" in {item.path for item in store.list_artifacts(run_id, "metrics")}
    models = store.search_logged_models([store.experiment.experiment_id])
    figures = [(item.value, item.dataset_name) for model in models for item in model.metrics if item.key == "frechet"]
    assert figures == [(1.5, "mnist-test")] * 2
    quality.write_text(quality.read_text().replace("1.5", "2.5"))
    records.record_quality(state.params, quality, picture, store.root)
    assert logged(store, first)["frechet"] == [1.5, 2.5]


def test_the_quality_of_a_model_without_a_run_is_one_clear_error(store, state, quality):
    with pytest.raises(InputError, match=r"no run of the model in metrics/quality\.json; `dvc repro --force track`"):
        records.record_quality(state.params, quality, Path("metrics/nearest.png"), store.root)


@pytest.mark.parametrize(
    "name", ["../outside", "plots/../../outside", "{tmp_path}/outside", None], ids=["up", "inside", "root", "none"]
)
def test_a_record_cannot_name_a_file_outside_of_the_scratch_folder(store, state, tmp_path, monkeypatch, name):
    """`make serving` takes the name of the model file from the record. A hostile store could name any path."""
    run_id = records.record(state, store.root)
    folder, scratch = local_path(store.get_run(run_id).info.artifact_uri), tmp_path / "temporary/scratch"
    named = {name.format(tmp_path=tmp_path): state.model_sha256} if name else {}
    (folder / "hashes.json").write_text(json.dumps(named))
    for outside in (folder.parent, tmp_path):  # a file that a store would send for such a name
        shutil.copy(state.model, outside / "outside")
    scratch.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="names no model file; name another run"):
        records.record_serving(state.params, run_id, store.root)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
