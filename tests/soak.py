"""`make soak`: injects faults into real pipelines, by a seed, and counts what survives.

Writes metrics/faults.json and the table of docs/faults.md. A fault has survived if it was one clear line, and the same
command, given again, ends well: with the same bits as without a fault, and with one whole run. It is mended if
`make doctor MEND=1` comes before that command. Otherwise it is lost.
"""

from vae.runtime import machine

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from tests import faults
from tests.pipeline.project import BITWISE, TRACK, Project, command_line, mlflow_server, wait_for
from tools.doctor import LOCK_SECONDS
from vae.evaluation import readme

SIDE_BY_SIDE = 2  # projects, each with a seed of its own; one keeps about one core busy
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NAME = "soak"  # of the experiments
QUEUE = "dvc queue start"
COMMANDS = {
    "dvc repro": ("dvc", "repro"),
    "dvc exp run": ("dvc", "exp", "run", "--name", NAME, "--force"),
    "dvc exp run --temp": ("dvc", "exp", "run", "--temp", "--name", NAME, "--force"),
    QUEUE: ("dvc", "queue", "start"),
}
TARGETS = {  # the processes that get the signal, by a word in their command line
    "a stage": "pipeline/",
    "dvc": "bin/dvc",
    "the observer": "vae.tracking.observer",
    "all processes": "",
}
QUEUE_TARGETS = TARGETS | {"dvc": "exec-run", "a worker": "queue-worker"}
MADE = (".dvc/cache", ".checkpoints", "models", "metrics", "plots", "samples", "data", "mlartifacts")
FILES = ("dvc.lock", "mlflow.db")
KILLS = 8  # of a command, before it may end
ORPHAN_SECONDS = 300  # for the processes of a killed command
LOCKED_SECONDS = (5, 20, 60)
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
BROKEN = (*faults.DAMAGE, "missing")
DIES, LOCKED = "store: a server dies and comes back", f"store: locked for up to {max(LOCKED_SECONDS)} s"
COLUMNS = ("injected", "survived", "mended", "lost")
KINDS = {  # of faults, by the name of their round
    "kills": tuple(
        f"killed: {name}: {target}" for name in COMMANDS for target in (QUEUE_TARGETS if name == QUEUE else TARGETS)
    ),
    "files": tuple(f"file: {kind}" for kind in (*BROKEN, "folder")),
    "checkpoints": tuple(f"checkpoint: {kind}" for kind in BROKEN),
    "servers": tuple(f"store: a server, {answer}" for answer in faults.ANSWERS),
    "deaths": (DIES,),
    "locks": (LOCKED,),
    "disks": tuple(f"disk: {kind}" for kind in ("full disk", "no inodes", "read only", "few handles")),
}


class Lost(Exception):
    """Something did not survive."""


def require(truth: object, what: str) -> None:
    """Raises Lost unless this is true."""
    if not truth:
        raise Lost(what)


class Command:
    """A command that runs the pipeline, and its processes."""

    def __init__(self, project: Project, name: str) -> None:
        self.project, self.command = project, COMMANDS[name]

    def start(self) -> None:
        self.running = self.project.start(*self.command)

    def works(self) -> bool:
        """Whether the command has not ended."""
        return self.running.process.poll() is None

    def settle(self) -> bool:
        """Waits for the end of the command, and of processes that it left. True if it ended well."""
        self.done = self.running.finish()
        psutil.wait_procs(self.project.processes(), timeout=ORPHAN_SECONDS)
        self.project.stop()
        return self.done.returncode == 0

    def said(self) -> str:
        return self.done.stderr


