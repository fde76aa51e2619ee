"""The recipes: each the committed params.yaml and valid changes to it; and what `make run` starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from vae import params
from vae.evaluation import leaderboard

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.sh") if path.stem != "start")


def program(path: Path, body: str) -> None:
    """An executable in the place of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def repository(tmp_path):
    """A commit of the recipes and params.yaml, with a `dvc` that says how it was called."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    program(tmp_path / "bin/dvc", """for word in "$@"; do echo "$word"; done""")
    for command in ("init --quiet", "add params.yaml", "commit --quiet --message base"):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def run(repository: Path, recipe: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{repository / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(repository / f"recipes/{recipe}.sh"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_one_experiment_with_valid_params(repository, recipe):
    words = run(repository, recipe).stdout.splitlines()
    assert words[:4] == ["exp", "run", "--name", recipe]
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for flag, change in zip(words[4::2], words[5::2], strict=True):
        key, _, value = change.partition("=")
        section, _, name = key.partition(".")
        assert flag == "-S"
        assert tree[section][name] != yaml.safe_load(value)  # it says no more than what it changes
        tree[section][name] = yaml.safe_load(value)
    (repository / "changed.yaml").write_text(yaml.safe_dump(tree))
    params.load(repository / "changed.yaml")


def test_the_recipes_are_those_of_the_leaderboard():
    assert {row["recipe"] for row in leaderboard.read(ROOT / "metrics/leaderboard.csv")} == set(RECIPES)


def test_another_seed_is_another_experiment(repository):
    """What is given after the recipe comes after its name, and dvc takes the last."""
    words = run(repository, "minute", "--name", "minute-1", "-S", "train.seed=1").stdout.splitlines()
    assert words == ["exp", "run", "--name", "minute", "--name", "minute-1", "-S", "train.seed=1"]


@pytest.mark.parametrize("staged", [False, True])
def test_what_an_experiment_left_behind_goes_into_no_recipe(repository, staged):
    path = repository / "params.yaml"
    path.write_text(path.read_text().replace("augmentation: 0 ", "augmentation: 0.6 "))
    if staged:
        subprocess.run(["git", "add", "params.yaml"], cwd=repository, check=True)
    left = path.read_text()
    assert "0.6" in left
    done = run(repository, "minute")
    assert (done.returncode, done.stdout) == (1, "")
    assert "git restore" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_text() == left


@pytest.mark.parametrize(
    ("answer", "started"),
    [(0, "repro"), (3, "exp run -S data.name=digits -S train.batch_size=64 -S train.epochs=60"), (1, "")],
    ids=["reachable", "unreachable", "an error in params.yaml"],
)
def test_make_run(tmp_path, answer, started):
    """MNIST where it can be had, the digits where it cannot, and neither where something else is wrong."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    program(tmp_path / ".venv/bin/python", f"exit {answer}")
    program(tmp_path / ".venv/bin/dvc", 'echo "$@"')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(["make", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(started)
    assert bool(done.stdout) == bool(started)
    assert (done.returncode == 0) == bool(started)
