"""The tables of the README and of docs/, which stand between marks and are written from the files in metrics/."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from vae.evaluation.leaderboard import MEASURED, TRAINING_IMAGES, Row

SHORT = ("recipe", "train, minutes", "NLL bound", "K", "seeds", "neg-ELBO", "Fréchet")  # the columns in the README


def insert(page: str, text: str, name: str) -> str:
    """Puts a table between the marks of its name."""
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"


def markdown(lines: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    """A table with these columns. A line without a cell for a column leaves it empty."""
    rows = [list(columns), ["---"] * len(columns), *([line.get(name, "") for name in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def over_seeds(group: list[Row], name: str) -> float:
    """The mean of a column."""
    return mean(float(row[name]) for row in group)


def result(group: list[Row]) -> dict[str, str]:
    """The line of one recipe and one number of importance samples, with means over its seeds."""
    value = {name: over_seeds(group, name) for name in ("train_minutes", *MEASURED)}
    bounds = [float(row["nll_iw_nats"]) for row in group]
    drawn = math.hypot(*(float(row["frechet_binary_stderr"]) for row in group)) / len(group)  # independent by seed
    return {
        "recipe": f"`{group[0]['recipe']}`",
        "parameters": f"{int(group[0]['parameters']):,}",
        "train, minutes": f"{value['train_minutes']:.1f}",
        "NLL bound": f"{value['nll_iw_nats']:.2f} ± {value['nll_iw_nats_stderr']:.2f}",
        "K": group[0]["importance_samples"],
        "seeds": f"{len(group)}, deviation {stdev(bounds):.2f}" if len(group) > 1 else "1",
        "neg-ELBO": f"{value['neg_elbo_nats']:.2f}",
        "test minus training": f"{value['neg_elbo_nats'] - value['fitted_neg_elbo_nats']:.2f}",
        "rate + distortion": f"{value['rate_nats']:.1f} + {value['distortion_nats']:.1f}",
        "grey neg-ELBO": f"{value['neg_elbo_grey_nats']:.2f}",
        "active latents": f"{value['active_units']:.0f}",
        "Fréchet": f"{value['frechet_binary']:.1f} ± {drawn:.1f}",
        "precision, recall": f"{value['precision_binary']:.2f}, {value['recall_binary']:.2f}",
    }


def results(rows: list[Row], short: bool = False) -> str:
    """One line for each recipe and number of importance samples, best bound first.
    The full table ends with the scores that training images get in place of samples."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["importance_samples"]), []).append(row)
    lines = [result(group) for group in sorted(groups.values(), key=lambda group: over_seeds(group, "nll_iw_nats"))]
    columns = SHORT if short else tuple(lines[0])
    if not short:
        frechet, precision, recall = (over_seeds(rows, name) for name in TRAINING_IMAGES)
        lines.append({"recipe": "training images", "Fréchet": f"{frechet:.1f}"})
        lines[-1]["precision, recall"] = f"{precision:.2f}, {recall:.2f}"
    return markdown(lines, columns)


def bounds(values: dict[str, Any]) -> str:
    """The table of metrics/annealing.json: importance-weighted bounds next to the annealed bound.
    A sentence below it says how far apart the annealed bounds from both sides are."""

    def cell(row: dict[str, Any], name: str, digits: int = 2) -> str:
        return f"{row[name]:.{digits}f} ± {row[f'{name}_stderr']:.{digits}f}"

    lines = [
        {
            "K": str(row["importance_samples"]),
            "NLL bound": cell(row, "nll_iw_nats"),
            "above the annealed bound": cell(row, "iw_minus_ais_nats"),
            "effective samples": cell(row, "effective_sample_size", digits=1),
        }
        for row in values["importance_weighted"]
    ]
    columns = tuple(lines[0])
    table = markdown([*lines, {"K": "annealed", "NLL bound": cell(values, "nll_ais_nats")}], columns)
    gap = cell(values, "simulated_gap_nats")
    count = values["images"]
    return f"{table}\n\nOn {count} images that the model made, the annealed bounds from both sides differ by {gap}."
