"""Puts the present results into the leaderboard as the row of a recipe, and the leaderboard into the README."""

import csv
import json
from pathlib import Path

from vae import command, leaderboard, tracking
from vae.params import load


def main(params: Path, evaluation: Path, run: Path, board: Path, readme: Path, recipe: str) -> None:
    """Adds or replaces a recipe's row."""
    store = tracking.Store(Path(), load(params).track.experiment)
    seconds = store.training_seconds(json.loads(run.read_text())["run_id"])
    rows = leaderboard.read(board)
    rows[recipe] = leaderboard.row(recipe, json.loads(evaluation.read_text()), seconds)
    with board.open("w", newline="") as file:
        writer = csv.DictWriter(file, leaderboard.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    readme.write_text(leaderboard.insert(readme.read_text(), leaderboard.table(rows)))
    print(leaderboard.table(rows))


if __name__ == "__main__":
    command.run(main)
