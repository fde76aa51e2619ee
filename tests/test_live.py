"""The training's side of live tracking never raises, and waits only at the end, whatever the observer does."""

from vae.runtime import live

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANG_SECONDS = 300  # far longer than any of these tests takes on a slow machine
FOREVER = "import time; time.sleep(3000)"  # the code of an observer that only a signal ends
RECORD = {"epoch": 1, "val_neg_elbo_nats": 101.0, "lr": 0.001}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """An observer on a slow machine has time to read everything."""
    monkeypatch.setattr(live, "GRACE_SECONDS", HANG_SECONDS)


STARTED: list[subprocess.Popen[bytes]] = []


def observer(code):
    """A process that runs this code in the place of the observer."""
    STARTED.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def nothing_stays():
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def recorder(folder):
    """An observer that writes its messages to a file, for `received`."""
    return observer(f"import sys; open({str(folder / 'got')!r}, 'w').write(sys.stdin.read())")


def received(folder):
    """The messages that a `recorder` has got."""
    return [json.loads(line) for line in (folder / "got").read_text().splitlines()]


def test_messages_arrive_in_order_with_the_outcome(tmp_path):
    process = recorder(tmp_path)
    with live.follow(process, Path("params.yaml"), Path("root"), "key", own=True, machine={"machine.cpu": "x"}) as feed:
        feed.log(RECORD, 1.5)
    got = received(tmp_path)
    expected = {"params": "params.yaml", "root": "root", "key": "key", "machine": {"machine.cpu": "x"}}
    assert got[0] == expected
    assert got[1]["record"]["val_neg_elbo_nats"] == 101.0
    assert got[2] == {"outcome": "TRAINED"}


def test_more_than_the_pipe_can_hold_arrives_whole_when_the_observer_reads(tmp_path):
    gate, got = tmp_path / "gate", tmp_path / "got"
    process = observer(
        f"import os, sys, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        f"open({str(got)!r}, 'w').write(sys.stdin.read())"
    )
    with live.follow(process, Path("p"), Path("r"), "k", own=True, machine={"machine.cpu": "x"}) as feed:
        for epoch in range(5):
            feed.show(epoch, os.urandom(100_000))  # no compression makes it small
            feed.log(RECORD, 1.5)
        gate.touch()  # the training got here while the observer read nothing
    got = received(tmp_path)
    assert [next(iter(message)) for message in got] == ["params", *["epoch", "record"] * 5, "outcome"]
    assert all(len(message["digits"]) > 100_000 for message in got[1:-1:2])


@pytest.mark.parametrize(
    ("error", "outcome"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_error_or_a_signal_is_the_outcome_and_is_raised_again(tmp_path, error, outcome):
    process = recorder(tmp_path)
    with pytest.raises(error), live.follow(process, Path("p"), Path("r"), "k", own=True, machine={"machine.cpu": "x"}):
        raise error
    assert received(tmp_path)[-1] == {"outcome": outcome}


def test_an_observer_that_died_is_not_noticed():
    process = observer("")
    process.wait()
    with live.follow(process, Path("p"), Path("r"), "k", own=True, machine={"machine.cpu": "x"}) as feed:
        feed.log(RECORD, 1.0)


def test_an_observer_that_does_not_read_costs_nothing_until_the_end(monkeypatch):
    """The end waits a short time, and then kills the observer."""
    monkeypatch.setattr(live, "GRACE_SECONDS", 0.1)
    process = observer(FOREVER)
    with live.follow(process, Path("p"), Path("r"), "k", own=True, machine={"machine.cpu": "x"}) as feed:
        for _ in range(20_000):  # far more than the pipe can hold
            feed.log(RECORD, 1.0)
        assert process.poll() is None
    assert process.wait(HANG_SECONDS) == -signal.SIGKILL


class SlowObserver:
    """An observer without a process. It ends after a number of calls of `wait`."""

    def __init__(self, pipe, polls: float) -> None:
        self.stdin, self.left, self.waits, self.killed = pipe, polls, 0, False

    def poll(self) -> int | None:
        return None if self.left > 0 else 0

    def wait(self, timeout: float) -> None:
        self.waits += 1
        self.left -= 1
        raise subprocess.TimeoutExpired("observer", timeout)

    def kill(self) -> None:
        self.killed = self.poll() is None


@pytest.mark.parametrize(
    ("busy", "polls", "killed"),
    [(True, 30, False), (True, math.inf, True), (False, 5, False), (False, 30, True)],
)
def test_an_observer_that_lacks_a_core_gets_more_time(tmp_path, monkeypatch, busy, polls, killed):
    """But not forever. An observer that waits for a store is killed much earlier."""
    monkeypatch.setattr(live, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(live, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(live, "PATIENCE", 8)
    monkeypatch.setattr(live.Feed, "_is_busy", lambda _: busy)
    with (tmp_path / "pipe").open("wb") as pipe:
        process = SlowObserver(pipe, polls)
        with live.follow(process, Path("p"), Path("r"), "k", own=True, machine={"machine.cpu": "x"}):
            pass
    assert process.killed == killed
    if killed:
        assert process.waits == pytest.approx(80 if busy else 10, abs=1)


@pytest.mark.parametrize(("code", "busy"), [("while True: pass", True), (FOREVER, False)])
def test_an_observer_is_busy_if_it_computes(code, busy):
    """An observer that waits or has ended is not busy."""
    process = observer(code)
    feed = live.Feed(process)
    deadline = time.monotonic() + HANG_SECONDS
    while feed._is_busy() != busy:  # Python is starting
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait(HANG_SECONDS)
    assert not feed._is_busy()


def test_a_training_that_another_process_runs_opens_no_run(tmp_path):
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=False, machine={}) as feed:
        feed.log(RECORD, 1.0)
    messages = received(tmp_path)
    assert all("key" not in message for message in messages)
    assert messages[-1] == {"outcome": "TRAINED"}


def test_the_observer_has_short_time_outs_unless_the_user_has_set_them(monkeypatch):
    """It gives up on a slow store sooner than `track`."""
    started = []
    monkeypatch.setattr(live.subprocess, "Popen", lambda *_, **options: started.append(options["env"]))
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    live.start()
    assert started[0]["MLFLOW_HTTP_REQUEST_TIMEOUT"] == live.TIMEOUTS["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    assert started[0]["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
