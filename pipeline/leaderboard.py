"""Puts the present results into the leaderboard as a row of a recipe, and the leaderboard into the README."""

import hashlib
import json
from pathlib import Path

from vae import command, leaderboard, model, tracking
from vae.errors import InputError
from vae.params import load


def main(
    params: Path, evaluation: Path, quality: Path, run: Path, weights: Path, board: Path, readme: Path, recipe: str
) -> None:
    """Adds or replaces the row of a recipe and its seed."""
    config = load(params)
    samples = json.loads(quality.read_text())
    if samples["model_sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise InputError(f"{quality}: of another model than {weights}; run `dvc repro quality/dvc.yaml` first")
    store = tracking.Store(Path(), config.track.experiment)
    seconds = store.training_seconds(json.loads(run.read_text())["run_id"])
    parameters = sum(parameter.numel() for parameter in model.load(weights).parameters())
    measured = json.loads(evaluation.read_text()), samples
    new = leaderboard.row(recipe, config.train.seed, parameters, seconds, *measured)
    rows = leaderboard.put(leaderboard.read(board), new)
    leaderboard.write(rows, board)
    readme.write_text(leaderboard.insert(readme.read_text(), leaderboard.table(rows)))
    print(leaderboard.table(rows))


if __name__ == "__main__":
    command.run(main)
