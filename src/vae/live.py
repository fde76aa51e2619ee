"""Streams a training to MLflow while it runs, from a process beside it that can fail, stall or die without harm."""

import base64
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae import command

if TYPE_CHECKING:  # not at run time: this module is there before torch is
    from vae.training import Record

GRACE_SECONDS = 15  # that an ended training waits for its last records to be stored
POLL_SECONDS = 0.1
BUSY = 8  # times as long, while the observer has no core: on a busy machine its low priority leaves it few


class Run:
    """The sending side. Nothing here raises, or waits before the end: what a stalled store does not take stays here."""

    def __init__(self, observer: subprocess.Popen[bytes]) -> None:
        assert observer.stdin
        self.observer = observer
        self.pipe = observer.stdin.fileno()
        self.unsent = bytearray()
        self.outcome = "FAILED"
        os.set_blocking(self.pipe, False)

    def _send(self, message: dict[str, Any]) -> None:
        self.unsent += json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # the pipe is full, or the observer has gone
            while self.unsent:
                del self.unsent[: os.write(self.pipe, self.unsent)]

    def open(self, params: Path, root: Path, key: str) -> None:
        """Names the training that is followed."""
        self._send({"params": str(params), "root": str(root), "key": key})

    def log(self, record: "Record", seconds: float) -> None:
        """One epoch, and the time it took."""
        self._send({"record": asdict(record), "seconds": seconds})

    def show(self, epoch: int, digits: bytes) -> None:
        """Digits that the model draws after this epoch: a byte of grey for each of their 784 pixels."""
        self._send({"epoch": epoch, "digits": base64.b64encode(zlib.compress(digits)).decode()})

    def trained(self) -> None:
        """The training has ended well; the track stage will complete its run."""
        self.outcome = "TRAINED"

    def close(self, outcome: str) -> None:
        self._send({"outcome": outcome})
        assert self.observer.stdin
        left: float = GRACE_SECONDS
        while self.observer.poll() is None and left > 0:
            self._flush()
            if not self.unsent:
                self.observer.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.observer.wait(POLL_SECONDS)
            left -= POLL_SECONDS / BUSY if self._computes() else POLL_SECONDS
        self.observer.stdin.close()
        self.observer.kill()  # where it is still there the store does not answer; its run is left to the track stage

    def _computes(self) -> bool:
        """Whether the observer runs or would if it had a core, and does not wait for the store."""
        import psutil  # here: most observers have ended before anyone asks

        with suppress(psutil.Error):
            return bool(psutil.Process(self.observer.pid).status() == psutil.STATUS_RUNNING)
        return False


def start() -> subprocess.Popen[bytes]:
    """Starts the observer process, which imports mlflow while this one imports torch.

    It gets a session of its own: the signal that stops the training must not stop who reports it.
    """
    return subprocess.Popen([sys.executable, "-m", "vae.live"], stdin=subprocess.PIPE, start_new_session=True)


@contextmanager
def follow(observer: subprocess.Popen[bytes], params: Path, root: Path, key: str, own: bool) -> Iterator[Run]:
    """Has the observer open the MLflow run of the training `key`, and end it as the block ends.

    A training that was killed and started again goes on in its run. Where another process is at the same training
    (`own` is false) its run stands for both, and the observer has nothing to do.
    An error ends the run as FAILED, a signal as KILLED; where this process dies without a word, the observer finds
    its pipe closed and ends the run as KILLED.
    """
    run = Run(observer)
    if own:
        run.open(params, root, key)
    outcome = "FAILED"
    try:
        yield run
        outcome = run.outcome
    except (SystemExit, KeyboardInterrupt):
        outcome = "KILLED"
        raise
    finally:
        run.close(outcome)


def observe() -> None:
    """The observing side: reads records from stdin until it closes, and writes them to the store."""
    os.nice(19)  # the training has the cores first; where the kernel weighs sessions, this is one and says so too
    if os.getsid(0) == os.getpid():  # else it would be said of whoever started this
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from vae import tracking  # here, because the sending side must not wait for mlflow's import

    live, opening, outcome = None, None, "KILLED"
    failures: list[str] = []
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the training died in the midst of it
        with told(failures):
            message = json.loads(line)
            outcome = message.get("outcome", outcome)
            if "key" in message:
                opening = Path(message["params"]), Path(message["root"]), message["key"]
            if opening and not live:  # at each message again, until the store takes it
                live = tracking.LiveRun(*opening)
            match message:
                case {"record": record, "seconds": seconds} if live:
                    live.log(record, seconds)
                case {"epoch": epoch, "digits": digits} if live:
                    live.show(epoch, zlib.decompress(base64.b64decode(digits)))
    if live:
        with told(failures):
            live.end(outcome)


@contextmanager
def told(failures: list[str]) -> Iterator[None]:
    """Whatever is wrong with the store, the training goes on, and so does who follows it. The first of `failures` in a
    row is said."""
    try:
        yield
        failures.clear()
    except Exception as error:  # noqa: BLE001
        failures.append(" ".join(str(error).split())[:300])
        if len(failures) == 1:
            message = f"MLflow: not followed live ({failures[0]}); the track stage will record what is missing"
            print(message, file=sys.stderr)


if __name__ == "__main__":
    command.run(observe)
