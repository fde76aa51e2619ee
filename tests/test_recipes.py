"""The recipes are valid changes to the committed params.yaml. `make run` starts the pipeline on reachable data."""

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
    """Writes an executable that replaces another program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def repository(tmp_path):
    """A repository with the recipes and params.yaml, and a `dvc` that prints its arguments."""
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
        assert tree[section][name] != yaml.safe_load(value)  # a recipe lists only changes
        tree[section][name] = yaml.safe_load(value)
    (repository / "changed.yaml").write_text(yaml.safe_dump(tree))
    params.load(repository / "changed.yaml")


def test_every_recipe_is_on_the_leaderboard():
    assert {row["recipe"] for row in leaderboard.read(ROOT / "metrics/leaderboard.csv")} == set(RECIPES)


def test_another_seed_is_another_experiment(repository):
    """Arguments after the recipe come after its own, and dvc takes the last value of an option."""
    words = run(repository, "minute", "--name", "minute-1", "-S", "train.seed=1").stdout.splitlines()
    assert words == ["exp", "run", "--name", "minute", "--name", "minute-1", "-S", "train.seed=1"]


@pytest.mark.parametrize("staged", [False, True])
def test_a_recipe_refuses_a_changed_params_file(repository, staged):
    """Changes that an experiment left behind would become part of the recipe. They are kept."""
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
    """It takes MNIST if it is reachable, else the digits. After any other error it starts nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    program(tmp_path / ".venv/bin/python", f"exit {answer}")
    program(tmp_path / ".venv/bin/dvc", 'echo "$@"')
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # set by `make test`
    done = subprocess.run(["make", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(started)
    assert bool(done.stdout) == bool(started)
    assert (done.returncode == 0) == bool(started)