class Queue:
    """A queued experiment and its worker, with the same methods as a command."""

    def __init__(self, project: Project, _name: str) -> None:
        self.project, self.succeeded = project, False

    def start(self) -> None:
        """Queues the experiment, again if it was killed, and starts a worker."""
        if not self.succeeded:
            self.project.dvc("exp", "run", "--queue", "--name", NAME)
            self.project.dvc(*COMMANDS[QUEUE][1:])

    def works(self) -> bool:
        """Whether there are processes, and the experiment has not ended well."""
        return bool(self.project.processes()) and not self.is_made()

    def is_made(self) -> bool:
        """Whether DVC has the experiment. A task that its user ended can be called Success, although it has none."""
        return any(self.project.folder.glob(f".git/refs/exps/*/*/{NAME}"))

    def settle(self) -> bool:
        """Waits until nothing works on the experiment, and then does what a user does. True if it ended well."""
        self.succeeded = wait_for(self.at_rest, 0.5) == "Success"
        return self.succeeded

    def at_rest(self) -> str:
        """Success or Failed, or nothing if the experiment still runs, waits or was given up by its worker."""
        if [item for item in self.project.processes() if QUEUE_TARGETS["a worker"] not in command_line(item)]:
            return ""
        if "Running" in (listed := self.said()):
            if not self.project.processes():
                self.end_task()
                return "Failed"
        elif "Queued" in listed:
            if not self.project.processes():
                self.project.dvc(*COMMANDS[QUEUE][1:])
        else:
            return "Success" if self.is_made() else "Failed" if "Failed" in listed else ""
        return ""

    def end_task(self) -> None:
        """Gives the commands that `make doctor` names for a task whose worker was killed."""
        advice = self.project.script("tools/doctor.py", "params.yaml", "metrics/mlflow.json", check=False)
        commands = re.findall(r"`(dvc queue kill [^`]*|rm -rf [^`]*)`", advice.stdout)
        require(commands, f"doctor names no command: {advice.stdout} {advice.stderr}")
        for command in commands:
            self.project.run(*shlex.split(command))

    def said(self) -> str:
        return self.project.dvc("queue", "status").stdout


def again(attempt: Command | Queue) -> bool:
    """Gives the same command once more. True if it ended well."""
    with suppress(AssertionError):  # of a command that queues
        attempt.start()
        return attempt.settle()
    return False


