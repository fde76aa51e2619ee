"""Processes that are measured: their time, their peak memory, and parameters of their own."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def environment(program: str = "compute", **extra: str) -> dict[str, str]:
    """The environment that dvc.yaml starts a stage with."""
    words = yaml.safe_load((ROOT / "dvc.yaml").read_text())["vars"][0][program].split()
    settings = dict(word.split("=") for word in words if "=" in word)
    return os.environ | settings | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | extra


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_mib: float


def measure(command: list[str] | str, folder: Path, env: dict[str, str]) -> Measured:
    """Runs a command (one string: a shell line) and waits for it; peak memory is that of its largest process.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    log = folder / "bench.log"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, shell=isinstance(command, str), cwd=folder, env=env, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {command}: exit code {process.returncode}\n{log.read_text()[-3000:]}")
    return Measured(seconds, usage.ru_maxrss / 1024)


def variant(path: Path, **sections: dict[str, Any]) -> Path:
    """Writes the project's params.yaml with other values to `path`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, values in sections.items():
        params[name] |= values
    path.write_text(yaml.safe_dump(params))
    return path


def alternate(contenders: dict[str, tuple[Path, dict[str, str]]], data: Path, rounds: int) -> dict[str, float]:
    """The median seconds of each contender, a process each, over rounds in which all take a turn; one warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        processes = {}
        for name, (params, env) in contenders.items():
            processes[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.contender", name, str(params), str(data)],
                    cwd=ROOT,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for _ in range(rounds + 1):
            for name, process in processes.items():
                assert process.stdin
                assert process.stdout
                process.stdin.write("\n")
                process.stdin.flush()
                times[name].append(float(process.stdout.readline()))
    return {name: median(values[1:]) for name, values in times.items()}
