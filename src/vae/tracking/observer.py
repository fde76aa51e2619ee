"""The process next to a training that writes its epochs to MLflow (`python -m vae.tracking.observer`).
It reads the messages of vae/runtime/live.py from stdin."""

from vae.runtime import command, repository

import base64
import json
import math
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from vae import params
from vae.evaluation import plots
from vae.tracking import sweep
from vae.tracking.address import reason
from vae.tracking.state import curve_point
from vae.tracking.store import SOURCE, Store, Tag, store_lock

DIGITS_BY_EPOCH = "training_samples"  # the key of the pictures
NICENESS = 10
SAMPLING_SECONDS = 5  # between two measurements of the machine


class OpenRun:
    """The MLflow run of a training that is going on. It stays open for the track stage if the training ends well."""

    def __init__(self, path: Path, root: Path, key: str, machine: dict[str, str]) -> None:
        config = params.load(path)
        self.store = Store(root, config.track.experiment)
        name = os.environ.get("DVC_EXP_NAME") or f"train-{key[:7]}"
        self.stored: set[int] = set()  # epochs that the run has already
        unfinished = [run for run in self.store.unfinished(key) if Tag.PENDING not in run.data.tags]
        if unfinished:  # the training was killed, and started again
            self.run_id = unfinished[0].info.run_id
            self.store.update_run(self.run_id, status="RUNNING", name=name)
            self.stored = self.store.epochs(self.run_id)
            if Tag.PRUNED in unfinished[0].data.tags:
                self.store.delete_tag(self.run_id, Tag.PRUNED)
        else:
            tags = {Tag.TRAINING: key, Tag.PLACE: repository.address(root), "mlflow.source.name": SOURCE}
            run = self.store.create_run(self.store.experiment.experiment_id, tags=tags, run_name=name)
            self.run_id = run.info.run_id
        self.store.set_tags(self.run_id, machine)
        leaves = params.leaves(config)
        trained = {name: value for name, value in leaves.items() if name.partition(".")[0] in params.TRAINING}
        self.store.log_params(self.run_id, trained)
        with store_lock(root):
            sweep.join(self.store, self.run_id)
        self.monitor = SystemMetricsMonitor(
            self.run_id, SAMPLING_SECONDS, resume_logging=True, tracking_uri=self.store.uri
        )
        self.watched = config.track.system_metrics

    def watch(self) -> None:
        """Starts MLflow's own monitor of the machine, in a thread with the present priority, if params.yaml says so."""
        if self.watched:
            self.monitor.start()

    def log(self, record: dict[str, Any], seconds: float) -> None:
        """Logs an epoch, unless the run has it."""
        epoch, values = curve_point(record)
        if epoch not in self.stored:
            self.store.log_metrics(self.run_id, [(epoch, values | {"epoch_seconds": seconds})])

    def show(self, epoch: int, digits: bytes) -> None:
        """Logs a grid of digits (N, 784), one grey byte for each pixel. The UI pages through the epochs."""
        if epoch in self.stored:
            return
        images = np.frombuffer(digits, np.uint8).reshape(-1, plots.SIDE**2) / 255
        picture = plots.grid(images, math.isqrt(len(images)))
        self.store.log_image(self.run_id, picture, key=DIGITS_BY_EPOCH, step=epoch, synchronous=True)

    def end(self, outcome: str) -> None:
        """Ends the run of a training that failed or was killed."""
        if outcome != "TRAINED":
            self.store.set_terminated(self.run_id, outcome)
        self.monitor.finish()


def yield_cores() -> None:
    """Gives the training priority. With autogroup scheduling, niceness counts only within a session, so the session of
    this process is lowered as well. It keeps a tenth of a busy core, so that epochs do not come late."""
    os.nice(max(0, NICENESS - os.nice(0)))
    if os.getsid(0) == os.getpid():  # otherwise this is the session of the caller
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))


def observe() -> None:
    """Reads messages until stdin closes, and writes them to the store."""
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    run, opening, outcome = None, None, "KILLED"
    failures: list[str] = []
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the training died while it wrote this line
        with tolerated(failures):
            message = json.loads(line)
            outcome = message.get("outcome", outcome)
            if "key" in message:
                opening = Path(message["params"]), Path(message["root"]), message["key"], message["machine"]
            if opening and not run:  # tried again at each message, until the store answers
                run = OpenRun(*opening)
                yield_cores()  # not earlier: on busy cores, mlflow's import would take minutes
                run.watch()
            match message:
                case {"record": record, "seconds": seconds} if run:
                    run.log(record, seconds)
                case {"epoch": epoch, "digits": digits} if run:
                    run.show(epoch, zlib.decompress(base64.b64decode(digits)))
    if run:
        with tolerated(failures):
            run.end(outcome)


@contextmanager
def tolerated(failures: list[str]) -> Iterator[None]:
    """Swallows any error of the store, and prints the first of several in a row."""
    try:
        yield
        failures.clear()
    except Exception as error:  # noqa: BLE001
        failures.append(reason(error))
        if len(failures) == 1:
            message = f"MLflow: not followed live ({failures[0]}); the track stage will record what is missing"
            print(message, file=sys.stderr)


if __name__ == "__main__":
    command.run(observe)
