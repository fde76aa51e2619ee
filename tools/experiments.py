"""`make experiments`: all experiments with their changed params, figures and MLflow runs, the best first."""

from vae.runtime import command

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from vae.tracking.experiments import content, experiments, settings
from vae.tracking.worktree import git

COLUMNS = ("experiment", "validation", "NLL bound", "K", "neg-ELBO", "MLflow run", "changed")
NO_FIGURES = "without figures"


def main(params: Path, run: Path, *, validation: Path, evaluation: Path) -> None:
    revisions = {"HEAD": "HEAD"} | {item.name: item.revision for item in experiments(Path(), run)}
    if git("diff", "--name-only", "HEAD", "--", *map(str, (params, validation, evaluation))):
        revisions["workspace"] = ""
    committed, groups = settings("HEAD", params), defaultdict(list)
    for name, revision in revisions.items():
        used = settings(revision, params)
        found = {key: value for path in (run, validation, evaluation) for key, value in content(revision, path).items()}
        changed = " ".join(f"{key}={value}" for key, value in used.items() if committed.get(key, value) != value)
        val, elbo, bound = (found.get(key) for key in ("val_neg_elbo_nats", "neg_elbo_nats", "nll_iw_nats"))
        shown = f"{nats(bound)} ± {nats(found.get('nll_iw_nats_stderr'))}" if bound else ""
        count, run_id = (found.get(key, "") for key in ("importance_samples", "run_id"))
        cells = (name, nats(val), shown, count, nats(elbo), run_id, changed)
        groups[images(used, found) if val else NO_FIGURES].append((float(val or math.inf), cells))
    widths = [max(len(cells[i]) for rows in groups.values() for _, cells in [*rows, (0, COLUMNS)]) for i in range(6)]
    for title, rows in sorted(groups.items(), key=lambda group: (group[0] == NO_FIGURES, group[0])):
        print(f"\n{title}")
        for cells in [COLUMNS, *(cells for _, cells in sorted(rows))]:
            print(" ", "  ".join([*map(str.ljust, cells, widths), cells[-1]]).rstrip())
    if len(groups.keys() - {NO_FIGURES}) > 1:
        print("\nFigures of different groups do not compare: they are of other images or other pixels.")


def nats(value: str | None) -> str:
    return f"{float(value):.2f}" if value else ""


def images(used: dict[str, Any], found: dict[str, Any]) -> str:
    """The images on which figures were measured, in words. Only figures of the same images and pixels compare."""
    test = f"{found.get('test_images', 'no')} test images {found.get('binarization_sha256', '')[:8]}"
    val = found.get("validation_images", used.get("data.validation"))
    return f"{used.get('data.name')} ({used.get('data.binarization')}), {test}, {val} validation images"


if __name__ == "__main__":
    command.run(main)
