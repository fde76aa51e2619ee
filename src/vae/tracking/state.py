"""One state of the pipeline: its files and their hashes."""

from vae.runtime.files import files_below, read_text, sha256

import csv
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vae.params import NOT_IN_PIPELINE, Params, load

CURVE_NAMES = {"rate_nats": "train_rate_nats", "distortion_nats": "train_distortion_nats"}
Curves = list[tuple[int, dict[str, float]]]  # (epoch, values by name)


@dataclass(frozen=True)
class State:
    """The files that stand for one state of the pipeline. Each is hashed once, when a hash is first asked for."""

    params: Path
    data: Path
    model: Path
    curves: Path
    validation: Path
    evaluation: Path
    plots: Path
    samples: Path

    @cached_property
    def config(self) -> Params:
        """The content of params.yaml."""
        return load(self.params)

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files and folders that a reproduction must make again."""
        return self.model, self.curves, self.validation, self.evaluation, self.plots, self.samples

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """The SHA-256 of every file."""
        return {path: sha256(path) for root in (self.data, *self.outputs) for path in files_below(root)}

    @cached_property
    def key(self) -> str:
        """One hash of all content: the same state has the same key on every machine."""
        params = self.config.model_dump_json(exclude=NOT_IN_PIPELINE | {"track"})
        files = [(path, root) for root in (self.data, *self.outputs) for path in files_below(root)]
        lines = [f"{path.relative_to(root)} {self.hashes[path]}\n" for path, root in files]
        return hashlib.sha256("".join([params, *lines]).encode()).hexdigest()

    @property
    def model_sha256(self) -> str:
        """The hash of the model file."""
        return self.hashes[self.model]

    @property
    def data_sha256(self) -> str:
        """One hash of the data set's files."""
        lines = [f"{path.name} {self.hashes[path]}\n" for path in files_below(self.data)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def output_hashes(self) -> dict[str, str]:
        """The SHA-256 of every file that a reproduction must make again."""
        return {str(path): digest for path, digest in self.hashes.items() if not path.is_relative_to(self.data)}


def dependencies(lock: Path) -> set[str]:
    """The files and folders on which the stages in a dvc.lock depend. Empty if there is no such file."""
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    return {item["path"] for stage in stages.values() for item in stage.get("deps", [])}


def curve_point(row: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """A row of metrics/train.csv as (epoch, values), with names that differ from the test metrics."""
    values = {CURVE_NAMES.get(name, name): float(value) for name, value in row.items()}
    return int(values.pop("epoch")), values


def read_curves(path: Path) -> Curves:
    """The rows of metrics/train.csv."""
    return [curve_point(row) for row in csv.DictReader(read_text(path).splitlines())]
