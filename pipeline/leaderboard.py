"""Puts the present results into the leaderboard as a row of a recipe, and the leaderboard into the README."""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import yaml

from vae import command, leaderboard, model, tracking
from vae.errors import InputError
from vae.params import Params, leaves, load, parse

MAKES = ("data", "model", "train")  # the sections of params.yaml that a model is made by


def main(
    params: Path,
    evaluation: Path,
    quality: Path,
    run: Path,
    weights: Path,
    board: Path,
    readme: Path,
    recipes: Path,
    recipe: str,
) -> None:
    """Adds or replaces the row of a recipe and its seed."""
    known = sorted(path.stem for path in recipes.glob("*.sh") if path.stem != "start")
    if recipe not in known:
        raise InputError(f"RECIPE={recipe}: no such recipe; `make leaderboard RECIPE=` one of {', '.join(known)}")
    if not quality.is_file():
        raise InputError(f"{quality}: no such file; `dvc repro quality/dvc.yaml` first")
    samples, run_id = json.loads(quality.read_text()), json.loads(run.read_text())["run_id"]
    store = tracking.Store(Path(), load(params).track.experiment)
    recorded = store.run_tags(run_id, "vae.model_sha256")["vae.model_sha256"]
    model_sha256 = tracking.file_sha256(weights)
    for path, measured in ((quality, samples["model_sha256"]), (run, recorded)):
        if measured != model_sha256:
            raise InputError(
                f"{path}: of another model than {weights}; `dvc repro && dvc repro quality/dvc.yaml` first"
            )
    text, hashes = store.recorded(run_id, "params.yaml", "hashes.json")
    if json.loads(hashes)[str(evaluation)] != tracking.file_sha256(evaluation):
        raise InputError(f"{evaluation}: not what run {run_id} has; `dvc repro` first")
    config = parse(text)
    check(config, of_recipe(tracking.git("show", f"HEAD:{params}").decode(), recipes / f"{recipe}.sh"), run_id, recipe)
    seconds = store.training_seconds(run_id)
    parameters = sum(parameter.numel() for parameter in model.load(weights).parameters())
    bounds = json.loads(evaluation.read_text())
    new = leaderboard.row(recipe, config.train.seed, parameters, seconds, bounds, samples)
    rows = leaderboard.put(leaderboard.read(board), new)
    leaderboard.write(rows, board)
    readme.write_text(leaderboard.insert(readme.read_text(), leaderboard.table(rows)))
    print(leaderboard.table(rows))


def of_recipe(committed: str, recipe: Path) -> Params:
    """The params of a recipe: the committed ones, and what its `-S` change."""
    tree = yaml.load(committed, yaml.BaseLoader)
    for flag, word in pairwise(shlex.split(recipe.read_text(), comments=True)):
        if flag == "-S":
            key, _, value = word.partition("=")
            section, _, name = key.partition(".")
            tree[section][name] = yaml.load(value, yaml.BaseLoader)
    return parse(yaml.safe_dump(tree))


def check(config: Params, expected: Params, run_id: str, recipe: str) -> None:
    """Raises InputError where a run's params make another model than the recipe does, but for its seed."""
    ours, theirs = leaves(config), leaves(expected)
    for name, value in theirs.items():
        if name.partition(".")[0] in MAKES and name != "train.seed" and ours[name] != value:
            raise InputError(
                f"run {run_id}: {name} is {ours[name]}, and {value} in the recipe; `bash recipes/{recipe}.sh` first"
            )


if __name__ == "__main__":
    command.run(main)
