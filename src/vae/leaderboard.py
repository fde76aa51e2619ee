"""The results table: rows of metrics/leaderboard.csv, and how the README shows them."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

MEASURED = (
    "nll_iw_nats",
    "nll_iw_nats_stderr",
    "neg_elbo_nats",
    "neg_elbo_nats_stderr",
    "fitted_neg_elbo_nats",
    "rate_nats",
    "distortion_nats",
    "neg_elbo_grey_nats",
    "active_units",
    "frechet_binary",
    "frechet_binary_stderr",
    "precision_binary",
    "recall_binary",
    "frechet_binary_train",
    "precision_binary_train",
    "recall_binary_train",
)
KEY = ("recipe", "importance_samples", "seed")  # one row each
COLUMNS = (*KEY, "parameters", "train_minutes", *MEASURED)
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes the rows, which `read` gives back."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def row(recipe: str, seed: int, parameters: int, seconds: float, *measured: dict[str, Any]) -> Row:
    """A row from what the stages measured (metrics/*.json), and the seconds that the epochs took."""
    values: dict[str, Any] = {name: value for part in measured for name, value in part.items() if name in COLUMNS}
    values |= {"recipe": recipe, "seed": seed, "parameters": parameters, "train_minutes": seconds / 60}
    return {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}


def put(rows: list[Row], new: Row) -> list[Row]:
    """The rows with one more, in the place of that of the same recipe, seed and number of importance samples."""
    kept = [row for row in rows if any(row[name] != new[name] for name in KEY)]
    return sorted([*kept, new], key=lambda row: (row["recipe"], int(row["importance_samples"]), int(row["seed"])))


def table(rows: list[Row]) -> str:
    """A line for each recipe and number of importance samples, means over its seeds, the best bound first; then one for
    training images in the place of samples."""
    lines = [
        "| recipe | parameters | train, minutes | NLL bound | K | seeds | neg-ELBO | test minus training "
        "| rate + distortion | grey neg-ELBO | active latents | Fréchet | precision, recall |",
        f"|{'---|' * 13}",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["importance_samples"]), []).append(row)

    def over_seeds(group: list[Row], name: str) -> float:
        return mean(float(row[name]) for row in group)

    for group in sorted(groups.values(), key=lambda group: over_seeds(group, "nll_iw_nats")):
        value = {name: over_seeds(group, name) for name in ("train_minutes", *MEASURED)}
        bounds = [float(row["nll_iw_nats"]) for row in group]
        drawn = math.hypot(*(float(row["frechet_binary_stderr"]) for row in group)) / len(group)  # apart for each seed
        cells = [
            f"`{group[0]['recipe']}`",
            f"{int(group[0]['parameters']):,}",
            f"{value['train_minutes']:.1f}",
            f"{value['nll_iw_nats']:.2f} ± {value['nll_iw_nats_stderr']:.2f}",
            group[0]["importance_samples"],
            f"{len(group)}, deviation {stdev(bounds):.2f}" if len(group) > 1 else "1",
            f"{value['neg_elbo_nats']:.2f}",
            f"{value['neg_elbo_nats'] - value['fitted_neg_elbo_nats']:.2f}",
            f"{value['rate_nats']:.1f} + {value['distortion_nats']:.1f}",
            f"{value['neg_elbo_grey_nats']:.2f}",
            f"{value['active_units']:.0f}",
            f"{value['frechet_binary']:.1f} ± {drawn:.1f}",
            f"{value['precision_binary']:.2f}, {value['recall_binary']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    reached = {name: over_seeds(rows, f"{name}_binary_train") for name in ("frechet", "precision", "recall")}
    cells = [""] * 10 + [f"{reached['frechet']:.1f}", f"{reached['precision']:.2f}, {reached['recall']:.2f}"]
    lines.append(f"| training images | {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(readme: str, text: str, name: str = "results") -> str:
    """Puts a table between the marks of its name."""
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"
