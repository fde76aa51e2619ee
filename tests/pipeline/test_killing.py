"""Trainings that are killed, fail or have to wait: the status of their run, and how they continue."""

from vae.runtime import cores

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.pipeline.project import EPOCHS, mlflow_server, wait_for

pytestmark = pytest.mark.pipeline
PROMPT_SECONDS = 3  # after an interrupt, at any load
PATIENT_SECONDS = 120  # for the rest of a tiny training. MLflow by itself asks a dead server for longer


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


def test_a_server_that_dies_in_a_training_and_comes_back_changes_nothing(project, tmp_path):
    """The training goes on without it, to the same bits. The run that it opened is whole after `track`."""
    single = ("dvc", "repro", "--single-item", "--force")
    with ExitStack() as server:
        uri = server.enter_context(mlflow_server(tmp_path, end=signal.SIGKILL))
        other, hashes = project.at(uri), project.hashes()
        with project.after_one_epoch(lambda: other.start(*single, "train")) as training:
            run = new_run(other, {})
            wait_for(lambda: other.epochs(run) == [1])
            server.close()  # kills it
        released = time.monotonic()
    training.ended()
    assert time.monotonic() - released < PATIENT_SECONDS
    assert training.files[1].read_text().count("not followed live") == 1
    assert project.hashes() == hashes
    with mlflow_server(tmp_path, port=int(uri.rpartition(":")[2])):
        assert other.status(run) == "RUNNING"
        other.run(*single, "track")
        assert [*other.runs()] == [run] == [other.recorded()]
        other.assert_whole(run)
        assert other.epochs(run) == [1, 2, 3]


def test_ctrl_c_gives_the_prompt_back_at_once_also_on_busy_cores(project, request):
    """The terminal sends it to dvc and to all stages."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    project.params(train={"epochs": 100000, "seed": 19})
    for _ in cores.usable():
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        request.addfinalizer(busy.wait)
        request.addfinalizer(busy.kill)
    running = project.start("setsid", "dvc", "repro")
    wait_for(project.checkpoints)
    interrupted = time.monotonic()
    os.killpg(running.process.pid, signal.SIGINT)
    done = running.finish()
    assert time.monotonic() - interrupted < PROMPT_SECONDS
    assert done.returncode
    assert "; run the same command to go on" in done.stderr


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
