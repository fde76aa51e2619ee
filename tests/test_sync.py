"""A state is recorded from its files, without running anything again. Real pipelines: tests/pipeline."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from vae.errors import InputError
from vae.tracking import sync
from vae.tracking.experiments import Experiment

RESULT = Path("metrics/mlflow.json")
TRACK = ["dvc", "repro", "--single-item", "--force", "track"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder, the answers of `dvc status` in it, and the commands that are run."""
    (tmp_path / RESULT).parent.mkdir()
    (tmp_path / RESULT).write_text('{"run_id": "r"}')
    answers, done = [{}], []

    def execute(command, folder, environment=None):
        if command[:2] == ["dvc", "status"]:
            return json.dumps(answers.pop(0) if len(answers) > 1 else answers[0]).encode()
        done.append((command, folder, environment))
        return b""

    monkeypatch.setattr(sync, "execute", execute)
    return tmp_path, answers, done


def deleted(stage: str, path: str) -> dict:
    return {stage: [{"changed outs": {path: "deleted"}}], "track": [{"changed deps": {path: "deleted"}}]}


def test_a_state_whose_files_are_there_is_recorded(project):
    folder, answers, done = project
    answers[:] = [{"track": [{"changed deps": {"plots": "modified"}}]}]  # `track` has not run yet
    assert sync.track(folder, RESULT, "it", "dvc pull", {"A": "b"}) == "r"
    assert done == [(TRACK, folder, {"A": "b"})]


def test_missing_files_come_from_the_cache(project):
    folder, answers, done = project
    answers[:] = [deleted("train", "models/vae"), {}]
    sync.track(folder, RESULT, "it", "dvc pull")
    assert [command for command, _, _ in done] == [["dvc", "checkout", "models/vae"], TRACK]


def test_files_that_the_cache_lacks_are_named(project, monkeypatch):
    folder, answers, done = project
    answers[:] = [
        {"download": [{"changed outs": {"data": "not in cache"}}], "train": [{"changed deps": {"data": "deleted"}}]}
    ]
    execute = sync.execute

    def fail(command, folder, environment=None):
        if command[1] == "checkout":
            raise InputError("failed")
        return execute(command, folder, environment)

    monkeypatch.setattr(sync, "execute", fail)
    with pytest.raises(
        InputError, match=r"^it: DVC's cache lacks data; `dvc pull` brings them from a remote, `dvc repro` makes them$"
    ):
        sync.track(folder, RESULT, "it", "dvc pull")
    assert done == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"changed deps": {"params.yaml": {"evaluate": "modified"}}}, "evaluate: changed deps params.yaml"),
        ({"changed deps": {"pipeline/evaluate.py": "deleted"}}, "evaluate: changed deps pipeline/evaluate.py"),
        ("changed command", "evaluate: changed command"),
    ],
)
def test_results_of_other_code_or_parameters_are_not_recorded(project, changes, named):
    folder, answers, done = project
    answers[:] = [{"evaluate": [changes]}]
    with pytest.raises(InputError, match=r"no results of this code and these parameters; `dvc repro`") as caught:
        sync.track(folder, RESULT, "it", "dvc pull")
    assert named in str(caught.value)
    assert done == []


def test_an_experiment_and_a_commit_are_recorded_in_a_tree_of_their_own(project, monkeypatch):
    """The files of the experiment are uncommitted changes of its baseline there."""
    folder, _, done = project

    @contextmanager
    def tree(root, name, commit, keep):
        done.append(("tree", root, name, commit, keep))
        yield folder

    monkeypatch.setattr(sync, "worktree", tree)
    monkeypatch.setattr(sync, "git", lambda *words, folder: done.append((words, folder)))
    assert sync.record_again(Path("/root"), Experiment("mine", "revision", "baseline", None), RESULT) == "r"
    names = {"DVC_ROOT": "/root", "DVC_EXP_NAME": "mine", "DVC_EXP_BASELINE_REV": "baseline"}
    assert done == [
        ("tree", Path("/root"), "record-mine", "baseline", False),
        (("checkout", "revision", "--", "."), folder),
        (("reset", "--quiet", "--intent-to-add"), folder),
        (TRACK, folder, names),
    ]
    done.clear()
    assert sync.record_again(Path("/root"), "0123456789", RESULT) == "r"
    assert done == [
        ("tree", Path("/root"), "record-0123456789", "0123456789", False),
        (TRACK, folder, {"DVC_ROOT": "/root"}),
    ]
