"""Experiments that DVC knows, and their runs. Real experiments: tests/pipeline."""

import json
import subprocess
from pathlib import Path

import pytest

from vae.errors import InputError
from vae.tracking import experiments
from vae.tracking.experiments import Experiment

RESULT = Path("metrics/mlflow.json")


@pytest.fixture
def repository(tmp_path):
    """A repository, and a function that commits a metrics/mlflow.json with this text."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    def commit(text: str) -> None:
        (tmp_path / RESULT).parent.mkdir(exist_ok=True)
        (tmp_path / RESULT).write_text(text)
        git("add", "--all")
        git("commit", "--quiet", "--message", "state")

    git("init", "--quiet")
    return tmp_path, commit


@pytest.mark.parametrize(
    ("text", "run"),
    [(json.dumps({"run_id": "r"}), "r"), ("{}", None), ("not JSON", None), ("<<<<<<< HEAD\n{}\n", None)],
    ids=["a run", "no run", "broken", "conflict marks"],
)
def test_the_run_of_a_revision(repository, text, run):
    root, commit = repository
    commit(text)
    assert experiments.recorded_run(root, "HEAD", RESULT) == run


def test_the_run_of_a_revision_in_a_folder_of_a_larger_repository(repository):
    root, commit = repository
    (root / "project/metrics").mkdir(parents=True)
    (root / "project" / RESULT).write_text('{"run_id": "inner"}')
    commit('{"run_id": "outer"}')
    assert experiments.recorded_run(root / "project", "HEAD", RESULT) == "inner"


def test_a_revision_without_the_file_has_no_run(repository):
    root, commit = repository
    commit("{}")
    assert experiments.recorded_run(root, "HEAD", Path("metrics/other.json")) is None
    assert experiments.recorded_run(root, "no-such-revision", RESULT) is None


def test_a_folder_that_is_no_dvc_repository_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="run from the root of the repository") as caught:
        experiments.experiments(tmp_path, RESULT)
    assert str(tmp_path) in str(caught.value)


def test_experiments_of_all_commits_are_listed_with_their_runs(tmp_path, monkeypatch):
    class Repo:
        """DVC's repository, with three experiments on two commits."""

        def __init__(self, root: str) -> None:
            assert root == str(tmp_path)
            self.experiments = self

        def __enter__(self) -> "Repo":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ls(self, all_commits: bool) -> dict[str, list[tuple[str, str]]]:
            assert all_commits
            return {"base1": [("a", "rev-a"), ("b", "rev-b")], "base2": [("c", "rev-c")]}

    monkeypatch.setattr("dvc.repo.Repo", Repo)
    runs = {"rev-a": "run-a", "rev-c": "run-c"}
    monkeypatch.setattr(experiments, "recorded_run", lambda root, revision, result: runs.get(revision))
    assert experiments.experiments(tmp_path, RESULT) == [
        Experiment("a", "rev-a", "base1", "run-a"),
        Experiment("b", "rev-b", "base1", None),
        Experiment("c", "rev-c", "base2", "run-c"),
    ]
