"""The store: its address, its errors, and the runs in it."""

from vae.runtime import checkpoint
from vae.runtime.repository import state_folder

from types import SimpleNamespace

import pytest
from mlflow.store.entities import PagedList

from vae.errors import InputError
from vae.tracking import store as stores
from vae.tracking.observer import OpenRun
from vae.tracking.record import add_experiment
from vae.tracking.store import Store, Tag, experiment_names, store_errors, store_uri


def test_the_store_is_in_the_main_repository_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    for uri, store in [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:///mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"),  # not in the copy of a temporary experiment
        ("sqlite:////else/where.db", "sqlite:////else/where.db"),
    ]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store_uri(tmp_path) == store


@pytest.fixture
def store():
    """A store without a connection. Each test gives it the methods that it needs."""
    empty = object.__new__(Store)
    empty.uri, empty.experiment = "sqlite:///mlflow.db", SimpleNamespace(experiment_id="1")
    return empty


def test_runs_are_found_beyond_the_first_page(store):
    pages = {None: ["a", "b"], "1": ["c"], "2": []}

    def search_runs(experiments, conditions, page_token):
        assert (experiments, conditions) == (["1"], "tags.`vae.key` = 'k'")
        following = {None: "1", "1": "2", "2": None}[page_token]
        return PagedList(pages[page_token], following)

    store.search_runs = search_runs
    assert store.find({Tag.KEY: "k"}) == ["a", "b", "c"]


def test_seconds_of_a_training_are_of_all_its_epochs(store):
    """Each epoch counts once, even if it was logged twice. If one is missing, the seconds are not known."""
    history = {"epoch_seconds": [(1, 2.0), (2, 3.0), (2, 3.5)], "val_neg_elbo_nats": [(1, 90.0), (2, 80.0)]}
    tags = {"vae.model_sha256": "m"}
    run = SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(tags=tags))
    store.get_run = lambda _: run
    store.search_runs = lambda *_, **__: PagedList([run], None)
    store.get_metric_history = lambda _, name: [
        SimpleNamespace(step=step, value=value) for step, value in history[name]
    ]
    assert store.training_seconds("r") == 5.5
    history["val_neg_elbo_nats"].append((3, 70.0))
    with pytest.raises(InputError, match=r"followed every epoch.*dvc repro --force train"):
        store.training_seconds("r")


def test_a_file_that_cannot_be_written_is_not_the_fault_of_the_uri():
    with pytest.raises(OSError, match="No space") as caught, store_errors("sqlite:///mlflow.db"):
        raise OSError(28, "No space left on device", "mlartifacts/model")
    assert caught.value.filename == "mlartifacts/model"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"), store_errors("http://127.0.0.1:9"):
        raise ConnectionError("refused")


def test_a_store_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 0.1)
    with stores.store_lock(tmp_path):
        (held,) = state_folder(tmp_path).iterdir()
        with pytest.raises(InputError, match=rf"{held}: held by another process"):
            Store(tmp_path, "vae")
    with stores.store_lock(tmp_path):
        pass


def test_a_store_that_cannot_be_opened_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one " * 10)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI") as caught:
        Store(tmp_path, "vae")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A folder with a store. Its schema is made once, because that takes seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def real_store(database, monkeypatch, request):
    """A real store, with an experiment for this test alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database / 'mlflow.db'}")
    return Store(database, request.node.name)


def training(store, status):
    """The id of a run that followed the training `k`."""
    run = store.create_run(store.experiment.experiment_id, tags={Tag.TRAINING: "k"})
    if status != "RUNNING":
        store.set_terminated(run.info.run_id, status)
    return run.info.run_id


def test_a_training_that_starts_again_logs_no_epoch_twice(real_store, database, root):
    """It may resume from a checkpoint, or start again from the beginning."""
    row = {"epoch": 1, "val_neg_elbo_nats": 100.0, "lr": 0.1}
    first = OpenRun(root / "params.yaml", database, "twice")
    first.log(row, 1.0)
    again = OpenRun(root / "params.yaml", database, "twice")
    again.log(row, 2.0)
    again.log(row | {"epoch": 2}, 2.0)
    assert again.run_id == first.run_id
    for name in ("val_neg_elbo_nats", "epoch_seconds"):
        history = real_store.get_metric_history(first.run_id, name)
        assert [point.step for point in history] == [1, 2]


def test_runs_that_ended_before_their_time_are_unfinished(real_store):
    ended = {status: training(real_store, status) for status in ("RUNNING", "FAILED", "KILLED", "FINISHED")}
    assert {run.info.run_id for run in real_store.unfinished("k")} == set(ended.values()) - {ended["FINISHED"]}


def test_only_an_open_run_is_discarded(real_store, monkeypatch):
    ended = {status: training(real_store, status) for status in ("RUNNING", "FAILED", "FINISHED")}
    monkeypatch.setattr(checkpoint, "training_of", lambda *_: "k")
    real_store.discard_live("of its model")
    assert {run.info.run_id for run in real_store.find()} == {ended["FAILED"], ended["FINISHED"]}


def test_an_experiment_that_was_deleted_is_an_error(real_store, database):
    real_store.delete_experiment(real_store.experiment.experiment_id)
    with pytest.raises(InputError, match=r"is deleted; restore it, or change track\.experiment"):
        Store(database, real_store.experiment.name)


def test_a_state_has_the_names_of_all_its_experiments(real_store, monkeypatch):
    run_id = training(real_store, "FINISHED")
    for name in ("one", "two", "one"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        add_experiment(real_store, real_store.get_run(run_id))
    assert experiment_names(real_store.get_run(run_id)) == {"one", "two"}
