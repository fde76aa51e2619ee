"""Fixtures: the project after its first `dvc repro`, restored for each test, and a server."""

import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

pytest.register_assert_rewrite("tests.pipeline.project")

from tests.pipeline.postgres import postgres  # noqa: E402 (after the line above)
from tests.pipeline.project import Project, mlflow_server  # noqa: E402


@pytest.fixture(scope="session")
def first(tmp_path_factory) -> Iterator[Project]:
    """The project as it is after its first `dvc repro` and a commit."""
    with pytest.MonkeyPatch.context() as patch:
        # `restore` replaces the database file, so this process must not keep connections to it.
        patch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        project = Project(tmp_path_factory.mktemp("pipeline"))
        project.make()
        started = time.monotonic()
        project.dvc("repro")
        project.first_repro_seconds = time.monotonic() - started
        project.commit()
        project.stop()
        project.keep()
        yield project
        project.stop()


@pytest.fixture
def project(first, monkeypatch) -> Project:
    """The project as it was after its first `dvc repro` and a commit, whatever other tests have done to it."""
    first.restore()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", first.environment["GIT_CONFIG_GLOBAL"])
    monkeypatch.setenv("DVC_ROOT", str(first.folder))  # so that this process queues for the same cores
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first.uri)
    mlflow.set_tracking_uri(first.uri)  # for mlflow's own clients, which remember the last address
    return first


@pytest.fixture
def served(tmp_path) -> Iterator[str]:
    """The address of a new `mlflow server`."""
    folder: Path = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder) as uri:
        yield uri


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The address of a new PostgreSQL database, with its password."""
    with postgres() as address:
        yield address
