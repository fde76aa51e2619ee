"""One state of the pipeline: its files and their hashes."""

from vae.runtime.files import damaged, files_below, read_json, read_text, sha256

import csv
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from vae.params import NOT_IN_PIPELINE, Model, Params, load

# What a whole state has at least.
OF_EPOCH = {"train_neg_elbo_nats", "val_neg_elbo_nats", "train_rate_nats", "train_distortion_nats", "lr"}
OF_VALIDATION = {"val_neg_elbo_nats": float, "validation_images": int}
FIGURES = ("neg_elbo_nats", "fitted_neg_elbo_nats", "nll_iw_nats", "rate_nats", "distortion_nats", "neg_elbo_grey_nats")
OF_EVALUATION = dict.fromkeys(FIGURES, float) | dict.fromkeys(
    ("importance_samples", "active_units", "test_images"), int
)
PLOTS = ("latent_space.png", "reconstructions.png", "traversals.png")
SAMPLES = ("grid.png", "interpolations.png", "row.png", "samples.safetensors")
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

    def check(self) -> None:
        """Raises InputError that names the first file which is missing, damaged, or of other params than the rest."""
        config, drawn = self.config, {*map(self.plots.joinpath, PLOTS), *map(self.samples.joinpath, SAMPLES)}
        for path in sorted(drawn.union(*(files_below(root) or [root] for root in (self.data, *self.outputs)))):
            check_file(path)
        with safe_open(self.model, framework="numpy") as file:
            text, names = (file.metadata() or {}).get("model", ""), list(file.keys())
        try:
            described = dict(json.loads(text))
        except (ValueError, TypeError):
            described = {}
        if {name: described.get(name) for name in Model.model_fields} != config.model.model_dump():
            raise damaged(self.model, f"is a model of other params than {self.params}")
        curves, last = read_curves(self.curves), "val_neg_elbo_nats"
        learned = any(name.startswith("prior.") for name in names)  # a prior without weights has no epochs of its own
        epochs = config.train.epochs + config.train.refine_epochs + (config.train.prior_epochs if learned else 0)
        if [epoch for epoch, _ in curves] != [*range(1, epochs + 1)] or OF_EPOCH - curves[0][1].keys():
            raise damaged(self.curves, f"lacks an epoch of 1 to {epochs}, or a column of {', '.join(sorted(OF_EPOCH))}")
        if read_json(self.validation, **OF_VALIDATION)[last] != curves[-1][1][last]:
            raise damaged(self.validation, f"has another {last} than the last epoch of {self.curves}")
        samples = read_json(self.evaluation, **OF_EVALUATION)["importance_samples"]
        if samples != config.evaluate.importance_samples:
            raise damaged(self.evaluation, f"is an evaluation with other params than {self.params}")


def check_file(path: Path) -> None:
    """Raises InputError if a file is missing, empty, a picture that is damaged, or has tensors that are damaged."""
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()
        if path.suffix == ".safetensors":
            for name, tensor in load_file(path).items():
                if not np.isfinite(tensor).all():
                    raise ValueError(f"{name} has a value that is not finite")
    except Exception as error:  # a damaged file raises anything
        raise damaged(path, f"is missing or damaged ({' '.join(str(error).split())[:200]})") from error


def dependencies(lock: Path) -> set[str]:
    """The files and folders on which the stages in a dvc.lock depend. Empty if there is no such file.
    Raises InputError if it is not a lock file of DVC."""
    try:
        stages = yaml.safe_load(read_text(lock))["stages"] if lock.is_file() else {}
        return {item["path"] for stage in stages.values() for item in stage.get("deps", [])}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise damaged(lock, "is no lock file of DVC") from error


def curve_point(row: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """A row of metrics/train.csv as (epoch, values), with names that differ from the test metrics."""
    values = {CURVE_NAMES.get(name, name): float(value) for name, value in row.items() if name != "epoch"}
    return int(row["epoch"]), values


def read_curves(path: Path) -> Curves:
    """The rows of metrics/train.csv. Raises InputError if it is no table of finite numbers."""
    text = read_text(path)
    if not text.endswith("\n"):  # its last number may be another one
        raise damaged(path, "was cut short: its last line has no end")
    try:
        points = [curve_point(row) for row in csv.DictReader(text.splitlines())]
    except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise damaged(path, f"is no table of numbers with a column epoch ({error})") from error
    if wrong := [epoch for epoch, values in points if not all(map(math.isfinite, values.values()))]:
        raise damaged(path, f"has a number in epoch {wrong[0]} that is not finite")
    return points
