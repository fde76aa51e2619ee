"""The process that writes the epochs of a training to MLflow. Whole trainings: tests/pipeline."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from vae.params import TRAINING
from vae.tracking import observer
from vae.tracking.observer import OpenRun
from vae.tracking.store import Store, Tag

MACHINE = "{'machine.cpu': 'x'}"  # as text
OPEN, TRAINED = {"params": "p", "root": "r", "key": "k", "machine": {"machine.cpu": "x"}}, {"outcome": "TRAINED"}
OPENED = ("open", "p", "r", "k", MACHINE)
ROW = {"epoch": 1, "val_neg_elbo_nats": 100.0, "lr": 0.1}


def epoch(seconds: float) -> dict:
    """The message of an epoch."""
    return {"record": {"epoch": 1, "val_neg_elbo_nats": 101.0}, "seconds": seconds}


def picture(digits: bytes) -> dict:
    """The message of a picture after the first epoch."""
    return {"epoch": 1, "digits": base64.b64encode(zlib.compress(digits)).decode()}


def messages(*items: dict) -> str:
    """Messages as the training sends them."""
    return "".join(json.dumps(item) + "\n" for item in items)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the run that an observer has opened. The observer runs in this process, at its priority."""
    done = []

    class FakeRun:
        def __init__(self, *arguments) -> None:
            done.append(("open", *map(str, arguments)))

        def watch(self) -> None:
            assert done[-1][0] == "yield"  # the monitor runs at the lower priority too

        def log(self, record, seconds) -> None:
            done.append(("log", record["epoch"], seconds))

        def show(self, epoch, digits) -> None:
            done.append(("show", epoch, list(digits)))

        def end(self, outcome) -> None:
            done.append(("end", outcome))

    monkeypatch.setattr(observer, "OpenRun", FakeRun)
    monkeypatch.setattr(observer, "yield_cores", lambda: done.append(("yield",)))
    monkeypatch.setattr(observer.signal, "signal", lambda name, action: done.append((name, action)))
    return done


def observe(monkeypatch, calls: list, sent: str) -> list:
    """Runs an observer on these messages, and returns the calls that it made for them."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(sent))
    observer.observe()
    signals, done = calls[:2], calls[2:]
    assert done.count(("yield",)) == done.count(OPENED)  # only then: on busy cores, the import would take minutes
    done = [call for call in done if call != ("yield",)]
    assert signals == [(signal.SIGINT, signal.SIG_IGN), (signal.SIGHUP, signal.SIG_IGN)]
    return done


@pytest.mark.parametrize(
    ("cut", "end"),
    [(0, "TRAINED"), (1, "KILLED"), (30, "KILLED")],
    ids=["whole", "without the last line's end", "inside the digits"],
)
def test_messages_are_handled_in_order_and_half_a_line_is_ignored(monkeypatch, capsys, calls, cut, end):
    sent = messages(OPEN, epoch(1.5), picture(bytes([0, 7, 255])), TRAINED)
    done = observe(monkeypatch, calls, sent[: len(sent) - cut])
    shown = [("show", 1, [0, 7, 255])] if cut < 30 else []
    assert done == [OPENED, ("log", 1, 1.5), *shown, ("end", end)]
    assert capsys.readouterr().err == ""


def test_after_a_failure_of_the_store_the_observer_continues(monkeypatch, capsys, calls):
    """The failure is printed once. All other messages are handled, also the end of the run."""

    def show(*_) -> None:
        raise ConnectionError("the store\nis away")

    monkeypatch.setattr(observer.OpenRun, "show", show)
    sent = messages(OPEN, epoch(1.5), picture(bytes(3)), picture(bytes(3)), epoch(2.5), TRAINED)
    done = observe(monkeypatch, calls, sent)
    assert done == [OPENED, ("log", 1, 1.5), ("log", 1, 2.5), ("end", "TRAINED")]
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "the store is away" in written


def test_a_store_that_comes_late_gets_the_epochs_from_then_on(monkeypatch, capsys, calls):
    """The store was away when the run should have been opened. This is printed once, and tried again."""
    start, tries = observer.OpenRun.__init__, []

    def late(self, *arguments) -> None:
        tries.append(arguments)
        if len(tries) <= 2:
            raise ConnectionError("away")
        start(self, *arguments)

    monkeypatch.setattr(observer.OpenRun, "__init__", late)
    done = observe(monkeypatch, calls, messages(OPEN, epoch(1.5), epoch(2.5), epoch(3.5), TRAINED))
    assert done == [OPENED, ("log", 1, 2.5), ("log", 1, 3.5), ("end", "TRAINED")]
    assert capsys.readouterr().err.count("away") == 1


def test_an_observer_of_the_second_process_does_nothing(monkeypatch, capsys, calls):
    """Two processes run the same training. The second one does not name its training."""
    assert observe(monkeypatch, calls, messages(epoch(1.5), picture(bytes(3)), TRAINED)) == []
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroup scheduling")
@pytest.mark.parametrize("own", [True, False])
def test_an_observer_lowers_only_its_own_session(own):
    """The niceness of a session holds for all its processes, also for the caller's shell."""
    code = (
        "from vae.tracking import observer; observer.yield_cores()\n"
        "import pathlib; print(pathlib.Path('/proc/self/autogroup').read_text())"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], start_new_session={own})"
    done = subprocess.run(
        [sys.executable, "-c", outer], capture_output=True, check=True, start_new_session=True, text=True
    )
    assert done.stdout.split()[-1] == ("10" if own else "0")


