"""The results table: rows of metrics/leaderboard.csv, and how the README shows them."""

import csv
from pathlib import Path
from typing import Any

COLUMNS = (
    "recipe",
    "train_minutes",
    "importance_samples",
    "nll_iw_nats",
    "nll_iw_nats_stderr",
    "neg_elbo_nats",
    "neg_elbo_nats_stderr",
    "rate_nats",
    "distortion_nats",
    "neg_elbo_grey_nats",
    "active_units",
)


def read(path: Path) -> dict[str, dict[str, str]]:
    """The rows by recipe; none where there is no file yet."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["recipe"]: row for row in csv.DictReader(file)}


def row(recipe: str, evaluation: dict[str, Any], seconds: float) -> dict[str, str]:
    """A row from metrics/evaluation.json and the seconds that the epochs took."""
    values = {name: evaluation[name] for name in COLUMNS if name in evaluation}
    text = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return {"recipe": recipe, "train_minutes": f"{seconds / 60:.2f}"} | text


def table(rows: dict[str, dict[str, str]]) -> str:
    """The rows as a Markdown table, the best bound first."""
    lines = [
        "| recipe | train, minutes | NLL bound (K) | neg-ELBO | rate + distortion | grey neg-ELBO | active latents |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in sorted(rows.values(), key=lambda item: float(item["nll_iw_nats"])):
        bound = f"{float(item['nll_iw_nats']):.2f} ± {float(item['nll_iw_nats_stderr']):.2f}"
        bound += f" (K={item['importance_samples']})"
        elbo = f"{float(item['neg_elbo_nats']):.2f} ± {float(item['neg_elbo_nats_stderr']):.2f}"
        parts = f"{float(item['rate_nats']):.1f} + {float(item['distortion_nats']):.1f}"
        grey = f"{float(item['neg_elbo_grey_nats']):.2f}"
        cells = [f"`{item['recipe']}`", item["train_minutes"], bound, elbo, parts, grey, item["active_units"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(readme: str, text: str, name: str = "results") -> str:
    """Puts a table between the marks of its name."""
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    head, _, rest = readme.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"
