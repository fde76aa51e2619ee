"""`make stress`: eight queued experiments at a time, a store of 10,000 runs, and a model under parallel requests.

Works in a clone of the last commit with a tiny model, and writes metrics/load.json for this kind of CPU. Takes about
ten minutes, in which nothing else should run.
"""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
import yaml

from bench.__main__ import kind, rounded
from bench.processes import ROOT, environment

EXPERIMENTS = 8
RUNS = 10_000
SECONDS = 60
CLIENTS = 8
LIMIT_SECONDS = 1800
UI = ("python", "tools/ui.py", "params.yaml", "--open", "", "127.0.0.1")
ENDED = ("Success", "Failed")
TINY: dict[str, dict[str, Any]] = {
    "data": {"name": "digits", "validation": 300},
    "model": {"latent_dim": 4, "channels": [4, 8], "mixture_components": 8, "flow_couplings": 2, "flow_hidden": [16]},
    "train": {
        "epochs": 2,
        "prior_epochs": 1,
        "batch_size": 64,
        "warmup_steps": 5,
        "kl_warmup_epochs": 20,
        "threads": 1,
    },
    "evaluate": {"importance_samples": 4},
    "generate": {"rows": 3, "columns": 3, "interpolations": 2},
}
# Tags that no two of the copied runs share.
UNIQUE = ("vae.key", "vae.training", "vae.model_sha256", "dvc.experiments", "mlflow.runName")
# Runs a script, and prints the number of SQL statements that it sends.
COUNTED = """
import atexit, runpy, sys
from sqlalchemy import Engine, event
sent = []
event.listen(Engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: sent.append(statement))
import os
leave, os._exit = os._exit, lambda code: (print("statements", len(sent), flush=True), leave(code))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Project:
    """A clone with a tiny model, after its first `dvc repro`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment = folder, environment(DVC_NO_ANALYTICS="1")
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        self.environment["PYTHONPATH"] = f"{folder / 'src'}:{folder}"
        params = yaml.safe_load((folder / "params.yaml").read_text())
        for name, values in TINY.items():
            params[name] |= values
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        for name, value in (("user.name", "load"), ("user.email", "load@localhost")):
            self.run("git", "config", name, value)
        self.run("dvc", "repro")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "tiny")

    def run(self, *command: str, allowed: tuple[int, ...] = (0,)) -> str:
        """Runs a command, and returns what it printed. Raises SystemExit if it fails."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if done.returncode not in allowed:
            sys.exit(f"error: {' '.join(command)}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def timed(self, *command: str, allowed: tuple[int, ...] = (0,)) -> float:
        """The seconds that a command takes."""
        started = time.perf_counter()
        self.run(*command, allowed=allowed)
        return time.perf_counter() - started

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def recorded(self) -> str:
        """The id of the run of the present state."""
        return json.loads((self.folder / "metrics/mlflow.json").read_text())["run_id"]


def statuses(database: Path) -> Counter[str]:
    """How many runs have each status, without those that only group others."""
    groups = "SELECT run_uuid FROM tags WHERE key = 'vae.group'"
    active = f"SELECT status FROM runs WHERE lifecycle_stage = 'active' AND run_uuid NOT IN ({groups})"
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        return Counter(status for (status,) in connection.execute(active))


def queue(project: Project, experiments: int) -> dict[str, float]:
    """Queues experiments that differ by their seed, and runs all of them at a time."""
    before = statuses(project.database)
    for seed in range(1, experiments + 1):
        project.run("dvc", "exp", "run", "--queue", "-S", f"train.seed={seed}")
    started = time.perf_counter()
    project.run("dvc", "queue", "start", "--jobs", str(experiments))
    # Counts what has ended, because an experiment that has just ended is missing from the list for a moment.
    while sum((listed := project.run("dvc", "queue", "status")).count(word) for word in ENDED) < experiments:
        if time.perf_counter() - started > LIMIT_SECONDS:
            sys.exit(f"error: the queue does not end\n{listed}")
        time.sleep(1)
    seconds, after = time.perf_counter() - started, statuses(project.database)
    while "0 active, 0 idle" not in project.run("dvc", "queue", "status"):  # workers end some seconds later
        time.sleep(1)
    return {
        "experiments": experiments,
        "seconds": seconds,
        "succeeded": listed.count("Success"),
        "finished_runs": after["FINISHED"] - before["FINISHED"],
        "other_runs": after.total() - after["FINISHED"],
    }


def multiply(database: Path, run_id: str, count: int) -> None:
    """Copies a run in a SQLite store, with its parameters, metrics and tags, so that there are `count` more."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            chosen = [{"run_uuid": "printf('%032x', i)", "name": "name || i"}.get(name, name) for name in columns]
            if table == "tags":
                unique = ", ".join(f"'{name}'" for name in UNIQUE)
                chosen = [
                    f"CASE WHEN key IN ({unique}) THEN value || i ELSE value END" if name == "value" else name
                    for name in chosen
                ]
            connection.execute(
                "WITH RECURSIVE number(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number WHERE i < ?) "
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(chosen)} FROM {table}, number "
                "WHERE run_uuid = ?",
                (count, run_id),
            )


