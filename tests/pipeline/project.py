"""A copy of this repository with a tiny model, on which the tests run the real dvc and the real mlflow."""

from vae.runtime import cores
from vae.runtime.repository import state_folder

import copy
import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run

from vae.params import NOT_IN_PIPELINE

ROOT = Path(__file__).parents[2]
GENERATED = ("dvc.lock", "quality/dvc.lock", "models/", "metrics/", "plots/", "samples/", "docs/")
TINY = {
    "data": {"name": "digits", "validation": 300},
    "model": {"latent_dim": 4, "channels": [4, 8], "mixture_components": 8, "flow_couplings": 2, "flow_hidden": [16]},
    "train": {
        "epochs": 2,
        "prior_epochs": 1,
        "batch_size": 64,
        "muon_learning_rate": 0.05,
        "schedule": "constant",
        "warmup_steps": 5,
        "kl_warmup_epochs": 20,  # so that the latents carry something after two epochs
        "importance_epochs": 1000,  # the same
        "precision": "fp32",
        "threads": 1,
    },
    "evaluate": {"importance_samples": 4, "grey_samples": 2, "precision": "fp32"},
    "generate": {"rows": 3, "columns": 3, "interpolations": 2},
    "classifier": {"channels": [4, 8], "features": 8, "epochs": 4, "batch_size": 32, "warmup_steps": 5, "threads": 1},
    "quality": {"samples": 100, "draws": 2, "searched": 20},
}
EPOCHS = TINY["train"]["epochs"] + TINY["train"]["prior_epochs"]
BITWISE = ("models/vae.safetensors", "metrics/train.csv", "metrics/evaluation.json", "samples/grid.png")
OUTPUTS = {
    "--model": "vae.safetensors",
    "--curves": "train.csv",
    "--validation": "validation.json",
    "--run": "run.json",
}
RECORDED = {
    "--data": "data",
    "--model": "models/vae.safetensors",
    "--curves": "metrics/train.csv",
    "--validation": "metrics/validation.json",
    "--evaluation": "metrics/evaluation.json",
    "--plots": "plots",
    "--samples": "samples",
    "--run": "metrics/mlflow.json",
    "--quality": "metrics/quality.json",
    "--nearest": "metrics/nearest.png",
}
TRACK = ("python", "pipeline/track.py", "params.yaml", *(word for option in RECORDED.items() for word in option))
CURVE = "val_neg_elbo_nats"
LIMIT_SECONDS = 600  # for every wait: only a hang takes this long, however slow or busy the machine is
DOWN = "http://127.0.0.1:9"  # an address where nothing listens
MARK = "DVC_SITE_CACHE_DIR"  # a variable that every process of a project inherits, with a folder of that project


