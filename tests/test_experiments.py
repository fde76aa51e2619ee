"""Experiments that DVC knows, and their runs. Real experiments: tests/pipeline."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tools import doctor, which
from vae.errors import InputError
from vae.tracking import experiments
from vae.tracking.experiments import Experiment
from vae.tracking.store import Store, Tag

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


def run_of(run_id: str, *names: str) -> SimpleNamespace:
    """An MLflow run that these experiments have reached."""
    info = SimpleNamespace(run_id=run_id, run_name=names[0], status="FINISHED")
    return SimpleNamespace(info=info, data=SimpleNamespace(tags={Tag.EXPERIMENTS: ",".join(names), Tag.KEY: run_id}))


def test_a_run_belongs_to_the_experiments_that_hold_it():
    """`dvc exp run --force` gives a name another run, and an experiment whose run was deleted is known by its name."""
    minute, lost = Experiment("minute", "r", "b", "new"), Experiment("lost", "r", "b", "deleted")
    renamed = Experiment("renamed", "r", "b", "old")
    known, stored = [minute, lost, renamed], {"new", "old", "again"}
    assert experiments.experiments_of(run_of("new", "minute"), known, stored) == [minute]
    assert experiments.experiments_of(run_of("old", "minute"), known, stored) == [renamed]
    assert experiments.experiments_of(run_of("again", "lost"), known, stored) == [lost]


@pytest.mark.parametrize(("held", "answer"), [("old", ["old"]), ("gone", ["new", "old"])])
def test_which_prefers_the_run_that_the_experiment_holds(root, monkeypatch, capsys, held, answer):
    class Found:
        """A store that finds all runs, whatever it is asked for."""

        experiment = SimpleNamespace(experiment_id="1")

        def search_runs(self, *_: object) -> list:
            return [run_of("new", "minute"), run_of("old", "minute"), run_of("other", "minute-1")]

    monkeypatch.setattr(which, "open_store", lambda *_: Found())
    monkeypatch.setattr(which, "experiments", lambda *_: [Experiment("minute", "r", "b", held)])
    which.main(root / "params.yaml", RESULT, "minute")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == answer
    assert all("is DVC experiment minute;" in line for line in lines)


def test_which_without_a_name_says_how_to_name(root):
    with pytest.raises(InputError, match=r"^nothing is named; `make which NAME="):
        which.main(root / "params.yaml", RESULT, " ")


def test_which_finds_a_run_by_any_name(root, tmp_path, monkeypatch, capsys):
    """A name is a part of the search in MLflow, in which some of its characters have another meaning."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setattr(which, "experiments", lambda *_: [])
    names = ["a'b", 'a"b', "a,b", "axb", "c'd;e$(x)", "50%", "500"]
    store = Store(tmp_path, "vae")
    for name in names:
        store.create_run(store.experiment.experiment_id, run_name=name)
    for name in names:
        which.main(root / "params.yaml", RESULT, name)
        (line,) = capsys.readouterr().out.splitlines()
        assert f"({name}, RUNNING)" in line


class Task(NamedTuple):
    """A task of DVC's queue."""

    stash_rev: str
    name: str | None


class Queue:
    """DVC's queue: a task of a live worker, and two whose workers are gone. One of these had no folder yet."""

    def __init__(self, folder: Path) -> None:
        self.experiments, self.celery_queue, self.folder = self, self, folder
        folder.joinpath("dead456.json").write_text(json.dumps({"root_dir": "/a copy"}))

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def iter_active(self) -> list[Task]:
        return [Task("alive45", "alive"), Task("dead456", "it's,dead"), Task("unnamed456", None)]

    def worker_status(self) -> dict[str, list[dict]]:
        return {"one": [{"args": [{"stash_rev": "alive45"}]}], "idle": []}

    def get_infofile_path(self, revision: str) -> str:
        return str(self.folder / f"{revision}.json")


def test_a_task_without_a_worker_is_named_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("dvc.repo.Repo", lambda _: Queue(tmp_path))
    assert experiments.abandoned(tmp_path) == []  # nothing was ever queued
    (tmp_path / experiments.TASKS).mkdir(parents=True)
    assert experiments.abandoned(tmp_path) == [("it's,dead", "/a copy"), ("unnamed", "")]
    monkeypatch.chdir(tmp_path)
    named, unnamed = doctor.queue(doctor.Here(Path("params.yaml"), RESULT, mend=False))
    assert """`dvc queue kill 'it'"'"'s,dead'`, then `rm -rf '/a copy'`, then run the experiment again""" in named.text
    assert "`dvc queue kill unnamed`, then run" in unnamed.text
    assert named.left


@pytest.mark.parametrize(("every", "looked_at"), [(False, 2), (True, 3)])
def test_the_doctor_looks_at_the_files_of_the_newest_runs(tmp_path, monkeypatch, every, looked_at):
    """A store can have thousands of runs. The doctor says how many it looked at."""
    seen = []
    here = doctor.Here(Path("params.yaml"), RESULT, mend=False, every=every)
    runs = [run_of(name, name) for name in ("third", "second", "first")]
    lost = SimpleNamespace(find=lambda: runs, lost=lambda run: seen.append(run.info.run_id) or [])
    here.__dict__.update(store=lost, known=[], root=tmp_path)
    monkeypatch.setattr(doctor.worktree, "head", lambda: "head")
    monkeypatch.setattr(doctor, "NEWEST", 2)
    said = list(doctor.damaged(here))
    assert seen == ["third", "second", "first"][:looked_at]
    assert [(item.text.split(";")[0], item.left) for item in said] == [
        ("only the newest 2 of 3 runs were searched for lost files", False)
    ][: 3 - looked_at]
