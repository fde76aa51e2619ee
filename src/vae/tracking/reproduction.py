"""Reproduction of a run: its code, changes and params in a separate work tree, run again and compared file by file."""

from vae.runtime.files import sha256

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from vae.errors import InputError
from vae.tracking.worktree import execute, git

STAGES = ("train", "evaluate", "generate")
SAME = "the same, bit for bit"


def restore(folder: Path, recorded: Path) -> None:
    """Applies the changes, params and lock file in a run's artifacts, `recorded`, to a work tree of its commit."""
    diff = recorded / "working-tree.diff"
    if diff.stat().st_size:
        git("apply", "--binary", "--whitespace=nowarn", "--no-ignore-whitespace", str(diff.resolve()), folder=folder)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        (folder / name).write_bytes((recorded / name).read_bytes())


def tell_left_out(recorded: Path) -> None:
    """Prints which changed files the run does not have, and whether a stage may need them."""
    path = recorded / "left-out.json"
    left_out = json.loads(path.read_text()) if path.is_file() else {"needed": {}, "others": {}}
    for name, reason in left_out["needed"].items():
        print(f"  {name} is not in the record, and a stage may need it: {reason}")
    if names := ", ".join(left_out["others"]):
        print(f"  not in the record, and no stage depends on it: {names}")


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
    # A separate store, because the run that is reproduced has its record already.
    environment = {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    for stage in STAGES:
        print(f"  running {stage}", flush=True)
        command = ["dvc", "repro", "--single-item", "--force", "--no-commit", stage]
        execute(command, folder, environment)


def _joined(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for _, array in sorted(arrays.items())])


READERS: dict[str, Callable[[Path], Any]] = {  # all numbers of a file
    ".json": lambda path: [value for value in json.loads(path.read_text()).values() if not isinstance(value, str)],
    ".csv": lambda path: np.genfromtxt(path, delimiter=",", skip_header=1),
    ".png": lambda path: Image.open(path),
    ".npz": lambda path: _joined(np.load(path)),
    ".safetensors": lambda path: _joined(load_file(path)),
}


def _numbers(path: Path) -> np.ndarray:
    """All numbers of a JSON, CSV, PNG, NPZ or safetensors file, as one vector. Empty for other files."""
    return np.asarray(READERS.get(path.suffix, lambda _: [])(path), dtype=np.float64).ravel()


def distance(one: Path, other: Path) -> str:
    """The largest difference between two files, in words."""
    first, second = _numbers(one), _numbers(other)
    if first.shape != second.shape or not first.size:
        return "other content"
    return f"largest difference {np.nanmax(np.abs(first - second)):.3g} over {first.size} numbers"


def compare(folder: Path, hashes: dict[str, str], recorded: Path) -> int:
    """Prints for each file whether the work tree has the recorded SHA-256, and returns the number that differ.
    `recorded` is the folder of the run's artifacts, with which files that differ are compared."""
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
