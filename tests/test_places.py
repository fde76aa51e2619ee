"""The places of files in a store whose folder was moved, copied or mounted elsewhere."""

from vae.runtime.repository import address

import os
import shutil
from pathlib import Path

import pytest

from vae.tracking.places import local_path, settle, strayed
from vae.tracking.store import Store, Tag


@pytest.fixture
def said(capsys):
    """The lines about places since the last call."""
    return lambda: [line for line in capsys.readouterr().err.splitlines() if line.startswith("MLflow: ")]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A project with an empty store, at a path with all kinds of letters."""
    root = tmp_path_factory.mktemp("made") / "my project é%20"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")  # the file is copied below
        Store(root, "vae")
    return root


@pytest.fixture
def project(tmp_path, empty, monkeypatch, said):
    """A project with a store, and in it a run with a file, at a path that was used before."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    root = tmp_path / "first é%20"
    shutil.copytree(empty, root)
    file = root / "mlflow.db"
    settle(file, root, mend=True)
    store = Store(root, "vae")
    logged(store, "old")
    said()
    return root


def logged(store: Store, text: str) -> str:
    """The id of a new run with a file."""
    run_id = store.create_run(store.experiment.experiment_id, tags={Tag.PLACE: address(store.root)}).info.run_id
    store.log_text(run_id, text, "note.txt")
    return run_id


def notes(store: Store) -> dict[str, Path]:
    """The path of the file of every run, by its text."""
    paths = [local_path(run.info.artifact_uri) / "note.txt" for run in store.find()]
    return {path.read_text(): path for path in paths}


def test_a_moved_store_finds_its_files_and_keeps_new_ones_here(project, tmp_path, said):
    """It says so once. A move back works too, as between a machine and a container."""
    moved = tmp_path / "second place"
    for source, target in ((project, moved), (moved, project)):
        source.rename(target)
        store = Store(target, "vae")
        was, now = source / "mlartifacts", target / "mlartifacts"
        assert said()[-1:] == [f"MLflow: the store was moved; its files were in {was}, now in {now}"]
        logged(store, str(target))
        assert all(path.is_relative_to(target / "mlartifacts") for path in notes(store).values())
        assert {run.data.tags[Tag.PLACE] for run in store.find()} == {address(target)}
        assert not source.exists()
        Store(target, "vae")
        assert said() == []
    assert set(notes(store)) == {"old", str(moved), str(project)}


def test_a_copy_is_named_and_changed_only_on_demand(project, tmp_path, said):
    """The original keeps its files. What only the original has stays there."""
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    later = logged(Store(project, "vae"), "later")
    shutil.copy(project / "mlflow.db", copy)
    store = Store(copy, "vae")
    assert "`make doctor MEND=1` keeps them here" in said()[-1]
    assert strayed(copy / "mlflow.db", copy) == [project / "mlartifacts"]
    assert all(path.is_relative_to(project) for path in notes(store).values())
    settle(copy / "mlflow.db", copy, mend=True)
    found = notes(Store(copy, "vae"))
    assert found["old"].is_relative_to(copy)
    assert found["later"].is_relative_to(project / "mlartifacts" / later)
    assert strayed(copy / "mlflow.db", copy) == []
    assert all(path.is_relative_to(project) for path in notes(Store(project, "vae")).values())


def test_a_folder_that_has_two_names_is_not_moved(project, tmp_path, said):
    """The old name is a link to the folder."""
    moved = tmp_path / "moved"
    project.rename(moved)
    os.symlink(moved, project)
    assert strayed(moved / "mlflow.db", moved) == []
    Store(moved, "vae")
    assert said() == []


def test_a_store_outside_of_the_project_is_not_touched(project, tmp_path, monkeypatch, said):
    """Several projects share it, perhaps on several machines."""
    shared = tmp_path / "shared.db"
    shutil.copy(project / "mlflow.db", shared)
    before = shared.read_bytes()
    shutil.rmtree(project)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    Store(other, "vae")
    assert said() == []
    assert shared.read_bytes() == before


def test_the_path_of_a_place():
    assert local_path("file:///a%20b/c%2520") == Path("/a b/c%20")
    assert local_path("/a b") == Path("/a b")
    assert [local_path(place) for place in ("s3://bucket/x", "mlflow-artifacts:/1", "")] == [None] * 3
