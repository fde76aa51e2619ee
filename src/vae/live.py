"""Streams a training to MLflow while it runs, from a process beside it that can fail, stall or die without harm."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vae.training import Record

GRACE_SECONDS = 15  # that an ended training waits for its last records to be stored
PIPE_BYTES = 1 << 20  # room for some five thousand epochs that a stalled store has not taken


class Run:
    """The sending side. Nothing here raises or waits: a record that finds no room is left to the track stage."""

    def __init__(self, observer: subprocess.Popen[bytes]) -> None:
        assert observer.stdin
        self.observer = observer
        self.pipe = observer.stdin.fileno()
        self.outcome = "FAILED"
        os.set_blocking(self.pipe, False)
        if sys.platform == "linux":
            import fcntl

            fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def _send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # full, or the observer has gone
            os.write(self.pipe, json.dumps(message).encode() + b"\n")  # below 4096 bytes: whole or not at all

    def log(self, record: Record, seconds: float) -> None:
        """One epoch, and the time it took."""
        self._send({"record": asdict(record), "seconds": seconds})

    def trained(self) -> None:
        """The training has ended well; the track stage will complete its run."""
        self.outcome = "TRAINED"

    def close(self, outcome: str) -> None:
        self._send({"outcome": outcome})
        assert self.observer.stdin
        self.observer.stdin.close()
        try:
            self.observer.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.observer.kill()  # the store does not answer; its run is left to the track stage


@contextmanager
def follow(params: Path, root: Path, key: str) -> Iterator[Run]:
    """Opens the MLflow run of the training `key` in an observer process, and ends it as the block ends.

    A training that was killed and started again goes on in its run.
    An error ends the run as FAILED, a signal as KILLED; where this process dies without a word, the observer finds
    its pipe closed and ends the run as KILLED.
    """
    command = [sys.executable, "-m", "vae.live", str(params), str(root), key]
    # A session of its own: the signal that stops the training must not stop who reports it.
    run = Run(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
    outcome = "FAILED"
    try:
        yield run
        outcome = run.outcome
    except (SystemExit, KeyboardInterrupt):
        outcome = "KILLED"
        raise
    finally:
        run.close(outcome)


def observe(params: Path, root: Path, key: str) -> None:
    """The observing side: reads records from stdin until it closes, and writes them to the store."""
    os.nice(19)  # the training has the cores first
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from vae import tracking  # here, because the sending side must not wait for mlflow's import

    try:
        live = tracking.LiveRun(params, root, key)
        outcome = "KILLED"
        for line in sys.stdin:
            match json.loads(line):
                case {"record": record, "seconds": seconds}:
                    live.log(record, seconds)
                case {"outcome": str(word)}:
                    outcome = word
        live.end(outcome)
    except Exception as error:  # noqa: BLE001 (whatever is wrong with the store, the training goes on)
        reason = " ".join(str(error).split())[:300]
        print(f"MLflow: not following live ({reason}); the track stage will record this run", file=sys.stderr)


if __name__ == "__main__":
    observe(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
