"""`make soak`: injects faults into real pipelines, by a seed, and counts what survives.

Writes metrics/faults.json and the table of docs/faults.md. A fault has survived if it was one clear line, and the same
command, given again, ends well: with the same bits as without a fault, and with one whole run. Otherwise it is lost.
"""

from vae.runtime import machine

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests import faults
from tests.pipeline.project import TRACK, Project, Started, command_line
from vae.evaluation import readme

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = {  # the processes that get the signal, by a word in their command line
    "a stage": "pipeline/",
    "dvc": "bin/dvc",
    "the observer": "vae.tracking.observer",
    "all processes": "",
}
COMMANDS = {
    "dvc repro": ("dvc", "repro"),
    "dvc exp run": ("dvc", "exp", "run", "--name", "soak", "--force"),
    "dvc exp run --temp": ("dvc", "exp", "run", "--temp", "--name", "soak", "--force"),
}
MADE = (".dvc/cache", ".checkpoints", "models", "metrics", "plots", "samples", "data", "mlartifacts")
FILES = ("dvc.lock", "mlflow.db")
KILLS = 4  # of a command, before it may end
ORPHAN_SECONDS = 300  # for the processes of a killed command
SHORT = {"STORE_PATIENCE": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
READ = (  # by `track`
    "models/vae.safetensors",
    "metrics/train.csv",
    "metrics/validation.json",
    "metrics/evaluation.json",
    "plots/traversals.png",
    "samples/grid.png",
    "samples/samples.safetensors",
)


class Lost(Exception):
    """Something did not survive."""


def require(truth: object, what: str) -> None:
    """Raises Lost unless this is true."""
    if not truth:
        raise Lost(what)


class Soak:
    """Faults in one project, which has the results of one `dvc repro`, and their counts by kind."""

    def __init__(self, project: Project, seed: int) -> None:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a shell's background job, and its children, ignore it
        self.project, self.random = project, Random(seed)
        self.hashes, self.first = project.hashes(), project.recorded()
        self.model = project.client.get_run(self.first).data.tags["vae.model_sha256"]
        self.counts: dict[str, dict[str, int]] = {}
        self.losses: list[str] = []

    def count(self, kind: str) -> None:
        """Counts a fault of the present round."""
        self.counts.setdefault(kind, {"injected": 0, "survived": 0, "lost": 0})["injected"] += 1

    def round(self, inject: Callable[[], None]) -> None:
        """Some faults, which survive together or are lost together."""
        self.project.restore()
        before = {kind: count["injected"] for kind, count in self.counts.items()}
        outcome = "survived"
        try:
            inject()
        except (Lost, AssertionError) as error:
            outcome = "lost"
            self.losses.append(f"{inject.__name__}: {' '.join(str(error).split())[:1000]}")
            print(f"LOST: {self.losses[-1]}", file=sys.stderr, flush=True)
        for kind, count in self.counts.items():
            count[outcome] += count["injected"] - before.get(kind, 0)

    # Kills.

    def kills(self, name: str = "") -> None:
        """Starts a pipeline that has no results, kills it at random moments, and lets it end in the end."""
        project, name = self.project, name or self.random.choice([*COMMANDS])
        for place in MADE:
            shutil.rmtree(project.folder / place, ignore_errors=True)
        for file in FILES:
            (project.folder / file).unlink(missing_ok=True)
        project.commit()
        for _ in range(self.random.randint(1, KILLS)):
            running = project.start(*COMMANDS[name])
            if not self.killed(running, name):
                break
        done = project.start(*COMMANDS[name]).finish()
        require(done.returncode == 0, f"{name}: {done.stderr}")
        runs = project.runs()
        require([run.info.status for run in runs.values()] == ["FINISHED"], f"{name}: {runs}")
        (run_id,) = runs
        if name != "dvc exp run --temp":
            require(project.hashes() == self.hashes, f"{name}: other bits")
            project.assert_whole(run_id)
        require(runs[run_id].data.tags["vae.model_sha256"] == self.model, f"{name}: another model")

    def killed(self, running: Started, name: str) -> bool:
        """Sends a signal, or two at a time, at a random moment. False if the command had ended before."""
        until = time.monotonic() + self.random.uniform(0, self.project.first_repro_seconds)
        while time.monotonic() < until:
            if running.process.poll() is not None:
                return False
            time.sleep(0.05)
        hit = []
        for target in self.random.sample([*TARGETS], self.random.choice((1, 1, 1, 2))):
            chosen = [item for item in self.project.processes() if TARGETS[target] in command_line(item)]
            if target == "the observer" and "train.py" not in " ".join(map(command_line, self.project.processes())):
                chosen = []
            if chosen:
                number = self.random.choice(SIGNALS)
                hit.append(f"{name}: {target}")
                for process in chosen:
                    with suppress(psutil.Error):
                        process.send_signal(number)
        running.finish()
        psutil.wait_procs(self.project.processes(), timeout=ORPHAN_SECONDS)
        self.project.stop()
        if hit and self.random.random() < 0.3:
            self.lose_power()
        for kind in hit:
            self.count(f"killed: {kind}")
        return True

    def lose_power(self) -> None:
        """Cuts the files that nobody had asked the disk to keep: results and notes, while a stage wrote them."""
        unsafe = [path for path in self.project.folder.glob("*/*") if path.parent.name in MADE[2:6]]
        unsafe += [*self.project.folder.glob(".checkpoints/*.partial")]
        for path in unsafe:
            if path.is_file() and path.stat().st_size:
                os.truncate(path, self.random.randrange(path.stat().st_size))
        self.count("power lost: unsafe files are cut")

    # Faults around `track`.

    def line(self, *command: str, **environment: str) -> str:
        """The one line with which a script gives up."""
        done = self.project.run(*command, check=False, PYTHONPATH="src", **environment)
        require(
            done.returncode == 1 and done.stderr.startswith("error: "), f"{command}: {done.returncode} {done.stderr}"
        )
        require(done.stderr.count("\n") == 1, f"{command}: {done.stderr}")
        return done.stderr

    def recorded(self, store: Project) -> None:
        """The same command records the state in this store, as one whole run."""
        done = store.run(*TRACK, check=False, PYTHONPATH="src")
        require(done.returncode == 0, done.stderr)
        require([*store.runs()] == [store.recorded()], "other runs")
        store.assert_whole(store.recorded())

    def stores(self, answers: tuple[str, ...] = ()) -> None:
        """A server that answers wrongly, then a store that is locked for a while."""
        for answer in answers or self.random.sample(faults.ANSWERS, 3):
            with faults.wrong_server(answer) as uri:
                require("MLflow store" in self.line(*TRACK, MLFLOW_TRACKING_URI=uri, **SHORT), answer)
            self.count(f"store: a server, {answer}")
        with tempfile.TemporaryDirectory() as folder:
            database = shutil.copy(self.project.folder / "mlflow.db", folder)
            with faults.locked(Path(database), self.random.choice((1, 5, 25))):
                self.recorded(self.project.at(f"sqlite:///{database}"))
        self.count("store: locked for up to 25 s")

    def files(self) -> None:
        """Files that `track` reads are damaged, one after the other, then whole again."""
        runs = self.project.runs().keys()
        for name in self.random.sample(READ, 3):
            path, kind = self.project.folder / name, self.random.choice([*faults.DAMAGE, "missing", "folder"])
            whole = path.read_bytes()
            faults.damage(path, kind, self.random)
            changed_figure = kind == "bit" and path.suffix not in (".png",)  # DVC finds it, `track` need not
            if changed_figure:
                done = self.project.dvc("repro", check=False)
                require(done.returncode == 0 and self.project.hashes() == self.hashes, f"{name}: {done.stderr}")
            else:
                require(path.name in self.line(*TRACK), f"{name}: not named")
                if path.is_dir():
                    path.rmdir()
                path.write_bytes(whole)
            self.count(f"file: {kind}")
        self.recorded(self.project)
        require(self.project.runs().keys() == runs, "another run")

    def checkpoints(self) -> None:
        """The checkpoint of a killed training is damaged. It starts again, to the same bits."""
        project = self.project
        with project.after_one_epoch(lambda: project.train("out", DVC_ROOT=str(project.folder))) as training:
            training.process.kill()
            training.finish()
        (path,) = project.checkpoints()
        faults.damage(path, kind := self.random.choice([*faults.DAMAGE, "missing"]), self.random)
        project.train("out").ended()
        model = (project.folder / "out/vae.safetensors").read_bytes()
        require(model == (project.folder / "models/vae.safetensors").read_bytes(), f"checkpoint: {kind}")
        self.count(f"checkpoint: {kind}")

    def disks(self) -> None:
        """A disk without room, or folders that cannot be written, around a new store."""
        with tempfile.TemporaryDirectory(dir=self.project.home) as folder:
            store, artifacts = Path(folder) / "store", self.project.folder / "mlartifacts"
            store.mkdir()
            other = self.project.at(f"sqlite:///{store / 'mlflow.db'}")
            places = [
                (faults.full_disk, store),
                (faults.full_disk, artifacts),
                (faults.no_inodes, artifacts),
                (faults.read_only, artifacts),
                (faults.read_only, self.project.folder / ".checkpoints"),
                (faults.few_handles, store),
            ]
            for fault, place in self.random.sample(places, 3):
                with fault(place) as start:
                    self.line(*start, *TRACK, MLFLOW_TRACKING_URI=other.uri)
                self.count(f"disk: {fault.__name__.replace('_', ' ')}")
            self.recorded(other)

    @property
    def rounds(self) -> tuple[Callable[[], None], ...]:
        """All kinds of rounds, as often as they are worth it."""
        disks = (self.disks,) if faults.mounts() else ()
        return self.files, self.kills, self.stores, self.kills, self.checkpoints, self.kills, *disks

    def report(self) -> dict[str, Any]:
        """What is written to metrics/faults.json."""
        columns = ("injected", "survived", "lost")
        total = {name: sum(count[name] for count in self.counts.values()) for name in columns}
        return {"total": total, "kinds": dict(sorted(self.counts.items())), "losses": self.losses}


def table(found: dict[str, Any]) -> str:
    """The table of docs/faults.md."""
    rows = [*found["kinds"].items(), ("all", found["total"])]
    lines = [{"fault": kind} | {name: str(count[name]) for name in count} for kind, count in rows]
    return readme.markdown(lines, ("fault", "injected", "survived", "lost"))


def main(seed: int, minutes: float, result: Path, page: Path, kinds: str = "") -> None:
    """Injects faults for so many minutes, in a project of its own: of all kinds, or of those with these names."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.make()
        project.dvc("repro")
        project.first_repro_seconds = time.monotonic() - started
        project.commit()
        project.keep()
        os.environ["DVC_ROOT"] = str(project.folder)  # so that this process queues for the same cores
        soak, number, began = Soak(project, seed), 0, time.monotonic()
        rounds = [item for item in soak.rounds if not kinds or item.__name__ in kinds.split(",")]
        while time.monotonic() < began + 60 * minutes:
            soak.round(rounds[number % len(rounds)])
            number += 1
            print(f"{(time.monotonic() - began) / 60:.1f} min: {soak.report()['total']}", flush=True)
        project.stop()
    spent = {
        "seed": seed,
        "asked": kinds or "all",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rounds": number,
    }
    found = spent | {"machine": machine.describe(1, "cpu")} | soak.report()
    result.write_text(json.dumps(found, indent=2) + "\n")
    page.write_text(readme.insert(page.read_text(), table(found), "faults"))
    sys.exit(1 if soak.losses else 0)


if __name__ == "__main__":
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"  # because the database file is replaced
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
