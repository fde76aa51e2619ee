"""Measured processes: their time, their peak memory, and their params.yaml."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# A separate process, because the peak memory of a child starts at the memory of its parent, which has loaded torch.
WATCH = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - started
with open(sys.argv[1], "w") as file:
    print(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss, file=file)
"""


def environment(**extra: str) -> dict[str, str]:
    """The environment of a process that imports this library and this benchmark."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} | extra


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_mib: float


def measure(command: list[str] | str, folder: Path, env: dict[str, str]) -> Measured:
    """Runs a command (a string is a line of shell) and waits for it. Peak memory is of its largest process.

    Raises:
        SystemExit: it failed. The message has its output.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else command
    log, result = folder / "bench.log", folder / "bench.measured"
    with log.open("wb") as output:
        watcher = [sys.executable, "-c", WATCH, str(result), *words]
        subprocess.run(watcher, cwd=folder, env=env, stdout=output, stderr=output, check=True)
    code, seconds, peak = result.read_text().split()
    if code != "0":
        sys.exit(f"error: {command}: exit code {code}\n{log.read_text()[-3000:]}")
    return Measured(float(seconds), float(peak) / 1024)


def variant(path: Path, **sections: dict[str, Any]) -> Path:
    """Writes the project's params.yaml with these values to `path`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, values in sections.items():
        params[name] |= values
    path.write_text(yaml.safe_dump(params))
    return path


def alternate(contenders: Sequence[str], params: Path, data: Path, rounds: int) -> dict[str, float]:
    """The median seconds of each contender over rounds in which each takes a turn, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        processes = {}
        for name in contenders:
            processes[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.contender", name, str(params), str(data)],
                    cwd=ROOT,
                    env=environment(),
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
