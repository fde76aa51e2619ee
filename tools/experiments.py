"""`make experiments`: all experiments with their changed params, figures and MLflow runs, the best first."""

from vae.runtime import command

import json
from pathlib import Path
from typing import Any

import yaml

from vae.errors import InputError
from vae.params import NOT_IN_PIPELINE
from vae.tracking.experiments import experiments
from vae.tracking.worktree import git

COLUMNS = ("experiment", "validation", "NLL bound", "K", "neg-ELBO", "MLflow run", "changed")
NO_FIGURES = "without figures"


def main(params: Path, run: Path, *, validation: Path, evaluation: Path) -> None:
    known = [("HEAD", "HEAD"), *((item.name, item.revision) for item in experiments(Path(), run))]
    if any(text("", path) != text("HEAD", path) for path in (params, validation, evaluation)):
        known.insert(0, ("workspace", ""))
    committed = settings(text("HEAD", params))
    groups: dict[str, list[tuple[float, tuple[str, ...]]]] = {}
    for name, revision in known:
        used = settings(text(revision, params))
        found = {key: value for path in (run, validation, evaluation) for key, value in figures(revision, path).items()}
        changed = [f"{key}={value}" for key, value in used.items() if committed.get(key, value) != value]
        groups.setdefault(images(used, found), []).append(row(name, found, changed))
    widths = [max(len(cells[i]) for rows in groups.values() for _, cells in [*rows, (0, COLUMNS)]) for i in range(6)]
    for title, rows in sorted(groups.items(), key=lambda group: (group[0] == NO_FIGURES, group[0])):
        print(f"\n{title}")
        for cells in [COLUMNS, *(cells for _, cells in sorted(rows))]:
            print(" ", "  ".join([*map(str.ljust, cells, widths), cells[-1]]).rstrip())
    if len(groups.keys() - {NO_FIGURES}) > 1:
        print("\nFigures of different groups do not compare: they are of other images or other pixels.")


def text(revision: str, path: Path) -> str:
    """The text of a file in a revision, or in the workspace if none is named. Empty if there is no such file."""
    try:
        return git("show", f"{revision}:./{path}").decode() if revision else path.read_text()
    except (InputError, OSError):
        return ""


def settings(content: str) -> dict[str, Any]:
    """The leaves of a params.yaml that a stage of dvc.yaml uses, also if they are of another version of the schema."""
    tree = yaml.load(content, yaml.BaseLoader) or {}
    sections = {name: keys for name, keys in tree.items() if name not in NOT_IN_PIPELINE and isinstance(keys, dict)}
    return {f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()}


def figures(revision: str, path: Path) -> dict[str, Any]:
    """The values of a JSON file in a revision. Empty if it has none."""
    try:
        return dict(json.loads(text(revision, path)))
    except (ValueError, TypeError):
        return {}


def images(used: dict[str, Any], found: dict[str, Any]) -> str:
    """The images on which figures were measured, in words. Only figures of the same images and pixels compare."""
    if "val_neg_elbo_nats" not in found:
        return NO_FIGURES
    name, pixels = used.get("data.name", "?"), used.get("data.binarization", "?")
    test, digest = found.get("test_images", "no"), str(found.get("binarization_sha256", ""))[:8]
    val = found.get("validation_images", used.get("data.validation", "?"))
    return f"{name} ({pixels}), {test} test images {digest}, {val} validation images"


def row(name: str, found: dict[str, Any], changed: list[str]) -> tuple[float, tuple[str, ...]]:
    """The figure by which rows are sorted, and the cells of a row."""
    val, bound, elbo = (found.get(key) for key in ("val_neg_elbo_nats", "nll_iw_nats", "neg_elbo_nats"))
    shown = "" if bound is None else f"{bound:.2f} ± {found['nll_iw_nats_stderr']:.2f}"
    nats = ["" if value is None else f"{value:.2f}" for value in (val, elbo)]
    count, run = str(found.get("importance_samples", "")), str(found.get("run_id", ""))
    return (float("inf") if val is None else val), (name, nats[0], shown, count, nats[1], run, " ".join(changed))


if __name__ == "__main__":
    command.run(main)
