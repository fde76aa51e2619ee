"""The store: its address, its errors, and the runs in it."""

from vae.runtime import checkpoint
from vae.runtime.files import sha256
from vae.runtime.repository import state_folder

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities import PagedList
from sqlalchemy import create_engine, text

from tests import faults
from vae.errors import InputError
from vae.tracking import address
from vae.tracking import store as stores
from vae.tracking.address import store_errors
from vae.tracking.experiments import commits
from vae.tracking.places import local_path
from vae.tracking.store import CHAMPION_METRIC, Store, Tag


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
    assert asked == ["tags.`vae.group` IS NULL", "tags.`vae.key` = 'k' and tags.`vae.model_sha256` = 'm'"]


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


def test_an_experiment_that_another_machine_has_just_created_is_used(store, tmp_path):
    there = []

    def create(name, artifacts):
        if name == "refused":
            raise MlflowException("no room", error_code=INTERNAL_ERROR)
        there.append(SimpleNamespace(name=name, lifecycle_stage="active"))
        raise MlflowException("it exists", error_code=RESOURCE_ALREADY_EXISTS)

    store.root, store.create_experiment = tmp_path, create
    store.get_experiment_by_name = lambda name: next((item for item in there if item.name == name), None)
    assert store._experiment("vae") is there[0]
    with pytest.raises(MlflowException, match="no room"):
        store._experiment("refused")


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


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "postgresql://u:secret@127.0.0.1:9/db"])
def test_a_database_that_does_not_answer_is_asked_once(tmp_path, monkeypatch, uri):
    """MLflow would ask ten times, for minutes."""
    asked = []

    def refuse(asked_uri, **_):
        asked.append(asked_uri)
        raise ConnectionError(f"{asked_uri} refused")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(address, "create_engine", refuse)
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(InputError, match="refused; check MLFLOW_TRACKING_URI") as caught:
        Store(tmp_path, "vae")
    assert len(asked) == 1
    assert "secret" not in str(caught.value)


def test_an_experiment_of_databricks_needs_a_path(store):
    store.uri = "databricks"
    with pytest.raises(InputError, match=r"track\.experiment: Databricks needs a path such as /Shared/vae, got 'vae'"):
        store._experiment("vae")


def test_the_commits_of_a_run():
    def made(**tags: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(tags={getattr(Tag, name): value for name, value in tags.items()}))

    assert commits(made()) == set()
    assert commits(made(COMMIT="a", DIRTY="true")) == set()
    assert commits(made(COMMIT="a", DIRTY="false", COMMITS="b,c")) == {"a", "b", "c"}


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
    params = {f"p.{number}": number for number in range(201)}
    rows = [(step, {"a": float(step), "b": 2.0}) for step in range(1000)]
    real_store.log_params(run_id, params)
    real_store.log_metrics(run_id, rows)
    assert real_store.get_run(run_id).data.params == {name: str(value) for name, value in params.items()}
    history = real_store.get_metric_history(run_id, "a")
    assert {point.step: point.value for point in history} == {step: row["a"] for step, row in rows}


def test_the_metric_that_chooses_models_is_the_first_of_a_run(real_store):
    """MLflow's page that compares runs opens with the first metric that they have."""
    run_id = real_store.create_run(real_store.experiment.experiment_id).info.run_id
    for epoch in (1, 2):
        real_store.log_metrics(run_id, [(epoch, {"train_neg_elbo_nats": 3.0, CHAMPION_METRIC: 2.0, "lr": 1.0})])
    assert next(iter(real_store.get_run(run_id).data.metrics)) == CHAMPION_METRIC


def test_a_value_that_is_no_number_is_left_out(real_store):
    run_id = training(real_store, "RUNNING")
    real_store.log_metrics(run_id, [(1, {"a": float("nan"), "b": float("inf"), "val_neg_elbo_nats": 2.0})])
    assert set(real_store.get_run(run_id).data.metrics) == {"b", "val_neg_elbo_nats"}
    assert real_store.epochs(run_id) == {1}


