"""Trainings that are killed, fail or have to wait: the status of their run, and how they continue."""

import signal
import socket
import time

import pytest

from tests.pipeline.project import EPOCHS, wait_for

pytestmark = pytest.mark.pipeline


def new_run(project, before) -> str:
    """The id of the one run that is new since `before`."""
    (run_id,) = wait_for(lambda: project.runs().keys() - before.keys())
    return run_id


def test_killed_training_ends_as_killed_resumes_and_gives_the_same_bits(project):
    project.params(train={"seed": 11})
    before = project.runs()
    with project.after_one_epoch(lambda: project.train("killed")) as training:
        run = new_run(project, before)
        wait_for(lambda: project.epochs(run))  # it moves while it works
        curves, validation = (project.folder / "killed" / name for name in ("train.csv", "validation.json"))
        wait_for(validation.is_file)
        assert len(curves.read_text().splitlines()) == 2  # the names of the columns, and one epoch
        assert project.status(run) == "RUNNING"
        training.process.kill()
        training.ended(-signal.SIGKILL)
    wait_for(lambda: project.status(run) != "RUNNING")
    assert project.status(run) == "KILLED"
    assert project.epochs(run) == [1]
    assert not (project.folder / "killed/vae.safetensors").exists()

    written = [path.read_bytes() for path in (curves, validation)]
    for path in (curves, validation):
        path.unlink()  # as dvc does before it runs a stage
    with project.all_cores():
        training = project.train("killed")
        wait_for(validation.is_file)  # the files go on before the next epoch
        assert [path.read_bytes() for path in (curves, validation)] == written
    assert "resuming after epoch 1" in training.ended()
    assert project.runs().keys() - before.keys() == {run}  # the same run goes on
    assert project.status(run) == "RUNNING"  # open, for the track stage
    assert project.epochs(run) == [1, 2, 3]

    printed = project.train("whole", DVC_ROOT=str(project.folder / "elsewhere")).ended()
    assert "resuming" not in printed
    for name in ("vae.safetensors", "train.csv"):
        assert (project.folder / "killed" / name).read_bytes() == (project.folder / "whole" / name).read_bytes()
    assert not project.checkpoints()


def test_training_waits_for_cores_that_another_has(project):
    """The seconds of its epochs do not include the waiting."""
    project.params(train={"seed": 17})
    before = project.runs()
    with project.all_cores():
        training = project.train("waiting")
        run = new_run(project, before)
        wait_for(project.waits_for_cores)
        time.sleep(1)  # so that the waiting would show in the sum below
        assert not project.checkpoints()
        assert not project.epochs(run)
        released = time.time()
    training.ended()
    trained = (project.folder / "waiting/train.csv").stat().st_mtime - released  # written right after the last epoch
    seconds = project.client.get_metric_history(run, "epoch_seconds")
    assert len(seconds) == EPOCHS
    assert sum(epoch.value for epoch in seconds) < trained + 0.1  # a file's time may lag by some milliseconds


def test_terminated_training_ends_as_killed(project):
    project.params(train={"epochs": 100000, "seed": 12})
    before = project.runs()
    training = project.train("terminated")
    run = new_run(project, before)
    training.process.terminate()
    training.ended(128 + signal.SIGTERM)
    assert project.status(run) == "KILLED"


def test_interrupted_after_its_last_epoch_it_has_nothing_to_train_again(project):
    """It is interrupted while the observer waits for a store that does not answer."""
    project.params(train={"seed": 18})
    model = project.folder / "interrupted/vae.safetensors"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        training = project.train("interrupted", MLFLOW_TRACKING_URI=uri)
        wait_for(model.is_file)
        training.process.terminate()
        training.ended(128 + signal.SIGTERM)
    bits = model.read_bytes()
    model.unlink()  # as dvc does before it runs a stage
    assert f"resuming after epoch {EPOCHS}" in project.train("interrupted").ended()
    assert model.read_bytes() == bits


def test_diverged_training_ends_as_failed_with_one_clear_line(project):
    before, hashes = project.runs(), project.hashes()
    project.params(train={"learning_rate": 100, "optimizer": "adam"})
    done = project.dvc("repro", check=False)
    assert done.returncode
    assert "error: training diverged" in done.stderr
    assert "train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr
    assert project.status(new_run(project, before)) == "FAILED"
    project.run("git", "restore", ".")
    project.dvc("checkout", "--force")
    assert project.hashes() == hashes  # nothing is lost
