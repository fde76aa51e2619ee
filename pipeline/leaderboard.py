"""Puts the present results into the leaderboard as a row of a recipe, and the leaderboard into the README."""

import json
from pathlib import Path

from vae import command, leaderboard, model, tracking
from vae.errors import InputError
from vae.params import load


def main(
    params: Path, evaluation: Path, quality: Path, run: Path, weights: Path, board: Path, readme: Path, recipe: str
) -> None:
    """Adds or replaces the row of a recipe and its seed."""
    if not recipe:
        raise InputError("no recipe is named; `make leaderboard RECIPE=ten-minutes`")
    config = load(params)
    samples, run_id = json.loads(quality.read_text()), json.loads(run.read_text())["run_id"]
    store = tracking.Store(Path(), config.track.experiment)
    recorded = store.run_tags(run_id, "vae.model_sha256")["vae.model_sha256"]
    model_sha256 = tracking.file_sha256(weights)
    for path, measured in ((quality, samples["model_sha256"]), (run, recorded)):
        if measured != model_sha256:
            raise InputError(
                f"{path}: of another model than {weights}; `dvc repro && dvc repro quality/dvc.yaml` first"
            )
    seconds = store.training_seconds(run_id)
    parameters = sum(parameter.numel() for parameter in model.load(weights).parameters())
    bounds = json.loads(evaluation.read_text())
    new = leaderboard.row(recipe, config.train.seed, parameters, seconds, bounds, samples)
    rows = leaderboard.put(leaderboard.read(board), new)
    leaderboard.write(rows, board)
    readme.write_text(leaderboard.insert(readme.read_text(), leaderboard.table(rows)))
    print(leaderboard.table(rows))


if __name__ == "__main__":
    command.run(main)