@pytest.mark.parametrize(
    "address", ["sqlite:///named.db?timeout=60", "sqlite+pysqlite:///named.db", "sqlite:///new folder/named.db"]
)
def test_a_new_store_is_at_its_address(tmp_path, monkeypatch, address):
    """Also if the current folder is another one, as in a temporary experiment."""
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    made = Store(tmp_path / "root", "team/vae")
    assert made.experiment.artifact_location == (tmp_path / "root/mlartifacts").as_uri()
    (file,) = tmp_path.rglob("named.db*")
    assert file.is_relative_to(tmp_path / "root")
    assert Store(tmp_path / "root", "team/vae").experiment.experiment_id == made.experiment.experiment_id


def test_a_store_of_an_older_mlflow_is_one_line_with_the_whole_cure(database, real_store, monkeypatch, tmp_path):
    """The version that MLflow finds is in the database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    shutil.copy(database / "mlflow.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(InputError, match=r"made by an older MLflow.*\.backup'`, then `mlflow db upgrade") as caught:
        Store(tmp_path, "vae")
    assert f'"sqlite:///{tmp_path / "mlflow.db"}"' in str(caught.value)


@pytest.fixture
def whole(real_store, tmp_path):
    """A store with a run that has every file of a record, and its model."""
    weights, sent = tmp_path / "vae.safetensors", tmp_path / "sent"
    weights.write_text("weights")
    tags = {Tag.MODEL: sha256(weights), Tag.KEY: "k"}
    run_id = real_store.create_run(real_store.experiment.experiment_id, tags=tags).info.run_id
    hashes = {"models/vae.safetensors": sha256(weights)}
    real_store.log_artifact(run_id, str(weights), "models")
    for name in stores.INPUTS:
        real_store.log_text(run_id, "", name)
    real_store.log_dict(run_id, hashes, "hashes.json")
    for name in ("MLmodel", "code/vae/model.py", "artifacts/vae.safetensors"):
        (sent / name).parent.mkdir(parents=True, exist_ok=True)
        (sent / name).write_text("weights")
    model = real_store.create_logged_model(real_store.experiment.experiment_id, "model", source_run_id=run_id)
    real_store.log_model_artifacts(model.model_id, str(sent))
    real_store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    real_store.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return real_store.get_run(run_id), f"models:/{model.model_id}", local_path(model.artifact_location)


def test_a_record_with_all_its_files_has_lost_nothing(real_store, whole):
    run, uri, _ = whole
    assert real_store.lost(run) == []
    assert real_store.model_of(run) == uri


@pytest.mark.parametrize(
    ("damaged", "lost"),
    [
        ("hashes.json", "hashes.json"),
        ("params.yaml", "params.yaml"),
        ("working-tree.diff", "working-tree.diff"),
        ("models/vae.safetensors", "models/vae.safetensors"),
        ("models", "models/vae.safetensors"),
        ("", "hashes.json"),
    ],
)
def test_a_record_that_has_lost_a_file(real_store, whole, damaged, lost):
    """It was deleted by hand, or with the whole folder."""
    run, _, _ = whole
    path = local_path(run.info.artifact_uri) / damaged
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert real_store.lost(run) == [lost]


@pytest.mark.parametrize(("name", "text"), [("hashes.json", "{"), ("models/vae.safetensors", "other")])
def test_a_record_with_a_damaged_file(real_store, whole, name, text):
    run, _, _ = whole
    (local_path(run.info.artifact_uri) / name).write_text(text)
    assert real_store.lost(run) == [name]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MLmodel", None),
        ("code/vae/model.py", None),
        ("artifacts/vae.safetensors", None),
        ("artifacts/vae.safetensors", "o"),
    ],
)
def test_a_model_with_lost_or_damaged_files_cannot_be_loaded(real_store, whole, name, text):
    run, uri, folder = whole
    assert real_store.loads(uri)
    (folder / name).write_text(text) if text else (folder / name).unlink()
    assert not real_store.loads(uri)
    assert real_store.lost(run) == ["the model to serve"]


def test_a_model_that_is_deleted_or_not_whole_cannot_be_loaded(real_store, whole):
    run, uri, _ = whole
    begun = real_store.create_logged_model(real_store.experiment.experiment_id, "model", source_run_id=run.info.run_id)
    assert not real_store.loads(f"models:/{begun.model_id}")
    real_store.delete_logged_model(uri.rpartition("/")[2])
    assert not real_store.loads(uri)


def test_a_model_of_another_origin_is_judged_by_its_description(real_store, whole):
    _, uri, folder = whole
    real_store.delete_tag(whole[0].info.run_id, Tag.MODEL)
    shutil.rmtree(folder / "code")
    assert real_store.loads(uri)
    (folder / "MLmodel").unlink()
    assert not real_store.loads(uri)


def test_a_run_of_a_surrounding_system_stays_as_it_is(real_store, database, monkeypatch, capsys):
    """MLflow would write the state into it."""
    foreign = real_store.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    Store(database, real_store.experiment.name)
    assert "MLflow: not used: MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME;" in capsys.readouterr().err
    assert not {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"} & set(os.environ)


def test_models_are_registered_where_the_user_says(real_store, database, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path / 'models.db'}")
    store = Store(database, real_store.experiment.name)
    store.create_registered_model("mine")
    assert [model.name for model in store.search_registered_models()] == ["mine"]
    assert not [model.name for model in real_store.search_registered_models() if model.name == "mine"]


@pytest.mark.parametrize("answer", faults.ANSWERS)
def test_a_server_that_answers_wrongly_is_one_line_in_a_bounded_time(tmp_path, monkeypatch, answer):
    """Also one that asks to come back in ten minutes, or sends a byte now and then."""
    monkeypatch.setenv("STORE_PATIENCE", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with faults.wrong_server(answer) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(InputError, match=rf"MLflow store {uri}: .+; .+") as caught:
            Store(tmp_path, "vae")
    assert "\n" not in str(caught.value)
    if answer in ("429", "503", "hangs", "drips"):
        assert "gave up after 3 s; the next start records what is missing, and STORE_PATIENCE=" in str(caught.value)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_patience_that_is_no_time_is_one_clear_error(tmp_path, monkeypatch, given):
    monkeypatch.setenv("STORE_PATIENCE", given)
    with pytest.raises(InputError, match=f"STORE_PATIENCE={given}: not a number of seconds"):
        Store(tmp_path, "vae")


def test_the_end_of_patience_is_not_swallowed_by_a_library(real_store, monkeypatch):
    """And the lock is free again."""
    monkeypatch.setenv("STORE_PATIENCE", "0.2")

    def work() -> None:
        with store_errors("here"), stores.store_lock(real_store.root):
            while True:
                with suppress(Exception):
                    time.sleep(60)

    with pytest.raises(InputError, match=r"gave up after 0\.2 s"):
        work()
    with stores.store_lock(real_store.root):
        pass


def test_a_locked_database_is_waited_for(real_store, database):
    """Longer than the time that MLflow sets: both connections and statements have a time of our own."""
    client = Store(database, real_store.experiment.name)
    with create_engine(client.uri).connect() as connection:
        for asked in (None, "PRAGMA busy_timeout = 20000;"):  # a new connection, and a session of MLflow
            if asked:
                connection.execute(text(asked))
            (milliseconds,) = connection.execute(text("PRAGMA busy_timeout")).one()
            assert milliseconds == 1000 * address.LOCKED_SECONDS > 120_000
    with faults.locked(database / "mlflow.db", 1.0):
        client.create_run(client.experiment.experiment_id)
    assert len(client.find()) == 1


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("database is locked", "another process holds it"),
        ("database or disk is full", "make room"),
        ("attempt to write a readonly database", "make the file and its folder writable"),
        ("database disk image is malformed", "the file is damaged"),
    ],
)
def test_an_error_of_sqlite_names_the_way_out(said, cure):
    with pytest.raises(InputError, match=f"{said}; {cure}"), store_errors("sqlite:///mlflow.db"):
        raise sqlite3.OperationalError(said)


def test_a_schema_that_is_not_finished_is_not_left_behind(tmp_path, monkeypatch):
    """It was interrupted, or the disk was full."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.__init__", stop)
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path, "vae")
    assert [path.name for path in tmp_path.iterdir() if path.name != ".checkpoints"] == []