class Soak:
    """Faults in one project, which has the results of one `dvc repro`, and their counts by kind."""

    def __init__(self, project: Project, seed: int) -> None:
        # A shell's background job, and its children, ignore this signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.project, self.random, self.hashes = project, Random(seed), project.hashes()
        self.counts: dict[str, dict[str, int]] = {}
        self.outcome = "survived"  # of the present round
        self.losses: list[str] = []

    def count(self, kind: str) -> None:
        """Counts a fault of the present round."""
        self.counts.setdefault(kind, dict.fromkeys(COLUMNS, 0))["injected"] += 1

    def injected(self, kind: str) -> int:
        """How often this kind of fault was injected."""
        return self.counts[kind]["injected"] if kind in self.counts else 0

    def rarest(self, kinds: Iterable[str], number: int = 1) -> list[str]:
        """Those of these kinds that were injected least often. Among equals, it is random."""
        shuffled = self.random.sample(kinds := [*kinds], len(kinds))
        return sorted(shuffled, key=self.injected)[:number]

    def next_round(self, names: Iterable[str]) -> Callable[[], None]:
        """The round of these whose kinds were injected least often."""
        shuffled = self.random.sample(names := [*names], len(names))
        name = min(shuffled, key=lambda name: sum(map(self.injected, KINDS[name])) / len(KINDS[name]))
        found: Callable[[], None] = getattr(self, name)
        return found

    def round(self, inject: Callable[[], None]) -> None:
        """Some faults, which survive together or are lost together."""
        self.project.restore()
        before = {kind: count["injected"] for kind, count in self.counts.items()}
        self.outcome = "survived"
        try:
            inject()
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - also an error of this file costs one round
            self.outcome = "lost"
            where = traceback.extract_tb(error.__traceback__)[-1].line  # a bare `assert` has no words of its own
            words = str(error) if isinstance(error, Lost) else f"{where}: {error}"
            reason = " ".join(words.replace(str(self.project.folder), "project").split())[:1000]
            self.losses.append(f"{inject.__name__}: {reason}")
            print(f"LOST: {self.losses[-1]}", file=sys.stderr, flush=True)
        for kind, count in self.counts.items():
            count[self.outcome] += count["injected"] - before.get(kind, 0)

    # Kills.

    def forget(self) -> None:
        """Removes all results, and the store."""
        for place in MADE:
            shutil.rmtree(self.project.folder / place, ignore_errors=True)
        for file in FILES:
            (self.project.folder / file).unlink(missing_ok=True)
        self.project.commit()

    def kills(self, name: str = "") -> None:
        """Starts a pipeline that has no results, kills it at random moments, and lets it end in the end."""
        name = name or self.rarest(KINDS["kills"])[0].split(": ")[1]
        self.forget()
        attempt: Command | Queue = (Queue if name == QUEUE else Command)(self.project, name)
        for _ in range(self.random.randint(1, KILLS)):
            try:
                attempt.start()
            except AssertionError:  # nothing can be queued any more
                break
            hit = self.kill(attempt, name)
            ended_well = attempt.settle()
            if hit and self.random.random() < 0.5:
                self.lose_power()
            for kind in hit:
                self.count(kind)
            if ended_well:
                break
        if not again(attempt):
            self.mend(name, attempt)
        self.same(self.project, name)

    def mend(self, name: str, attempt: Command | Queue) -> None:
        """Does what the docs say if the same command does not end well: asks the doctor, and gives it once more."""
        self.outcome = "mended"
        with suppress(AssertionError):
            print(f"NOT ENDED: {name}: {' '.join(attempt.said().split())[:1000]}", file=sys.stderr, flush=True)
        time.sleep(LOCK_SECONDS + 1)  # a younger lock could be in use
        done = self.project.script("tools/doctor.py", "params.yaml", "metrics/mlflow.json", "--mend", check=False)
        print(f"{done.stdout} {done.stderr}", file=sys.stderr, flush=True)
        require(again(attempt), f"{name}: {attempt.said()}")

    def same(self, project: Project, name: str) -> None:
        """There is one whole run, with the bits that the project has without a fault. The workspace has them too."""
        runs = project.runs()
        require([run.info.status for run in runs.values()] == ["FINISHED"], f"{name}: {runs}")
        (run_id,) = runs
        project.assert_whole(run_id)
        recorded = json.loads(project.text(run_id, "hashes.json"))
        require({file: recorded[file] for file in BITWISE} == self.hashes, f"{name}: other bits")
        if name in ("dvc repro", "dvc exp run"):
            require(project.hashes() == self.hashes, f"{name}: other bits in the workspace")
        if name != "dvc repro":
            require(self.project.experiments() == [NAME], f"{name}: the experiments are {self.project.experiments()}")

    def kill(self, attempt: Command | Queue, name: str) -> list[str]:
        """Sends a signal to a target, or to two, at a random moment at which the first one runs.
        Returns the kinds of these faults: none if the command had ended before."""
        targets = QUEUE_TARGETS if name == QUEUE else TARGETS
        kinds = self.rarest((f"killed: {name}: {target}" for target in targets), self.random.choice((1, 2)))
        words = [targets[kind.split(": ")[2]] for kind in kinds]
        short = words[0] == TARGETS["the observer"]  # it lives for a part of the command

        def waits(condition: Callable[[], object]) -> bool:
            """Waits for it. False if the command has ended before."""
            return wait_for(lambda: "yes" if condition() else not attempt.works() and "ended", 0.2) == "yes"

        if short and not waits(lambda: self.found(words[0])):
            return []
        until = time.monotonic() + self.random.uniform(0, self.project.first_repro_seconds / (4 if short else 1))
        if not waits(lambda: time.monotonic() > until and self.found(words[0])):
            return []
        hit = []
        for kind, word in zip(kinds, words, strict=True):
            chosen, number = self.found(word), self.random.choice(SIGNALS)
            for process in chosen:
                with suppress(psutil.Error):
                    process.send_signal(number)
            hit += [kind] * bool(chosen)
        return hit

    def found(self, word: str) -> list[psutil.Process]:
        """The processes of the project with this word in their command line."""
        return [process for process in self.project.processes() if word in command_line(process)]

    def lose_power(self) -> None:
        """Cuts the files that nobody had asked the disk to keep: results and notes, while a stage wrote them."""
        unsafe = [path for path in self.project.folder.glob("*/*") if path.parent.name in MADE[2:6]]
        unsafe += [*self.project.folder.glob(".checkpoints/*.partial")]
        for path in (unsafe := [path for path in unsafe if path.is_file() and path.stat().st_size]):
            os.truncate(path, self.random.randrange(path.stat().st_size))
        if unsafe:
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

    def servers(self, answers: Iterable[str] = ()) -> None:
        """Servers that answer wrongly, one after the other, then a store that works."""
        kinds = [f"store: a server, {answer}" for answer in answers] or self.rarest(KINDS["servers"], 6)
        for kind in kinds:
            with faults.wrong_server(kind.rpartition(" ")[2]) as uri:
                require("MLflow store" in self.line(*TRACK, MLFLOW_TRACKING_URI=uri, **SHORT), kind)
            self.count(kind)
        with tempfile.TemporaryDirectory() as folder:
            self.recorded(self.project.at(f"sqlite:///{folder}/mlflow.db"))

    def locks(self) -> None:
        """Another process has locked the store for a while."""
        with tempfile.TemporaryDirectory() as folder:
            database = shutil.copy(self.project.folder / "mlflow.db", folder)
            with faults.locked(Path(database), self.random.choice(LOCKED_SECONDS)):
                self.recorded(self.project.at(f"sqlite:///{database}"))
        self.count(LOCKED)

    def deaths(self) -> None:
        """A server is killed at random moments of a pipeline without results, and comes back at the same address."""
        self.forget()
        with tempfile.TemporaryDirectory() as folder:
            serve = partial(mlflow_server, Path(folder), end=signal.SIGKILL)
            with serve() as uri:
                running = self.project.at(uri).start("dvc", "repro")
                wait_for(lambda: self.found("train.py") or running.process.poll() is not None, 0.2)
                time.sleep(self.random.uniform(0, self.project.first_repro_seconds / 2))
            self.count(DIES)
            with serve(port=int(uri.rpartition(":")[2])):
                done, again = running.finish(), self.project.at(uri)
                require(done.returncode == 0 or "error: MLflow store" in done.stderr, done.stderr)
                if done.returncode:
                    done = again.dvc("repro", check=False)
                    require(done.returncode == 0, done.stderr)
                self.same(again, "dvc repro")

    def files(self) -> None:
        """Files that `track` reads are damaged, one after the other, then whole again."""
        runs = self.project.runs().keys()
        for kind in (kind.removeprefix("file: ") for kind in self.rarest(KINDS["files"], 6)):
            name = self.random.choice(READ)
            path = self.project.folder / name
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

    def checkpoints(self, number: int = len(BROKEN)) -> None:
        """Damages the checkpoint of a killed training, each time in another way. It trains again, to the same bits."""
        project = self.project
        with project.after_one_epoch(lambda: project.train("out", DVC_ROOT=str(project.folder))) as training:
            training.process.kill()
            training.finish()
        (path,) = project.checkpoints()
        whole = path.read_bytes()
        for kind in self.rarest(KINDS["checkpoints"], number):
            path.write_bytes(whole)
            faults.damage(path, kind.removeprefix("checkpoint: "), self.random)
            done = project.train("out").finish()
            require(done.returncode == 0 and "resuming" not in done.stdout, f"{kind}: {done.stderr}")
            model = (project.folder / "out/vae.safetensors").read_bytes()
            require(model == (project.folder / "models/vae.safetensors").read_bytes(), kind)
            self.count(kind)

    def disks(self) -> None:
        """A disk without room, or folders that cannot be written, around a new store."""
        with tempfile.TemporaryDirectory(dir=self.project.home) as folder:
            store, artifacts = Path(folder) / "store", self.project.folder / "mlartifacts"
            store.mkdir()
            other = self.project.at(f"sqlite:///{store / 'mlflow.db'}")
            places = [
                (faults.full_disk, self.random.choice((store, artifacts))),
                (faults.no_inodes, artifacts),
                (faults.read_only, self.random.choice((artifacts, self.project.folder / ".checkpoints"))),
                (faults.few_handles, store),
            ]
            for fault, place in self.random.sample(places, len(places)):
                with fault(place) as start:
                    self.line(*start, *TRACK, MLFLOW_TRACKING_URI=other.uri)
                self.count(f"disk: {fault.__name__.replace('_', ' ')}")
            self.recorded(other)


