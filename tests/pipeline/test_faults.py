"""Disks without room, folders that cannot be written, and interrupts: one line, and the same command goes on after."""

import signal

import pytest

from tests import faults
from tests.pipeline.project import TRACK, wait_for

pytestmark = pytest.mark.pipeline
small_disks = pytest.mark.skipif(not faults.mounts(), reason="needs the right to mount a small disk")


def refused(project, *command: str, **environment: str) -> str:
    """The one line with which a script gives up."""
    done = project.run(*command, check=False, PYTHONPATH="src", **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@small_disks
def test_a_store_without_room_is_one_line_and_track_goes_on_after(project, tmp_path):
    """Each time the disk is full at another place, or a folder cannot be written. In the end there is one whole run."""
    store = tmp_path / "store"
    store.mkdir()
    database, files = store / "mlflow.db", project.folder / "mlartifacts"
    other = project.at(f"sqlite:///{database}")
    for fault, place, line in (
        (faults.full_disk, store, "; make room"),
        (faults.no_inodes, files, "No space left on device; make room"),
        (faults.read_only, files, "Permission denied; make sure that it"),
        (faults.read_only, database, "make the file and its folder writable"),
        (faults.few_handles, files, "Too many open files; raise the limit with `ulimit -n`"),
    ):
        with fault(place) as start:
            assert line in refused(other, *start, *TRACK)
        assert not list(store.glob("*.partial"))
    other.run(*TRACK, PYTHONPATH="src")
    assert list(other.runs()) == [other.recorded()]
    other.assert_whole(other.recorded())


@small_disks
def test_a_training_without_room_is_one_line_and_trains_again_to_the_same_bits(project):
    """Its checkpoints have no room either, which is a warning."""
    project.params(train={"seed": 31})
    state, outputs = project.folder / ".checkpoints", project.folder / "outputs"
    with faults.full_disk(state), faults.full_disk(outputs):
        done = project.train("outputs").finish()
        assert done.returncode == 1
        *warnings, error = done.stderr.splitlines()
        assert all("no checkpoint (No space left on device); the training goes on" in line for line in warnings)
        assert error.startswith("error: ")
        assert error.endswith("No space left on device; make room, and start again")
    project.train("outputs").ended()
    project.train("again", DVC_ROOT=str(project.folder / "elsewhere")).ended()
    for name in ("vae.safetensors", "train.csv"):
        assert (outputs / name).read_bytes() == (project.folder / "again" / name).read_bytes()


def test_an_interrupt_of_a_training_is_its_last_line(project, request):
    """Also if its observer waits for a store that does not answer. The observer ends the run by itself."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    project.params(train={"epochs": 100000, "seed": 32})
    with faults.wrong_server("hangs") as uri:
        training = project.train("interrupted", MLFLOW_TRACKING_URI=uri)
        wait_for(project.checkpoints)
        training.process.send_signal(signal.SIGINT)
        done = training.finish()
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.splitlines()[-1].startswith("stopped after epoch ")
    assert done.stderr.splitlines()[-1].endswith(" of 100001; run the same command to go on")
