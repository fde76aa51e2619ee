"""The run of a state is whole in every store, and nothing in it is there twice."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from tests.pipeline.project import CURVE, DOWN, EPOCHS
from vae.tracking.record import record
from vae.tracking.state import State
from vae.tracking.store import Store

pytestmark = pytest.mark.pipeline

CURVES = {"train_neg_elbo_nats", CURVE, "train_rate_nats", "train_distortion_nats", "lr"}


def test_first_repro_makes_one_finished_run(project):
    assert list(project.runs()) == [project.recorded()]
    run = project.assert_whole(project.recorded())
    assert run.data.tags["git.dirty"] == "false"
    assert project.epochs(run.info.run_id, "epoch_seconds") == [1, 2, 3]  # the live run was completed
    shown = {step for key, step in project.pictures(run.info.run_id) if key == "training_samples"}
    assert shown == {1, 2}  # the third epoch trains the prior alone


def test_training_again_to_the_same_result_is_recorded_and_leaves_no_open_run(project):
    """As in a fresh clone of a published state: the lock file already has these very results."""
    before = project.runs()
    project.dvc("repro", "--force", "--single-item", "train")
    assert "Running stage 'track'" in project.dvc("repro").stdout
    assert project.runs().keys() == before.keys() == {project.recorded()}
    assert not project.changes()


def test_store_that_is_down_does_not_stop_the_training_and_is_caught_up_with(project):
    project.params(train={"seed": 13})
    before = project.runs()
    done = project.at(DOWN).dvc("repro", check=False)
    assert done.returncode
    assert "Running stage 'generate'" in done.stdout
    assert f"error: MLflow store {DOWN}" in done.stderr
    assert "Traceback" not in done.stderr
    printed = project.dvc("repro").stdout
    assert "Running stage 'train'" not in printed
    assert project.runs().keys() - before.keys() == {project.recorded()}
    project.assert_whole(project.recorded())


def test_new_store_gets_the_same_state_whole(project, tmp_path):
    other = project.at(f"sqlite:///{tmp_path / 'other.db'}")
    other.dvc("repro", "--single-item", "--force", "track")
    assert list(other.runs()) == [other.recorded()]
    other.assert_whole(other.recorded())
    assert other.epochs(other.recorded()) == [1, 2, 3]


def test_a_server_gets_the_state_whole(project, served, tmp_path):
    """`mlflow server`, which asks for more than its own database does. A password in its address is written nowhere:
    not by the training, its observer or `track`, not into the store, and not into the repository."""
    other, password = project.at(served), "-".join(("in", "no", "file"))  # this file is in the project too
    stages = ("repro", "--single-item", "--force", "train", "track")
    done = other.dvc(*stages, MLFLOW_TRACKING_URI=served.replace("://", f"://me:{password}@"))
    files = [path for folder in (tmp_path, project.home) for path in folder.rglob("*") if path.is_file()]
    assert {tmp_path / "server/served.db", project.folder / "dvc.lock"} <= {*files}
    assert not [path for path in files if password.encode() in path.read_bytes()]
    assert password not in done.stdout + done.stderr
    assert list(other.runs()) == [other.recorded()]
    run = other.assert_whole(other.recorded())
    assert other.client.get_model_version_by_alias("vae-digits", "champion").run_id == run.info.run_id
    artifacts = {item.path for item in other.client.list_artifacts(run.info.run_id)}
    assert {"samples", "plots", "hashes.json"} <= artifacts


@pytest.mark.parametrize("last", ["log_model_artifacts", "finalize_logged_model", "log_outputs", "set_tags"])
def test_a_record_that_was_cut_short_is_continued(project, tmp_path, monkeypatch, request, last):
    """At its last request, or while it logs the model. Another state of the same model has a run of its own meanwhile,
    and nothing is logged twice."""
    store = project.at(f"sqlite:///{tmp_path / 'other.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.chdir(project.folder)
    metrics = ("metrics/train.csv", "metrics/validation.json", "metrics/evaluation.json")
    files = ("data", "models/vae.safetensors", *metrics, "plots", "samples")
    state = State(Path("params.yaml"), *map(Path, files))
    changed = tmp_path / "params.yaml"
    changed.write_text(state.params.read_text().replace("grey_samples: 2", "grey_samples: 3"))
    assert changed.read_text() != state.params.read_text()

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    with monkeypatch.context() as patch:
        patch.setattr(Store, last, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            record(state, project.folder)
    other = record(dataclasses.replace(state, params=changed), project.folder)
    run_id = record(state, project.folder)

    runs = store.runs()
    assert {name: run.info.status for name, run in runs.items()} == {run_id: "FINISHED", other: "FINISHED"}
    for name in runs[run_id].data.metrics:
        points = store.client.get_metric_history(run_id, name)
        assert len(points) == (EPOCHS if name in CURVES else 1), name
    (model,) = runs[run_id].outputs.model_outputs
    made = store.client.search_logged_models([runs[run_id].info.experiment_id], f"source_run_id = '{run_id}'")
    assert [(item.model_id, item.status) for item in made] == [(model.model_id, "READY")]
    versions = {name: len(store.client.search_model_versions(f"run_id = '{name}'")) for name in runs}
    assert versions == {run_id: 1 if last == "set_tags" else 0, other: 1}  # both runs have the same model
    pictures = store.pictures(run_id)
    assert len({*pictures}) * 2 == len(pictures)  # a picture and its thumbnail
