"""Reproduction of a run: its code, changes and params in a separate work tree, run again and compared file by file."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from vae.errors import InputError
from vae.runtime.files import sha256
from vae.tracking.worktree import execute, git

STAGES = ("train", "evaluate", "generate")
SAME = "the same, bit for bit"


def restore(folder: Path, recorded: Path) -> None:
    """Applies a run's uncommitted changes, params and lock file to its commit.

    Args:
        folder: the work tree, at the run's commit.
        recorded: the run's artifacts.
    """
    diff = recorded / "working-tree.diff"
    if diff.stat().st_size:
        git("apply", "--binary", str(diff.resolve()), folder=folder)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        (folder / name).write_bytes((recorded / name).read_bytes())


def rerun(folder: Path) -> None:
    """Takes the data set from DVC's cache, its remote or its mirrors, and runs the stages without any cached result."""
    for command in (["dvc", "checkout", "--force", "data"], ["dvc", "pull", "data"], ["dvc", "repro", "download"]):
        try:
            execute(command, folder)
            break
        except InputError as error:
            failure = error
    else:
        raise failure
    environment = {"DVC_ROOT": str(folder)}
    environment["MLFLOW_TRACKING_URI"] = (
        f"sqlite:///{folder / 'mlflow.db'}"  # separate, because the run that is reproduced has its record already
    )
    for stage in STAGES:
        print(f"  running {stage}", flush=True)
        command = ["dvc", "repro", "--single-item", "--force", "--no-commit", stage]
        execute(command, folder, environment)


def _numbers(path: Path) -> np.ndarray:
    """All numbers of a JSON, CSV, PNG, NPZ or safetensors file, as one vector."""
    values: Any
    match path.suffix:
        case ".json":
            values = [value for value in json.loads(path.read_text()).values() if not isinstance(value, str)]
        case ".csv":
            with path.open(newline="") as file:
                values = [float(value) for row in list(csv.reader(file))[1:] for value in row]
        case ".png":
            values = np.asarray(Image.open(path)).ravel()
        case ".npz":
            with np.load(path) as arrays:
                values = np.concatenate([arrays[name].ravel() for name in sorted(arrays)])
        case ".safetensors":
            values = np.concatenate([array.ravel() for _, array in sorted(load_file(path).items())])
        case _:
            return np.empty(0)
    return np.asarray(values, dtype=np.float64)


def distance(one: Path, other: Path) -> str:
    """The largest difference between two files, in words."""
    first, second = _numbers(one), _numbers(other)
    if first.shape != second.shape or not first.size:
        return "other content"
    return f"largest difference {np.nanmax(np.abs(first - second)):.3g} over {first.size} numbers"


def compare(folder: Path, hashes: dict[str, str], recorded: Path) -> int:
    """Prints for each file whether the work tree has the recorded content, and returns the number that differ.

    Args:
        hashes: the recorded SHA-256 of each file.
        recorded: the folder of the recorded files, to measure differences.
    """
    different = 0
    width = max(map(len, hashes))
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            verdict = "missing"
        elif sha256(path) == expected:
            verdict = SAME
        else:
            verdict = distance(path, recorded / name)
        different += verdict != SAME
        print(f"  {name:{width}}  {verdict}")
    return different