def test_an_observer_is_nice_also_if_its_caller_is_nicer():
    code = "import os; os.nice({}); from vae.tracking import observer; observer.yield_cores(); print(os.nice(0))"
    for more in (0, 15):
        command = [sys.executable, "-c", code.format(more)]
        done = subprocess.run(command, capture_output=True, check=True, start_new_session=True, text=True)
        assert int(done.stdout) == max(10, min(os.nice(0) + more, 19))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A folder with a store. Its schema is made once, because that takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def store(database, monkeypatch, root):
    """The store of the observer, without the runs of other tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database / 'mlflow.db'}")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    found = Store(database, observer.params.load(root / "params.yaml").track.experiment)
    for run in found.find():
        found.delete_run(run.info.run_id)
    return found


@pytest.fixture
def start(store, root):
    """Opens the run of a training."""
    return lambda key="k": OpenRun(root / "params.yaml", store.root, key, {"machine.cpu": "x"})


def test_a_training_that_starts_again_logs_no_epoch_twice(store, start):
    """It may resume from a checkpoint, or start again from the beginning."""
    first = start("twice")
    first.log(ROW, 1.0)
    again = start("twice")
    again.log(ROW, 2.0)
    again.log(ROW | {"epoch": 2}, 2.0)
    assert again.run_id == first.run_id
    for name in ("val_neg_elbo_nats", "epoch_seconds"):
        history = store.get_metric_history(first.run_id, name)
        assert [point.step for point in history] == [1, 2]


def test_another_training_has_another_run(start):
    assert start("one").run_id != start("two").run_id


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_a_run_that_ended_early_is_open_again(store, start, monkeypatch, status):
    run_id = start().run_id
    if status != "RUNNING":
        store.set_terminated(run_id, status)
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    assert start().run_id == run_id
    run = store.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("RUNNING", "mine")


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_of_a_state_is_never_continued_by_a_training(store, start, whole):
    """Such a run is whole, or `track` was cut short and will continue it."""
    run_id = start().run_id
    if whole:
        store.set_terminated(run_id, "FINISHED")
    else:
        store.set_tag(run_id, Tag.PENDING, "key")
    assert start().run_id != run_id


def test_a_new_run_has_the_parameters_of_its_training(store, start):
    """It is named after the training, and has no parameter that does not decide which model is trained."""
    run = store.get_run(start("0123456789").run_id)
    assert run.info.run_name == "train-0123456"
    assert run.data.tags[Tag.TRAINING] == "0123456789"
    assert {name.partition(".")[0] for name in run.data.params} == set(TRAINING)


def test_a_pruned_training_that_goes_on_is_not_pruned_any_more(store, start):
    run_id = start().run_id
    store.set_terminated(run_id, "KILLED")
    store.set_tag(run_id, Tag.PRUNED, "epoch 1")
    start()
    assert Tag.PRUNED not in store.get_run(run_id).data.tags


def test_an_open_run_of_a_sweep_is_a_child_of_its_parent(store, start, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "wide-1")
    assert store.get_run(start().run_id).data.tags[Tag.GROUPS] == "wide"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_machine_is_followed_if_params_yaml_says_so(store, start, monkeypatch, wanted):
    """By MLflow's own monitor, which a training that starts again continues."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    for _ in range(2):
        run = start()
        run.watched = wanted
        run.watch()
        before = len(steps(store, run.run_id))
        while wanted and len(steps(store, run.run_id)) < before + 2:
            assert run.monitor._process.is_alive()
        run.end("TRAINED")
        assert run.monitor._process is None
    found = steps(store, run.run_id)
    assert found == list(range(len(found)))
    names = {name for name in store.get_run(run.run_id).data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= names or not wanted
    assert bool(names) == wanted


def steps(store: Store, run_id: str) -> list[int]:
    """The steps at which the load of the CPU was logged."""
    return [point.step for point in store.get_metric_history(run_id, "system/cpu_utilization_percentage")]


def test_a_picture_is_logged_once(store, start):
    run = start()
    run.show(1, bytes(4 * 784))
    run.log(ROW, 1.0)
    assert len(store.list_artifacts(run.run_id, "images")) > 0
    again = start()
    again.store.log_image = None  # a call would raise an error
    again.show(1, bytes(4 * 784))


@pytest.mark.parametrize(("outcome", "status"), [("TRAINED", "RUNNING"), ("FAILED", "FAILED"), ("KILLED", "KILLED")])
def test_the_run_of_a_training_that_ended_well_waits_for_the_track_stage(store, start, outcome, status):
    run = start()
    run.end(outcome)
    assert store.get_run(run.run_id).info.status == status
