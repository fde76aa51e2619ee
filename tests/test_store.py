"""The store: its address, its errors, and the runs in it."""

from vae.runtime import checkpoint
from vae.runtime.repository import state_folder

from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.store.entities import PagedList

from vae.errors import InputError
from vae.tracking import store as stores
from vae.tracking.store import Store, Tag, store_errors, store_uri


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


def test_runs_are_found_by_several_tags_or_by_none(store):
    asked = []
    store.search_runs = lambda _, conditions, page_token: asked.append(conditions) or PagedList([], None)
    store.find()
    store.find({Tag.KEY: "k", Tag.MODEL: "m"})
    assert asked == ["", "tags.`vae.key` = 'k' and tags.`vae.model_sha256` = 'm'"]


def test_no_method_of_the_client_is_replaced():
    """MLflow calls its own methods, and would call the replacements too."""
    own = {name for name in vars(Store) if not name.startswith("__")}
    assert not own & set(dir(MlflowClient))


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
    """A folder with a store. Its schema is made once, because that takes seconds.
    A process was killed while it made the schema before."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "mlflow.db.partial").write_text("half a schema")
    return folder


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


def test_a_killed_process_leaves_no_half_schema(real_store, database):
    assert real_store.find() == []
    assert not (database / "mlflow.db.partial").exists()


def test_a_record_continues_the_run_that_was_left_for_it(real_store, monkeypatch):
    """First an interrupted record of the same state, then the run of the training. Runs of other states stay."""
    monkeypatch.setattr(checkpoint, "training_of", lambda *_: "k")
    assert real_store.to_complete("model", "key") is None
    training(real_store, "FINISHED")
    other = training(real_store, "RUNNING")
    real_store.set_tag(other, Tag.PENDING, "another key")
    assert real_store.to_complete("model", "key") is None
    trained = training(real_store, "KILLED")
    assert real_store.to_complete("model", "key").info.run_id == trained
    left = real_store.create_run(real_store.experiment.experiment_id, tags={Tag.PENDING: "key"}).info.run_id
    assert real_store.to_complete("model", "key").info.run_id == left


def test_a_run_that_lacks_tags_or_does_not_exist_is_one_clear_error(real_store):
    run_id = training(real_store, "RUNNING")
    assert real_store.run_tags(run_id, Tag.TRAINING)[Tag.TRAINING] == "k"
    with pytest.raises(InputError, match=rf"run {run_id} has no git\.commit, vae\.key: it was never completed"):
        real_store.run_tags(run_id, Tag.TRAINING, Tag.COMMIT, Tag.KEY)
    with pytest.raises(InputError, match=r"nonsense: no such run in sqlite.*`make ui` shows the runs"):
        real_store.run_tags("nonsense")


def test_any_number_of_values_can_be_logged(real_store):
    """MLflow limits the number in one request."""
    run_id = training(real_store, "RUNNING")
    params = {f"p.{number}": number for number in range(2 * stores.PARAMS_AT_ONCE + 1)}
    rows = [(step, {"a": float(step), "b": 2.0}) for step in range(stores.METRICS_AT_ONCE)]
    real_store.log_params(run_id, params)
    real_store.log_metrics(run_id, rows)
    assert real_store.get_run(run_id).data.params == {name: str(value) for name, value in params.items()}
    history = real_store.get_metric_history(run_id, "a")
    assert {point.step: point.value for point in history} == {step: row["a"] for step, row in rows}


def test_a_value_that_is_no_number_is_left_out(real_store):
    run_id = training(real_store, "RUNNING")
    real_store.log_metrics(run_id, [(1, {"a": float("nan"), "b": float("inf"), "val_neg_elbo_nats": 2.0})])
    assert set(real_store.get_run(run_id).data.metrics) == {"b", "val_neg_elbo_nats"}
    assert real_store.epochs(run_id) == {1}
