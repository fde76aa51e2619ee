"""The cost of the whole pipeline: time and memory of each stage, and the time outside training and evaluation."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bench.processes import ROOT, environment, measure

IMPORTS = {
    "import_torch_seconds": "from vae.runtime import command; import torch",
    "import_mlflow_seconds": "from vae.runtime import command; import vae.tracking; import mlflow",
    "import_dvc_seconds": "import dvc.cli, dvc.repo",
}


def clone(folder: Path, data: Path) -> dict[str, str]:
    """Makes a clone of the last commit, with a mirror of the data set. Returns the environment for commands in it."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    (folder / "mirror").mkdir()
    for file in data.iterdir():
        with gzip.open(folder / "mirror" / f"{file.name}.gz", "wb", compresslevel=1) as packed:
            packed.write(file.read_bytes())
    env = os.environ | {"MNIST_MIRROR": str(folder / "mirror")}
    env.pop("MLFLOW_TRACKING_URI", None)
    return env


def stage_seconds(folder: Path, env: dict[str, str]) -> tuple[float, dict[str, float]]:
    """Runs `dvc repro`. Returns its seconds, and the seconds of each stage from dvc's own lines."""
    started, stage, begun = time.perf_counter(), "", 0.0
    seconds: dict[str, float] = {}
    process = subprocess.Popen(
        ["dvc", "repro", "--force"], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    output = []
    for line in process.stdout:
        output.append(line)
        now, begins = time.perf_counter(), line.startswith("Running stage")
        if stage and (begins or line.startswith(("Updating lock file", "Use `dvc push`"))):
            seconds.setdefault(stage, now - begun)
        if begins:
            stage, begun = line.split("'")[1], now
    if process.wait():
        sys.exit(f"error: dvc repro failed\n{''.join(output)[-3000:]}")
    return time.perf_counter() - started, seconds


def proper_seconds(folder: Path) -> tuple[float, float]:
    """The seconds of training and evaluation themselves: the epochs, from MLflow, and the bounds."""
    import torch

    from vae import data, device, model
    from vae.evaluation import metrics
    from vae.params import load
    from vae.tracking.store import Store

    config = load(folder / "params.yaml")
    store = Store(folder, config.track.experiment)
    epochs = store.training_seconds(json.loads((folder / "metrics/mlflow.json").read_text())["run_id"])
    torch.set_num_threads(config.train.threads)
    vae = model.load(folder / "models/vae.safetensors")
    grey = data.load(folder / "data", "t10k").images
    started = time.perf_counter()
    with device.autocast(grey.device, device.precision(config.evaluate.precision, grey.device)):
        metrics.evaluate(vae, grey, grey, config.evaluate)
    return epochs, time.perf_counter() - started


def fixed_cost(folder: Path, data: Path) -> dict[str, Any]:
    """A default `dvc repro` in a new clone, the parts of its time outside training and evaluation, and peak memory."""
    env = clone(folder, data)
    total, stages = stage_seconds(folder, env)
    training, evaluation = proper_seconds(folder)
    parts = {
        "dvc": total - sum(stages.values()),
        "download": stages["download"],
        "train": stages["train"] - training,
        "evaluate": stages["evaluate"] - evaluation,
        "generate": stages["generate"],
        "track": stages["track"],
    }
    imports = {
        name: median(measure([sys.executable, "-c", code], folder, environment()).seconds for _ in range(5))
        for name, code in IMPORTS.items()
    }
    commands = {
        name: stage["cmd"] for name, stage in yaml.safe_load((folder / "dvc.lock").read_text())["stages"].items()
    }
    peaks = {name: measure(command, folder, env).peak_mib for name, command in commands.items()}
    return {
        "repro_seconds": total,
        "training_seconds": training,
        "evaluation_seconds": evaluation,
        "fixed_cost_seconds": sum(parts.values()),
        "fixed_cost_parts_seconds": parts,
        **imports,
        "peak_memory_mib": peaks,
    }