def wait_for(condition: Callable, pause: float = 0.05):
    """Asks again and again, with a pause of so many seconds, and returns the first answer that is not false."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {LIMIT_SECONDS} s in vain"
        time.sleep(pause)
    return value


def clean_environment() -> dict[str, str]:
    """The environment of the tests, without the settings that a user has for git, DVC and MLflow.
    It names a proxy that is down, so that a request to a local server fails if it does not go there directly."""
    own = ("MLFLOW", "DVC", "MNIST", "GIT_", "NO_PROXY", "no_proxy", "TORCHRUN")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(own)},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), DOWN),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


def command_line(process: psutil.Process) -> str:
    """The command line of a process, or nothing if it has just ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class Started:
    """A command that was started. It prints into files, because `dvc queue start` leaves processes behind that would
    keep a pipe open."""

    def __init__(self, command: tuple[str, ...], folder: Path, environment: dict[str, str], printed: Path) -> None:
        self.command = command
        self.files = printed / "stdout", printed / "stderr"
        with self.files[0].open("w") as stdout, self.files[1].open("w") as stderr:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Waits for its end, and returns what it printed and its exit status."""
        returncode = self.process.wait(LIMIT_SECONDS)
        return subprocess.CompletedProcess(self.command, returncode, *(file.read_text() for file in self.files))

    def ended(self, returncode: int = 0) -> str:
        """Waits for its end, which must have this exit status, and returns what it printed to stdout."""
        done = self.finish()
        assert done.returncode == returncode, done.stderr
        return done.stdout


class Project:
    """A repository with its own store and its own DVC configuration, which can be put back to an earlier state."""

    first_repro_seconds: float

    def __init__(self, scratch: Path) -> None:
        self.home, self.kept = scratch / "home", scratch / "kept"
        self.folder = self.home / "project"
        self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.environment = clean_environment() | {
            "DVC_GLOBAL_CONFIG_DIR": str(self.home / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(self.home / "dvc-system"),
            MARK: str(self.home / "dvc-site"),
            "GOMP_SPINCOUNT": "20000",
        }

    def at(self, uri: str) -> "Project":
        """The same project, whose commands record in another store."""
        other = copy.copy(self)
        other.uri = uri
        other.environment = self.environment | {"MLFLOW_TRACKING_URI": uri}
        return other

    # How it is made and restored.

    def make(self) -> None:
        """Commits the files of this repository as they stand, without its results, and with a tiny model."""
        self.folder.mkdir(parents=True)
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listing, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
        for name in files.stdout.splitlines():
            if not name.startswith(GENERATED) and (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        self.run("git", "config", "user.email", "test@example.org")
        self.run("git", "config", "user.name", "test")
        self.params(**TINY)
        self.commit()

    def keep(self) -> None:
        """Copies everything as it is now, for `restore`."""
        shutil.copytree(self.home, self.kept, symlinks=True)

    def restore(self) -> None:
        """Puts back what `keep` copied, at the same path, because the store has absolute paths of artifacts."""
        self.stop()
        shutil.rmtree(self.home)
        shutil.copytree(self.kept, self.home, symlinks=True)
        assert not self.changes()  # this also refreshes the times of files in git's index

    def processes(self) -> list[psutil.Process]:
        """All processes that this project has started and that still run, also in sessions of their own."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has just ended, or is another user's
                if process.environ().get(MARK) == self.environment[MARK]:
                    found.append(process)
        return found

    def stop(self, word: str = "") -> None:
        """Ends all processes of this project, or those that have this word in their command line."""
        while processes := [process for process in self.processes() if word in command_line(process)]:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=LIMIT_SECONDS)

    # Commands.

    def start(self, *command: str, **environment: str) -> "Started":
        """Starts a command, and does not wait for it."""
        printed = Path(tempfile.mkdtemp(dir=self.home))
        return Started(command, self.folder, self.environment | environment, printed)

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end. With `check`, the test fails if the command fails."""
        done = self.start(*command, **environment).finish()
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def dvc(self, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, **options)

    def script(self, path: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return self.run("python", path, *arguments, PYTHONPATH="src", **options)

    def error(self, path: str, *arguments: str) -> str:
        """Runs a script that must fail, and returns the one line of its error."""
        done = self.script(path, *arguments, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    def experiments(self) -> list[str]:
        """The names of all experiments that DVC has."""
        return [name.strip("[]") for name in self.dvc("exp", "list", "--name-only").stdout.split()]

    # Files.

    def params(self, **sections: dict) -> None:
        """Changes fields of params.yaml."""
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        for name, values in sections.items():
            tree[name] |= values
        path.write_text(yaml.safe_dump(tree, sort_keys=False))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def changes(self) -> str:
        """What git sees as changed or new."""
        return self.run("git", "status", "--porcelain").stdout

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def recorded(self) -> str:
        """The id of the run that the `track` stage names."""
        return self.json("metrics/mlflow.json")["run_id"]

    def recorded_by(self, experiment: str) -> str:
        """The id of the run that the `track` stage names in the commit of an experiment."""
        listing = ("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}")
        (name,) = self.run(*listing).stdout.split()
        return json.loads(self.run("git", "show", f"{name}:metrics/mlflow.json").stdout)["run_id"]

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in BITWISE}

    def checkpoints(self) -> list[Path]:
        return sorted(state_folder(self.folder).glob("*.pt"))

    # Runs.

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self) -> dict[str, Run]:
        """All runs by their ids, without those that only group others. None if there is no store or no experiment."""
        if self.uri.startswith("sqlite:///") and not Path(self.uri.removeprefix("sqlite:///")).is_file():
            return {}
        experiment = self.client.get_experiment_by_name("vae")
        found = self.client.search_runs([experiment.experiment_id]) if experiment else []
        return {run.info.run_id: run for run in found if "vae.group" not in run.data.tags}

    def group(self, name: str) -> tuple[Run, set[str]]:
        """The parent run of a sweep or search, and the ids of its children."""
        (experiment,) = {run.info.experiment_id for run in self.runs().values()}
        (parent,) = self.client.search_runs([experiment], f"tags.`vae.group` = '{name}'")
        children = self.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        return parent, {run.info.run_id for run in children}

    def status(self, run_id: str) -> str:
        return self.client.get_run(run_id).info.status

    def epochs(self, run_id: str, name: str = CURVE) -> list[int]:
        """The epochs of which a run has this metric, in order."""
        return sorted(point.step for point in self.client.get_metric_history(run_id, name))

    def text(self, run_id: str, name: str) -> str:
        """The text of an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, name, folder)).read_text()

    def pictures(self, run_id: str) -> list[tuple[str, int]]:
        """The key and the step of each picture of a run that the UI shows. Each is there twice: with its thumbnail."""
        names = [item.path.split("/")[1] for item in self.client.list_artifacts(run_id, "images")]
        parts = [name.replace("%", "+").split("+") for name in names]
        return [(key, int(step)) for key, _, step, *_ in parts]

    def assert_whole(self, run_id: str) -> Run:
        """Checks that a run is complete and that its artifacts can be read. Returns the run."""
        run = self.client.get_run(run_id)
        assert run.info.status == "FINISHED"
        tree = yaml.safe_load(self.text(run_id, "params.yaml"))
        for section in NOT_IN_PIPELINE:
            del tree[section]
        leaves = {f"{section}.{key}": str(value) for section, keys in tree.items() for key, value in keys.items()}
        assert set(run.data.params) == set(leaves)
        assert float(run.data.params["train.learning_rate"]) == float(leaves["train.learning_rate"])
        curves = list(csv.DictReader(self.text(run_id, "metrics/train.csv").splitlines()))
        points = sorted(self.client.get_metric_history(run_id, CURVE), key=lambda point: point.step)
        assert [point.step for point in points] == [int(row["epoch"]) for row in curves]
        assert [point.value for point in points] == pytest.approx([float(row[CURVE]) for row in curves])
        evaluation = json.loads(self.text(run_id, "metrics/evaluation.json"))
        for name, value in evaluation.items():
            if not isinstance(value, str):
                assert run.data.metrics[name] == pytest.approx(value)
                assert len(self.client.get_metric_history(run_id, name)) == 1  # no curve under a test metric's name
        artifacts = {item.path for item in self.client.list_artifacts(run_id)}
        assert {"params.yaml", "dvc.yaml", "dvc.lock", "working-tree.diff", "hashes.json", "images"} <= artifacts
        assert {"samples_grid", "plots_reconstructions"} <= {key for key, _ in self.pictures(run_id)}
        data = {f"{leaves['data.name']}-{part}" for part in ("training", "validation", "test")}
        assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == data
        assert len(run.outputs.model_outputs) == 1
        assert run.data.tags["git.commit"] in self.run("git", "rev-list", "HEAD").stdout.split()
        with tempfile.TemporaryDirectory() as folder:
            model = Path(self.client.download_artifacts(run_id, "models/vae.safetensors", folder)).read_bytes()
        assert hashlib.sha256(model).hexdigest() == run.data.tags["vae.model_sha256"]
        return run

    # The stage that trains.

    def train(self, outputs: str, **environment: str) -> Started:
        """Starts the train stage alone, as DVC would, with its outputs in a folder of their own."""
        command = ["python", "pipeline/train.py", "params.yaml", "data"]
        for option, name in OUTPUTS.items():
            command += [option, f"{outputs}/{name}"]
        return self.start(*command, **{"PYTHONPATH": "src", "DVC_ROOT": str(self.folder)} | environment)

    def training(self) -> psutil.Process | None:
        """The process of the train stage, if one runs, in the workspace or in a copy of it."""
        found = [process for process in self.processes() if "python pipeline/train.py" in command_line(process)]
        return next((process for process in found if process.name().startswith("python")), None)

    @contextmanager
    def all_cores(self) -> Iterator[None]:
        """Holds all cores, as another training would, until the block ends. No stage of this project can compute."""
        with cores.turn(len(cores.usable())):
            yield

    def waits_for_cores(self) -> bool:
        """Whether a process of this project has reached the point where it waits for cores."""
        try:
            with FileLock(state_folder(self.folder) / "turn.lock", blocking=False):
                return False
        except Timeout:
            return True

    def assert_alive(self) -> None:
        """Checks that a process of this project runs, so that there is something to wait for."""
        assert self.processes(), "all processes have ended"

    @contextmanager
    def after_one_epoch(self, start: Callable) -> Iterator:
        """Calls `start`, which starts a training, and holds this training after its first epoch until the block ends.

        The test takes all cores before the training starts. When the training waits for them, the test gives them up
        and queues behind it. So the test has the cores again when the first epoch has ended.
        """
        with self.all_cores():
            started = start()
            wait_for(lambda: self.waits_for_cores() or self.assert_alive())
        with self.all_cores():
            wait_for(self.checkpoints)
            yield started


