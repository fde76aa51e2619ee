"""The training's side of live tracking: sends each epoch to an observer process, which writes to MLflow.
The observer (vae/tracking/observer.py) can fail, stall or die without harm to the training."""

import base64
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE_SECONDS = 15  # how long an ended training waits until its last records are stored
POLL_SECONDS = 0.1
PATIENCE = 8  # the factor by which an observer without a core gets more time: its low priority leaves it few cores
# The observer gives up on a slow store sooner than `track`, which has these variables too. The user's own come first.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class Feed:
    """The pipe to the observer. No method raises, and only `close` waits: what a stalled observer does not take stays
    in `unsent`."""

    def __init__(self, observer: subprocess.Popen[bytes]) -> None:
        assert observer.stdin
        self.observer = observer
        self.pipe = observer.stdin.fileno()
        self.unsent = bytearray()
        os.set_blocking(self.pipe, False)

    def send(self, message: dict[str, Any]) -> None:
        """Sends one line of JSON."""
        self.unsent += json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # the pipe is full, or the observer has ended
            while self.unsent:
                del self.unsent[: os.write(self.pipe, self.unsent)]

    def log(self, record: dict[str, Any], seconds: float) -> None:
        """Sends one epoch: a row of metrics/train.csv, and the time that it took."""
        self.send({"record": record, "seconds": seconds})

    def show(self, epoch: int, digits: bytes) -> None:
        """Sends digits that the model draws after this epoch: one grey byte for each of their 784 pixels."""
        self.send({"epoch": epoch, "digits": base64.b64encode(zlib.compress(digits)).decode()})

    def close(self, outcome: str) -> None:
        """Sends how the training ended, and waits a bounded time until the observer has stored everything."""
        self.send({"outcome": outcome})
        assert self.observer.stdin
        left: float = GRACE_SECONDS
        while self.observer.poll() is None and left > 0:
            self._flush()
            if not self.unsent:
                self.observer.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.observer.wait(POLL_SECONDS)
            left -= POLL_SECONDS / PATIENCE if self._is_busy() else POLL_SECONDS
        self.observer.stdin.close()
        self.observer.kill()  # the store does not answer; the run is left to the track stage

    def _is_busy(self) -> bool:
        """Whether the observer is running, or waiting for a core, rather than blocked on the store."""
        import psutil  # imported here, because most observers end before this is asked

        with suppress(psutil.Error):
            return bool(psutil.Process(self.observer.pid).status() == psutil.STATUS_RUNNING)
        return False


def start() -> subprocess.Popen[bytes]:
    """Starts the observer process, which imports mlflow while this one imports torch.
    It gets a session of its own, so that a signal which stops the training does not stop the observer."""
    command = [sys.executable, "-m", "vae.tracking.observer"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=TIMEOUTS | os.environ)


@contextmanager
def follow(
    observer: subprocess.Popen[bytes], params: Path, root: Path, key: str, own: bool, machine: dict[str, str]
) -> Iterator[Feed]:
    """Has the observer open the MLflow run of the training `key`, and end it when the block ends.
    A training that was killed and started again continues its run. If another process runs the same training (`own` is
    False), that process's run stands for both, and the observer here does nothing.
    An error ends the run as FAILED, a signal as KILLED. If this process is killed, the observer finds its pipe closed
    and ends the run as KILLED."""
    feed = Feed(observer)
    if own:
        feed.send({"params": str(params), "root": str(root), "key": key, "machine": machine})
    outcome = "FAILED"
    try:
        yield feed
        outcome = "TRAINED"  # the track stage will complete the run
    except (SystemExit, KeyboardInterrupt):
        outcome = "KILLED"
        raise
    finally:
        feed.close(outcome)
