"""A store of many runs: `track` sends as many statements to it as to a store of a few."""

import sqlite3
from contextlib import closing, contextmanager

import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from bench.load import multiply
from vae.tracking.store import Store, Tag

FEW, MANY = 20, 1200  # the second is more than a page of a search
MODEL, KEY = "a" * 64, "b" * 64


@contextmanager
def counted():
    """The SQL statements that a block sends."""
    sent: list[str] = []

    def note(_connection, _cursor, statement, *_) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """A store with one whole run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    store = Store(tmp_path, "vae")
    tags = {Tag.KEY: KEY, Tag.MODEL: MODEL, Tag.TRAINING: "training"}
    run_id = store.create_run(store.experiment.experiment_id, tags=tags).info.run_id
    store.log_params(run_id, {"train.seed": 0})
    store.log_metrics(run_id, [(1, {"val_neg_elbo_nats": 90.0})])
    store.set_terminated(run_id, "FINISHED")
    (tmp_path / ".checkpoints").mkdir(exist_ok=True)
    (tmp_path / f".checkpoints/{MODEL}.training").write_text("another training")
    return store


def look_up(store: Store) -> None:
    """Everything that `track` asks about the runs of the store."""
    (found,) = store.find({Tag.KEY: KEY})
    assert store.to_complete(MODEL, "c" * 64) is None
    store.discard_live(MODEL)
    assert store.epochs(found.info.run_id) == {1}


def test_track_asks_a_large_store_as_often_as_a_small_one(store, tmp_path):
    (run,) = store.find()
    multiply(tmp_path / "mlflow.db", run.info.run_id, FEW)
    assert len(store.find()) == FEW + 1
    with counted() as few:
        look_up(store)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid != ?", (run.info.run_id,))
    multiply(tmp_path / "mlflow.db", run.info.run_id, MANY)
    assert len(store.find()) == MANY + 1
    with counted() as many:
        look_up(store)
    assert 0 < len(many) == len(few)
    clones = MlflowClient(store.uri).search_runs([store.experiment.experiment_id], f"tags.`{Tag.KEY}` = '{KEY}7'")
    assert len(clones) == 1
    assert clones[0].data.metrics == run.data.metrics
    assert clones[0].data.params == run.data.params
