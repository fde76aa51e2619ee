"""Reproduction of a run: its code, changes and params in a separate work tree, run again and compared file by file."""

from vae.runtime.files import sha256

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vae.errors import InputError
from vae.tracking.worktree import execute, git

STAGES = ("train", "evaluate", "generate")
SAME, DIFFERENT = "the same, bit for bit", "different"
FIGURES = {".json", ".csv"}
TOLERANCE = 0.01  # of a figure. Measured: the default on two kinds of CPU, in bf16 and fp32, differs by at most 0.005
MACHINE = {"device", "precision"}  # texts that another machine may change
SMALLEST = 1e-4  # a smaller difference is none
CLOSE = "other bits, as rounding explains"


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


def _texts(path: Path) -> dict[str, str]:
    """The values of a JSON file that are no numbers, such as hashes. Empty for other files."""
    found = json.loads(path.read_text()) if path.suffix == ".json" else {}
    return {name: value for name, value in found.items() if isinstance(value, str) and name not in MACHINE}


def verdict(path: Path, expected: str, recorded: Path, other_machine: bool) -> tuple[str, str]:
    """One of the three verdicts on a file, and what it rests on. `expected` is the recorded SHA-256, and `recorded` the
    recorded file. Figures (JSON and CSV) have a tolerance. Weights, samples, pictures and charts have none: they follow
    the noise of rounding, and another kind of machine gives others (docs/numbers.md)."""
    if not path.is_file():
        return DIFFERENT, "missing"
    if sha256(path) == expected:
        return SAME, ""
    try:
        first, second = _numbers(recorded), _numbers(path)
    except (OSError, ValueError, AttributeError, TypeError, SafetensorError, BadZipFile) as error:
        return DIFFERENT, f"unreadable: {' '.join(str(error).split())[:100]}"
    if first.shape != second.shape or not first.size or _texts(recorded) != _texts(path):
        return DIFFERENT, "other content"
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return DIFFERENT, "other numbers are finite"
    apart = np.abs(np.nan_to_num(first - second))
    found = f"largest difference {apart.max():.3g} over {first.size} numbers"
    if path.suffix in FIGURES and path.parent.name != "plots":
        close = bool(np.all(apart <= TOLERANCE * np.abs(np.nan_to_num(first)) + SMALLEST))
        return (CLOSE if close else DIFFERENT), found
    return (CLOSE if other_machine else DIFFERENT), found


def compare(folder: Path, hashes: dict[str, str], recorded: Path, other_machine: bool) -> Counter[str]:
    """Prints the verdict on each file, and returns how many files have each. `recorded` is the folder of the run's
    artifacts. `other_machine` says that the run was recorded on another kind of machine."""
    found: Counter[str] = Counter()
    width = max(map(len, hashes))
    for name, expected in hashes.items():
        kind, detail = verdict(folder / name, expected, recorded / name, other_machine)
        found[kind] += 1
        print(f"  {name:{width}}  {kind}{f' ({detail})' if detail else ''}")
    return found