def report(soaks: list[Soak]) -> dict[str, Any]:
    """What is written to metrics/faults.json."""
    kinds: dict[str, dict[str, int]] = {}
    for name in sorted({name for soak in soaks for name in soak.counts}):
        counts = [soak.counts[name] for soak in soaks if name in soak.counts]
        kinds[name] = {column: sum(count[column] for count in counts) for column in COLUMNS}
    total = {column: sum(count[column] for count in kinds.values()) for column in COLUMNS}
    return {"total": total, "kinds": kinds, "losses": [loss for soak in soaks for loss in soak.losses]}


def table(found: dict[str, Any]) -> str:
    """The table of docs/faults.md."""
    rows = [*found["kinds"].items(), ("all", found["total"])]
    lines = [{"fault": kind} | {name: str(count[name]) for name in count} for kind, count in rows]
    return readme.markdown(lines, ("fault", *COLUMNS))


def inject(seed: int, minutes: float, names: list[str]) -> Soak:
    """Injects faults for so many minutes, in a project of its own, in the rounds with these names."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        project.make()
        started = time.monotonic()
        project.dvc("repro")
        project.first_repro_seconds = time.monotonic() - started
        print(f"seed {seed}: a `dvc repro` without faults took {project.first_repro_seconds:.0f} s", flush=True)
        project.commit()
        project.keep()
        os.environ["DVC_ROOT"] = str(project.folder)  # so that this process queues for the same cores
        soak, began = Soak(project, seed), time.monotonic()
        while (started := time.monotonic()) < began + 60 * minutes:
            soak.round(chosen := soak.next_round(names))
            now = time.monotonic()
            took = f"{chosen.__name__}, {now - started:.0f} s"
            print(f"{(now - began) / 60:.1f} min, seed {seed}: {took}: {report([soak])['total']}", flush=True)
        project.stop()
    return soak


def main(seed: int, minutes: float, result: Path, page: Path, kinds: str = "") -> None:
    """Injects faults for so many minutes, in several projects at a time: of all kinds, or in rounds of these names."""
    possible = [name for name in KINDS if name != "disks" or faults.mounts()]
    names = [name for name in possible if not kinds or name in kinds.split(",")]
    began, seeds = time.monotonic(), range(SIDE_BY_SIDE * seed, SIDE_BY_SIDE * (seed + 1))
    with ProcessPoolExecutor(SIDE_BY_SIDE, get_context("spawn")) as pool:
        soaks = [*pool.map(partial(inject, minutes=minutes, names=names), seeds)]
    spent = {"seed": seed, "asked": kinds or "all", "minutes": round((time.monotonic() - began) / 60, 1)}
    found = spent | {"machine": machine.describe(1, "cpu")} | report(soaks)
    result.write_text(json.dumps(found, indent=2) + "\n")
    page.write_text(readme.insert(page.read_text(), table(found), "faults"))
    print(json.dumps(found["total"]))
    sys.exit(1 if found["losses"] else 0)


if __name__ == "__main__":
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"  # because the database file is replaced
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
