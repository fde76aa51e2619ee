"""The rows of metrics/leaderboard.csv: one for each recipe, number of importance samples and seed."""

import csv
from pathlib import Path
from typing import Any

BOUNDS = ("nll_iw_nats", "nll_iw_nats_stderr", "neg_elbo_nats", "neg_elbo_nats_stderr", "fitted_neg_elbo_nats")
PARTS = ("rate_nats", "distortion_nats", "neg_elbo_grey_nats", "active_units")
SAMPLES = ("frechet_binary", "frechet_binary_stderr", "precision_binary", "recall_binary")
TRAINING_IMAGES = ("frechet_binary_train", "precision_binary_train", "recall_binary_train")
MEASURED = BOUNDS + PARTS + SAMPLES + TRAINING_IMAGES
KEY = ("recipe", "importance_samples", "seed")  # one row for each combination
COLUMNS = (*KEY, "parameters", "train_minutes", *MEASURED)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows. Empty if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(recipe: str, seed: int, parameters: int, seconds: float, *measured: dict[str, Any]) -> Row:
    """A row from the results of the stages (metrics/*.json) and the seconds that the epochs took."""
    values: dict[str, Any] = {name: value for part in measured for name, value in part.items() if name in COLUMNS}
    values |= {"recipe": recipe, "seed": seed, "parameters": parameters, "train_minutes": seconds / 60}
    return {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}


def put(rows: list[Row], new: Row) -> list[Row]:
    """The rows with `new`, which replaces the row of the same recipe, seed and number of importance samples."""
    kept = [row for row in rows if any(row[name] != new[name] for name in KEY)]
    return sorted([*kept, new], key=lambda row: (row["recipe"], int(row["importance_samples"]), int(row["seed"])))
