"""The sending side never raises and never waits, whatever becomes of the observer. Real stores: test_pipeline."""

import json
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
    assert time.monotonic() - started < 5
    assert process.wait(10) != 0  # it was ended


def test_a_training_that_another_process_is_at_opens_no_run(tmp_path):
    process = recorder(tmp_path)
    with live.follow(process, Path("p"), Path("r"), "k", own=False) as run:
        run.log(RECORD, 1.0)
        run.trained()
    messages = received(tmp_path)
    assert all("key" not in message for message in messages)
    assert messages[-1] == {"outcome": "TRAINED"}
