"""How cost grows with images, importance samples, width, and queue workers."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.cost import clone
from bench.processes import environment, measure, variant

WORKERS, EXPERIMENTS = (1, 2, 4), 4


def row(label: str, folder: Path, data: Path, images: int, samples: int, **model: Any) -> dict[str, Any]:
    """Trains an epoch on `images` images (`samples` 0), or bounds their likelihood, in a separate process."""
    params, result = variant(folder / "params.yaml", model=model), folder / "seconds"
    contender, sizes = ("evaluation_ours", [images, samples]) if samples else ("epoch_ours", [images])
    words = [sys.executable, "-m", "bench.contender", contender, params, data, *sizes]
    command = f"echo | {shlex.join(map(str, words))} > {shlex.quote(str(result))}"
    peak = measure(command, folder, environment()).peak_mib
    return {"what": label, "seconds": float(result.read_text()), "peak_mib": peak}


def workers(folder: Path, env: dict[str, str], count: int) -> dict[str, Any]:
    """Runs four queued experiments on the digits, of two epochs and two epochs of the prior, with `count` workers."""
    run = lambda *command: subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)  # noqa: E731
    seeds = ",".join(str(100 * count + index) for index in range(EXPERIMENTS))
    run("dvc", "exp", "run", "--queue", "-S", f"train.seed={seeds}", "-S", "data.name=digits", "-S", "train.epochs=2")
    started = time.perf_counter()
    run("dvc", "queue", "start", "--jobs", str(count))
    while any(word in (status := run("dvc", "queue", "status").stdout.decode()) for word in ("Running", "Queued")):
        time.sleep(1)
    seconds = time.perf_counter() - started
    if status.count("Success") != EXPERIMENTS:
        raise RuntimeError(f"queued experiments failed:\n{status}")
    run("dvc", "queue", "remove", "--all")
    return {"what": f"{EXPERIMENTS} queued experiments, {count} workers", "seconds": seconds, "peak_mib": None}


def growth(folder: Path, data: Path) -> list[dict[str, Any]]:
    """The rows of the table."""
    folder.mkdir()
    rows = [row(f"epoch, {images} images", folder, data, images, 0) for images in (3750, 15000, 60000)]
    for samples in (50, 500, 5000):
        rows.append(row(f"bound of 200 images, K = {samples}", folder, data, 200, samples))
    for factor in (1, 4):
        channels = [16 * factor, 32 * factor]
        rows.append(row(f"epoch, 15000 images, channels {channels}", folder, data, 15000, 0, channels=channels))
    for factor in (1, 4):
        widths: dict[str, Any] = {"architecture": "mlp", "encoder": [512 * factor], "decoder": [512 * factor]}
        rows.append(row(f"epoch, 15000 images, MLP {512 * factor}", folder, data, 15000, 0, **widths))
    env = clone(folder / "project", data)
    return rows + [workers(folder / "project", env, count) for count in WORKERS]
