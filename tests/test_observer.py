"""The process that writes the epochs of a training to MLflow."""

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

OPEN, TRAINED = {"params": "p", "root": "r", "key": "k"}, {"outcome": "TRAINED"}
OBSERVE = """
from vae.tracking import observer
class OpenRun:
    def __init__(self, *arguments): print("open", *arguments)
    def log(self, record, seconds): print("log", record["epoch"], seconds)
    def show(self, epoch, digits): print("show", epoch, list(digits))
    def end(self, outcome): print("end", outcome)
observer.OpenRun = OpenRun
observer.observe()
"""


def epoch(seconds: float) -> dict:
    """The message of an epoch."""
    return {"record": {"epoch": 1, "val_neg_elbo_nats": 101.0}, "seconds": seconds}


def picture(digits: bytes) -> dict:
    """The message of a picture after the first epoch."""
    return {"epoch": 1, "digits": base64.b64encode(zlib.compress(digits)).decode()}


def messages(*items: dict) -> bytes:
    """Messages as the training sends them."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def observed(code, sent):
    """Runs an observer on these messages, in a separate session."""
    return subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, check=True, start_new_session=True
    )


@pytest.mark.parametrize(
    ("cut", "end"),
    [(0, "TRAINED"), (1, "KILLED"), (30, "KILLED")],
    ids=["whole", "without the last line's end", "inside the digits"],
)
def test_messages_are_handled_in_order_and_half_a_line_is_ignored(cut, end):
    sent = messages(OPEN, epoch(1.5), picture(bytes([0, 7, 255])), TRAINED)
    done = observed(OBSERVE, sent[: len(sent) - cut])
    shown = ["show 1 [0, 7, 255]"] if cut < 30 else []
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 1.5", *shown, f"end {end}"]
    assert done.stderr == b""


def test_after_a_failure_of_the_store_the_observer_continues():
    """The failure is printed once. All other messages are handled, also the end of the run."""
    sent = messages(OPEN, epoch(1.5), picture(bytes(3)), epoch(2.5), TRAINED)
    failing = OBSERVE.replace('print("show", epoch, list(digits))', 'raise ConnectionError("the store is away")')
    assert failing != OBSERVE
    done = observed(failing, sent)
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 1.5", "log 1 2.5", "end TRAINED"]
    assert done.stderr.decode().count("\n") == 1
    assert "the store is away" in done.stderr.decode()


def test_a_store_that_comes_late_gets_the_epochs_from_then_on():
    """The store was away when the run should have been opened. This is printed once, and tried again."""
    sent = messages(OPEN, epoch(1.5), epoch(2.5), epoch(3.5), TRAINED)
    late = OBSERVE.replace(
        'print("open", *arguments)',
        'OpenRun.tries = getattr(OpenRun, "tries", 0) + 1; assert OpenRun.tries > 2, "away"; print("open", *arguments)',
    )
    done = observed(late, sent)
    assert done.stdout.decode().splitlines() == ["open p r k", "log 1 2.5", "log 1 3.5", "end TRAINED"]
    assert done.stderr.decode().count("away") == 1


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroup scheduling")
@pytest.mark.parametrize("own", [True, False])
def test_an_observer_lowers_only_its_own_session(own):
    """The niceness of a session holds for all its processes, also for the caller's shell."""
    code = f"{OBSERVE}\nimport pathlib; print(pathlib.Path('/proc/self/autogroup').read_text())"
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], stdin=-3, start_new_session={own})"
    )
    done = subprocess.run(
        [sys.executable, "-c", outer], capture_output=True, check=True, start_new_session=True, text=True
    )
    assert done.stdout.split()[-1] == ("19" if own else "0")
