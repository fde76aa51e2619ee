"""`make leaderboard`: adds the present results as a row of a recipe, and rewrites the tables of results."""

from vae.runtime import command, files

import json
import shlex
from itertools import pairwise
from pathlib import Path

from vae.errors import InputError
from vae.evaluation import leaderboard
from vae.evaluation import readme as tables
from vae.model import load as load_model
from vae.params import TRAINING, Params, leaves, parse
from vae.tracking.experiments import with_values
from vae.tracking.store import Tag, open_store
from vae.tracking.worktree import git


def main(
    params: Path,
    *,
    recipe: str,
    recipes: Path,
    model: Path,
    evaluation: Path,
    quality: Path,
    run: Path,
    board: Path,
    readme: Path,
    page: Path,
) -> None:
    known = sorted(path.stem for path in recipes.glob("*.sh") if path.stem != "start")
    if recipe not in known:
        raise InputError(f"RECIPE={recipe}: no such recipe; `make leaderboard RECIPE=` one of {', '.join(known)}")
    if not quality.is_file():
        raise InputError(f"{quality}: no such file; `dvc repro quality/dvc.yaml` first")
    samples, run_id = files.read_json(quality), files.read_json(run, run_id=str)["run_id"]
    store = open_store(params)
    recorded, present = store.run_tags(run_id, Tag.MODEL)[Tag.MODEL], files.sha256(model)
    for path, measured in ((quality, samples.get("model_sha256")), (run, recorded)):
        if measured != present:
            raise InputError(
                f"{path} was measured on another model than {model}; `dvc repro && dvc repro quality/dvc.yaml` first"
            )
    text, hashes = store.recorded(run_id, "params.yaml", "hashes.json")
    if json.loads(hashes)[str(evaluation)] != files.sha256(evaluation):
        raise InputError(f"{evaluation} differs from the one recorded in run {run_id}; `dvc repro` first")
    config = parse(text)
    words = shlex.split((recipes / f"{recipe}.sh").read_text(), comments=True)
    changes = dict(word.split("=", 1) for flag, word in pairwise(words) if flag == "-S")
    check(config, with_values(git("show", f"HEAD:./{params}").decode(), changes), run_id, recipe)
    seconds = store.training_seconds(run_id)
    parameters = sum(parameter.numel() for parameter in load_model(model).parameters())
    new = leaderboard.row(recipe, config, parameters, seconds, files.read_json(evaluation), samples)
    if board.is_file():
        files.read_text(board)  # refuses conflict marks
    rows = leaderboard.put(leaderboard.read(board), new)
    files.write_csv(board, leaderboard.COLUMNS, ([row[name] for name in leaderboard.COLUMNS] for row in rows))
    for path, short in ((readme, True), (page, False)):
        path.write_text(tables.insert(path.read_text(), tables.results(rows, short), "results"))
    print(tables.results(rows))


def check(config: Params, expected: Params, run_id: str, recipe: str) -> None:
    """Raises InputError if a run's params make another model than the recipe does, apart from its seed, or score it on
    other pixels."""
    values = leaves(config)
    for name, value in leaves(expected).items():
        if name.startswith((*TRAINING, "evaluate.seed")) and name != "train.seed" and values[name] != value:
            raise InputError(
                f"run {run_id}: {name} is {values[name]}, and {value} in the recipe; `bash recipes/{recipe}.sh` first"
            )


if __name__ == "__main__":
    command.run(main)