def statements(project: Project, script: str, *arguments: str) -> int:
    """The number of SQL statements that a script sends."""
    printed = project.run(sys.executable, "-c", COUNTED, script, *arguments)
    return int(printed.rpartition("statements ")[2])


def store(project: Project, runs: int) -> dict[str, float]:
    """The seconds of each command that reads the store, and the statements of `track`, before and after it grew."""
    stage = yaml.safe_load((project.folder / "dvc.yaml").read_text())["stages"]["track"]["cmd"].split()
    track = stage[stage.index("pipeline/track.py") :]
    few = statements(project, *track)
    with closing(sqlite3.connect(project.database)) as connection:
        (present,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    multiply(project.database, project.recorded(), runs - present)
    with served(project, *UI, path="/health") as address:
        body = {"experiment_ids": ["1"], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
        started = time.perf_counter()
        page = requests.post(f"{address}/api/2.0/mlflow/runs/search", json=body, timeout=LIMIT_SECONDS)
        page.raise_for_status()
        listed = time.perf_counter() - started
    return {
        "runs": runs,
        "track_statements_few_runs": few,
        "track_statements": statements(project, *track),
        "track_seconds": project.timed("python", *track),
        "which_seconds": project.timed(
            "python", "tools/which.py", "params.yaml", "metrics/mlflow.json", project.recorded()
        ),
        "doctor_seconds": project.timed(
            "python", "tools/doctor.py", "params.yaml", "metrics/mlflow.json", allowed=(0, 1)
        ),
        "ui_list_runs": len(page.json()["runs"]),
        "ui_list_seconds": listed,
    }


@contextmanager
def served(project: Project, *command: str, path: str) -> Iterator[str]:
    """Starts a server on a free port, which is its last argument, and gives its address when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (project.folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(port)],
            cwd=project.folder,
            env=project.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address, started = f"http://127.0.0.1:{port}", time.perf_counter()
        while True:
            try:
                requests.get(f"{address}{path}", timeout=10).raise_for_status()
                break
            except requests.RequestException:
                if process.poll() is not None or time.perf_counter() - started > LIMIT_SECONDS:
                    sys.exit(f"error: no server\n{(project.folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def serving(project: Project, seconds: float, clients: int) -> dict[str, float]:
    """Latency and throughput of the served model, asked by several clients at a time for one digit each."""
    body = json.dumps({"inputs": [{"task": "generate", "n": 1, "format": "png"}]})
    headers = {"Content-Type": "application/json"}

    def ask(address: str) -> list[tuple[float, int]]:
        answers, end = [], time.perf_counter() + seconds
        with requests.Session() as session:
            while (started := time.perf_counter()) < end:
                status = session.post(
                    f"{address}/invocations", body, headers=headers, timeout=LIMIT_SECONDS
                ).status_code
                answers.append((time.perf_counter() - started, status))
        return answers

    model = "models:/vae-digits@champion"
    project.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project.database}"
    with served(
        project, "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", path="/ping"
    ) as address:
        ask_briefly = requests.post(f"{address}/invocations", body, headers=headers, timeout=LIMIT_SECONDS)
        ask_briefly.raise_for_status()
        with ThreadPoolExecutor(clients) as pool:
            answers = [answer for part in pool.map(ask, [address] * clients) for answer in part]
    times = 1000 * np.array([duration for duration, _ in answers])
    return {
        "seconds": seconds,
        "clients": clients,
        "requests": len(answers),
        "failed": sum(status != 200 for _, status in answers),
        "requests_per_second": len(answers) / seconds,
        **{f"latency_p{share}_ms": float(np.percentile(times, share)) for share in (50, 95, 99)},
    }


def main(result: Path, experiments: int = EXPERIMENTS, runs: int = RUNS, seconds: float = SECONDS) -> None:
    """Measures all parts, prints them, and writes them to `result`, which keeps other kinds of CPU."""
    name, tags = kind()
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder) / "project")
        figures = {
            "machine": tags,
            "queue": queue(project, experiments),
            "serving": serving(project, seconds, CLIENTS),
            "store": store(project, runs),
        }
    kinds = json.loads(result.read_text()) if result.is_file() else {}
    result.write_text(json.dumps(kinds | {name: rounded(figures)}, indent=2) + "\n")
    print(json.dumps(rounded(figures), indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
