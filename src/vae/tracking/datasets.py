"""The data of a run as MLflow knows it: its training, validation and test images, each a data set of its own."""

from vae.runtime.mirrors import MIRRORS

import hashlib
import json
from pathlib import Path

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.types import Schema, TensorSpec

from vae import idx
from vae.params import Data
from vae.tracking.state import State

TRAINING, VALIDATION, TEST = "training", "validation", "test"  # contexts of MLflow
# What scikit-learn bundles.
BUNDLED = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
PARTS, BYTE = ("train", "t10k"), np.dtype(np.uint8)
IMAGES, LABELS = TensorSpec(BYTE, (-1, idx.SIDE, idx.SIDE), "images"), TensorSpec(BYTE, (-1,), "labels")
SCHEMA = TensorDatasetSchema(Schema([IMAGES]), Schema([LABELS]))


def inputs(state: State, validation: int) -> dict[str, DatasetInput]:
    """The three data sets of a state by their context. `validation` is the number of validation images."""
    offset, found = idx.HEADER["labels"].size, {}
    train, test = (np.fromfile(state.data / f"{part}-labels-idx1-ubyte", np.uint8, -1, "", offset) for part in PARTS)
    for context, labels in ((TRAINING, train[:-validation]), (VALIDATION, train[-validation:]), (TEST, test)):
        classes, counts = np.unique(labels, return_counts=True)
        profile = {"num_rows": len(labels), "classes": dict(zip(map(str, classes), counts.tolist(), strict=True))}
        digest = hashlib.sha256(f"{state.data_sha256} {context} {len(labels)}".encode()).hexdigest()[:16]
        kind, source = source_of(state.config.data)
        described = [json.dumps(part) for part in (source, SCHEMA.to_dict(), profile)]
        data = Dataset(f"{state.config.data.name}-{context}", digest, kind, *described)
        found[context] = DatasetInput(data, [InputTag("mlflow.data.context", context)])
    return found


def tested(run: Run) -> Dataset | None:
    """The test images of a run. None for a run that was recorded before data sets had contexts of their own."""
    listed = run.inputs.dataset_inputs if run.inputs else []
    return next((item.dataset for item in listed if any(tag.value == TEST for tag in item.tags)), None)


def source_of(config: Data) -> tuple[str, dict[str, str]]:
    """The kind of a data set's source, and its public address, or its folder without the folders around it."""
    if config.name == "folder":
        return "local", {"uri": config.path if not Path(config.path).is_absolute() else Path(config.path).name}
    return "http", {"url": MIRRORS[config.name][0] if config.name in MIRRORS else BUNDLED}
