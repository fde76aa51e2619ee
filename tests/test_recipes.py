"""The recipes are valid changes to the committed params.yaml. `make run` starts the pipeline on reachable data."""

import os
import re
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
    program(tmp_path / "bin/dvc", """for word in "$@"; do printf "%s\\n" "$word"; done""")
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_options_of_the_user_win(repository, recipe):
    words = run(repository, recipe, "-S", "train.epochs=1").stdout.splitlines()
    assert words[-2:] == ["-S", "train.epochs=1"]


def test_a_second_run_takes_a_free_name(repository):
    """DVC refuses a name that an experiment has, on any commit. A name that the user gives stays."""

    def experiment(name: str) -> None:
        words = ["git", "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD"]
        subprocess.run(words, cwd=repository, check=True)

    experiment("minute-1")
    assert run(repository, "minute").stdout.splitlines() == ["exp", "run", "--name", "minute"]
    experiment("minute")
    said, *words = run(repository, "minute", "-S", "train.seed=1").stdout.splitlines()
    assert said == "there is an experiment minute already, so this one is minute.2"
    assert words == ["exp", "run", "--name", "minute.2", "-S", "train.seed=1"]
    experiment("minute.2")
    assert "minute.3" in run(repository, "minute").stdout.splitlines()
    for option in (["--name", "mine"], ["--name=mine"], ["-n", "mine"]):
        assert run(repository, "minute", *option).stdout.splitlines() == ["exp", "run", "--name", "minute", *option]


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
    # Its line names the folder, as in an environment that was made here.
    program(tmp_path / ".venv/bin/dvc", f'echo "$@"  # {tmp_path.resolve()}/.venv/bin/python')
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # set by `make test`
    done = subprocess.run(["make", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(started)
    assert bool(done.stdout) == bool(started)
    assert (done.returncode == 0) == bool(started)


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make, without what `make test` sets."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | variables
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("zip", r"not a git repository.*git init && git add --all && git commit"),
        ("no commit", r"git clone.*git init && git add --all && git commit"),
        ("no git", r"git: command not found.*git clone"),
        ("owner", r"dubious ownership.*git config --global --add safe\.directory .*project"),
    ],
)
def test_a_folder_that_git_does_not_know_is_said_before_the_set_up(tmp_path, kind, words):
    """The set-up takes minutes, and DVC works only in a git repository with a commit."""
    project = tmp_path / "a project"
    project.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    program(tmp_path / "bin/python3", f"touch '{tmp_path}/started'; exit 9")
    variables = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C"}
    if kind in ("no commit", "owner"):
        subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    if kind == "owner":
        variables |= {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1", "GIT_CONFIG_COUNT": "0"}
    if kind == "no git":
        for name in ("bash", "make", "tr", "sed", "touch"):
            (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "/none")
        variables["PATH"] = str(tmp_path / "bin")
    done = make(project, "setup", **variables)
    assert done.returncode
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert re.search(words, line)
    assert ("safe.directory" in line) == (kind == "owner")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("configured", [True, False])
def test_commits_of_dvc_have_an_author_even_if_git_has_none(tmp_path, configured):
    """By `make run`, and in a terminal that has sourced .venv/bin/activate. The user's own identity comes first."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", "dvc.yaml"):
        (tmp_path / name).touch()
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in ("init --quiet", "add --all", "commit --quiet --message base"):
        subprocess.run(["git", *identity, *command.split()], cwd=tmp_path, check=True)
    if configured:
        for setting in ("user.name", "user.email"):
            subprocess.run(["git", "config", setting, "mine"], cwd=tmp_path, check=True)
    told = 'echo "${GIT_COMMITTER_NAME:-none} ${GIT_COMMITTER_EMAIL:-none}"'
    # The stand-in for `python -m venv` makes an environment whose python does nothing, and whose dvc is the test's.
    venv = "\n".join(["mkdir -p .venv/bin", "echo : > .venv/bin/activate", "cp bin/python bin/dvc .venv/bin"])
    program(tmp_path / "bin/python3", venv)
    program(tmp_path / "bin/python", "exit 0")
    program(tmp_path / "bin/dvc", told)
    expected = "none none" if configured else "vae-pipeline vae-pipeline@localhost"
    done = make(tmp_path, "run", PYTHON=str(tmp_path / "bin/python3"))
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr
    command = ["bash", "-euc", f"source .venv/bin/activate; {told}"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout.strip() == expected
