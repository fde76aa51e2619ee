"""The sending side never raises, and waits at the end alone, whatever the observer does. Real stores: test_pipeline."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae import live
from vae.training import Record

RECORD = Record(1, 100.0, 101.0, 25.0, 75.0, 0.001)


def observer(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)


def recorder(folder):
    """An observer that keeps what it is sent, for `received`."""
    return observer(f"import sys; open({str(folder / 'got')!r}, 'w').write(sys.stdin.read())")


def received(folder):
    return [json.loads(line) for line in (folder / "got").read_text().splitlines()]


def test_messages_arrive_in_order_with_the_outcome(tmp_path):
    process = recorder(tmp_path)
    with live.follow(process, Path("params.yaml"), Path("root"), "key", own=True) as run:
        run.log(RECORD, 1.5)
        run.trained()
    got = received(tmp_path)
    assert got[0] == {"params": "params.yaml", "root": "root", "key": "key"}
    assert got[1]["record"]["val_neg_elbo_nats"] == 101.0
    assert got[2] == {"outcome": "TRAINED"}


def test_more_than_the_pipe_has_room_for_arrives_whole_once_the_observer_reads(tmp_path):
    process = observer(f"import sys, time; time.sleep(1); open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read())")
    started = time.monotonic()
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        for epoch in range(5):
            run.show(epoch, os.urandom(100_000))  # no compression makes it small
            run.log(RECORD, 1.5)
        assert time.monotonic() - started < 0.9  # it did not wait for the observer
        run.trained()
    got = received(tmp_path)
    assert [next(iter(message)) for message in got] == ["params", *["epoch", "record"] * 5, "outcome"]
    assert all(len(message["digits"]) > 100_000 for message in got[1:-1:2])


OBSERVE = """
import sys, types, vae
from vae import live
class LiveRun:
    def __init__(self, *arguments): print("open", *arguments)
    def log(self, record, seconds): print("log", record["epoch"], seconds)
    def show(self, epoch, digits): print("show", epoch, list(digits))
    def end(self, outcome): print("end", outcome)
sys.modules["vae.tracking"] = vae.tracking = types.SimpleNamespace(LiveRun=LiveRun)
live.observe()
"""


def observed(code, sent):
    """What an observer of this code does with what it is sent, in a session of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, check=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("cut", "end"),
    [(0, "TRAINED"), (1, "KILLED"), (30, "KILLED")],
    ids=["whole", "without the last line's end", "in the midst of the digits"],
)
def test_what_was_sent_is_done_in_order_and_half_a_line_is_left(tmp_path, cut, end):
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        run.log(RECORD, 1.5)
        run.show(1, bytes([0, 7, 255]))
        run.trained()
    sent = (tmp_path / "got").read_bytes()
    done = observed(OBSERVE, sent[: len(sent) - cut])
    shown = ["show 1 [0, 7, 255]"] if cut < 30 else []
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 1.5", *shown, f"end {end}"]
    assert done.stderr == b""


def test_a_store_that_fails_for_a_while_is_followed_on(tmp_path):
    """What it did not take is said, and the rest is done, the end of the run too."""
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        run.log(RECORD, 1.5)
        run.show(1, bytes(3))
        run.log(RECORD, 2.5)
        run.trained()
    failing = OBSERVE.replace('print("show", epoch, list(digits))', 'raise ConnectionError("the store is away")')
    assert failing != OBSERVE
    done = observed(failing, (tmp_path / "got").read_bytes())
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 1.5", "log 1 2.5", "end TRAINED"]
    assert done.stderr.decode().count("\n") == 1
    assert "the store is away" in done.stderr.decode()


def test_a_store_that_comes_late_is_followed_from_then_on(tmp_path):
    """It was away when the run should have been opened, which is said once and tried again."""
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        for seconds in (1.5, 2.5, 3.5):
            run.log(RECORD, seconds)
        run.trained()
    late = OBSERVE.replace(
        'print("open", *arguments)',
        'LiveRun.tries = getattr(LiveRun, "tries", 0) + 1; assert LiveRun.tries > 2, "away"; print("open", *arguments)',
    )
    done = observed(late, (tmp_path / "got").read_bytes())
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 2.5", "log 1 3.5", "end TRAINED"]
    assert done.stderr.decode().count("away") == 1


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not weigh sessions")
@pytest.mark.parametrize("own", [True, False])
def test_an_observer_is_nice_for_itself_alone(own):
    """The niceness of a session is that of all in it: of the caller's shell, where the observer has none of its own."""
    code = f"{OBSERVE}\nimport pathlib; print(pathlib.Path('/proc/self/autogroup').read_text())"
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], stdin=-3, start_new_session={own})"
    )
    done = subprocess.run(
        [sys.executable, "-c", outer], capture_output=True, check=True, start_new_session=True, text=True
    )
    assert done.stdout.split()[-1] == ("19" if own else "0")


@pytest.mark.parametrize(
    ("error", "outcome"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_error_or_a_signal_is_the_outcome_and_goes_on(tmp_path, error, outcome):
    process = recorder(tmp_path)
    with pytest.raises(error), live.follow(process, Path("p"), Path("r"), "k", own=True):
        raise error
    assert received(tmp_path)[-1] == {"outcome": outcome}


def test_an_observer_that_died_is_not_noticed():
    process = observer("")
    process.wait()
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        run.log(RECORD, 1.0)
        run.trained()


def test_an_observer_that_does_not_read_costs_nothing_until_the_end(monkeypatch):
    monkeypatch.setattr(live, "GRACE_SECONDS", 0.1)
    process = observer("import time; time.sleep(60)")
    started = time.monotonic()
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        for _ in range(20_000):  # far more than the pipe has room for
            run.log(RECORD, 1.0)
    assert time.monotonic() - started < 30  # of the observer's 60
    assert process.wait(10) != 0  # it was ended


@pytest.mark.parametrize(("seconds", "ends"), [(1, True), (60, False)])
def test_an_observer_that_lacks_a_core_gets_more_time(tmp_path, monkeypatch, seconds, ends):
    """Not for ever. One that waits for a store would be ended at once."""
    monkeypatch.setattr(live, "GRACE_SECONDS", 0.5)
    process = observer(
        f"import time\nwhile time.process_time() < {seconds}: pass\nopen({str(tmp_path / 'done')!r}, 'w').close()"
    )
    started = time.monotonic()
    with live.follow(process, Path("p"), Path("r"), "k", own=True) as run:
        run.trained()
    assert (tmp_path / "done").exists() == ends
    assert time.monotonic() - started < 30
    process.wait(10)


def test_a_training_that_another_process_is_at_opens_no_run(tmp_path):
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=False) as run:
        run.log(RECORD, 1.0)
        run.trained()
    messages = received(tmp_path)
    assert all("key" not in message for message in messages)
    assert messages[-1] == {"outcome": "TRAINED"}
