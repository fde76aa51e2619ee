"""The rows of metrics/leaderboard.csv: one for each recipe, number of importance samples and seed.
All rows are of the same test images and pixels, so that they compare."""

import csv
from pathlib import Path
from typing import Any

from vae.errors import InputError
from vae.params import Params

BOUNDS = ("nll_iw_nats", "nll_iw_nats_stderr", "neg_elbo_nats", "neg_elbo_nats_stderr", "fitted_neg_elbo_nats")
PARTS = ("rate_nats", "distortion_nats", "neg_elbo_grey_nats", "active_units")
SAMPLES = ("frechet_binary", "frechet_binary_stderr", "precision_binary", "recall_binary")
TRAINING_IMAGES = ("frechet_binary_train", "precision_binary_train", "recall_binary_train")
MEASURED = BOUNDS + PARTS + SAMPLES + TRAINING_IMAGES
KEY = ("recipe", "importance_samples", "seed")  # one row for each combination
TEST = ("data_name", "test_images", "evaluate_seed", "binarization_sha256")  # the images and pixels
COLUMNS = (*KEY, *TEST, "parameters", "train_minutes", *MEASURED)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows. Empty if there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(recipe: str, config: Params, parameters: int, seconds: float, *measured: dict[str, Any]) -> Row:
    """A row from the params, the results of the stages (metrics/*.json) and the seconds that the epochs took."""
    values: dict[str, Any] = {name: value for part in measured for name, value in part.items() if name in COLUMNS}
    values |= {"recipe": recipe, "seed": config.train.seed}
    values |= {"data_name": config.data.name, "evaluate_seed": config.evaluate.seed}
    values |= {"parameters": parameters, "train_minutes": seconds / 60}
    return {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}


def put(rows: list[Row], new: Row) -> list[Row]:
    """The rows with `new`, which replaces the row of the same recipe, seed and number of importance samples.
    Raises InputError if `new` was measured on other images or pixels than the rows."""
    for name in TEST:
        if rows and rows[0][name] != new[name]:
            raise InputError(
                f"the evaluation has {name} {new[name]}, and the rows of the leaderboard have {rows[0][name]}, so they "
                "do not compare; evaluate with the data and the evaluate.seed of the recipe"
            )
    kept = [row for row in rows if any(row[name] != new[name] for name in KEY)]
    return sorted([*kept, new], key=lambda row: (row["recipe"], int(row["importance_samples"]), int(row["seed"])))