@contextmanager
def server(
    command: list[str],
    health: str,
    folder: Path | str,
    environment: dict[str, str],
    port: int = 0,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[str]:
    """Starts a server on this port or a free one, waits until its page `health` answers, and ends it with the block.
    It is told no address to listen on, and must listen for this machine alone."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def bound() -> bool:
            """Not yet, if workers of a server that was killed still listen on this port."""
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return True
            return False

        wait_for(bound)
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, f"{' '.join(command)} has ended"
        with suppress(requests.ConnectionError):
            return requests.get(address + health, timeout=LIMIT_SECONDS).ok
        return False

    try:
        wait_for(up)
        assert listening(process.pid, port) == {"127.0.0.1"}
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, end)
        process.wait(LIMIT_SECONDS)


def listening(pid: int, port: int) -> set[str]:
    """The addresses at which a process and its children listen on a port."""
    process = psutil.Process(pid)
    sockets = [item for one in (process, *process.children(recursive=True)) for item in one.net_connections("tcp")]
    return {item.laddr.ip for item in sockets if item.status == psutil.CONN_LISTEN and item.laddr.port == port}


@contextmanager
def mlflow_server(folder: Path, port: int = 0, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """The address of an `mlflow server` that keeps all in this folder. Like `server`."""
    stores = ["--backend-store-uri", f"sqlite:///{folder / 'served.db'}", "--artifacts-destination", str(folder)]
    environment = clean_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = ["mlflow", "server", *stores, "--workers", "1"]
    with server(command, "/health", folder, environment, port, end) as uri:
        yield uri
