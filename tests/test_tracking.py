"""What identifies a state, what separates a tree from its commit, where runs are kept. Whole runs: test_pipeline."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.store.entities import PagedList

from vae import checkpoint, tracking
from vae.errors import InputError


@pytest.fixture
def state(tmp_path, root):
    shutil.copy(root / "params.yaml", tmp_path / "params.yaml")
    for name in (
        "data/images",
        "models/vae",
        "metrics/train.csv",
        "metrics/evaluation.json",
        "plots/a.png",
        "samples/b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    places = ("params.yaml", "data", "models/vae", "metrics/train.csv", "metrics/evaluation.json", "plots", "samples")
    return tracking.State(*(tmp_path / place for place in places))


def test_the_key_changes_with_every_file_and_param_and_with_nothing_else(state):
    keys = {state.key()}
    assert state.key() in keys
    for path in (state.model, state.curves, state.evaluation, state.plots / "a.png", state.data / "images"):
        path.write_text("changed")
        assert state.key() not in keys
        keys.add(state.key())
    text = state.params.read_text()
    state.params.write_text(f"# a comment\n{text}")
    assert state.key() in keys
    state.params.write_text(text.replace("experiment: vae", "experiment: other"))
    assert state.key() in keys  # where it is recorded does not say what it is
    assert "step_size: 0.3" in text
    state.params.write_text(text.replace("step_size: 0.3", "step_size: 0.4"))
    assert state.key() in keys  # no stage reads it
    for own in ("searched: 1000", "shift: 1"):  # of quality/dvc.yaml, which makes none of these files
        assert own in text
        state.params.write_text(text.replace(own, f"{own}0"))
        assert state.key() in keys
    state.params.write_text(text.replace("seed: 0", "seed: 1"))
    assert state.key() not in keys


def test_the_diff_has_changes_and_new_files_and_leaves_out_outputs(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=tmp_path, check=True
        )

    monkeypatch.chdir(tmp_path)
    for name in ("code.py", "plots/old.png", "dvc.lock", ".gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("ignored\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    outputs = [Path("plots"), Path("metrics/train.csv")]
    assert tracking.working_tree_diff(outputs) == b""
    (tmp_path / "metrics").mkdir()
    for name in ("plots/old.png", "plots/new.png", "dvc.lock", "metrics/mlflow.json", "ignored"):
        (tmp_path / name).write_text("output\n")
    assert tracking.working_tree_diff(outputs) == b""
    objects = list((tmp_path / ".git/objects").rglob("*"))
    (tmp_path / "code.py").write_text("changed\n")
    (tmp_path / "new.py").write_bytes(b"caf\xe9\r\n")  # neither UTF-8 nor the line ends of this system
    diff = tracking.working_tree_diff(outputs)
    assert b"+changed" in diff
    assert b"+caf\xe9\r\n" in diff
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], cwd=tmp_path, capture_output=True, text=True)
    assert staged.stdout == ""  # the user's index is as it was
    assert list((tmp_path / ".git/objects").rglob("*")) == objects  # and no copy of a new file stays behind

    for setting in ("diff.noprefix", "color.ui=always", "diff.external=true"):
        name, _, value = setting.partition("=")
        git("config", name, value or "true")
    assert tracking.working_tree_diff(outputs) == diff
    (tmp_path / "inner").mkdir()
    subprocess.run(["git", "init", "--quiet", "inner"], cwd=tmp_path, check=True)  # without a commit: git cannot add it
    assert tracking.working_tree_diff(outputs) == diff


def test_the_store_is_in_the_main_repository_unless_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.store_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    for uri, store in [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:///mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"),  # not in the copy of a temporary experiment
        ("sqlite:////else/where.db", "sqlite:////else/where.db"),
    ]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking.store_uri(tmp_path) == store


@pytest.fixture
def store():
    """A store with a client of the test's own."""
    empty = object.__new__(tracking.Store)
    empty.uri, empty.experiment = "sqlite:///mlflow.db", SimpleNamespace(experiment_id="1")
    empty.client = SimpleNamespace()
    return empty


def test_runs_are_found_beyond_the_first_page(store):
    pages = {None: ["a", "b"], "1": ["c"], "2": []}

    def search_runs(experiments, conditions, page_token):
        assert (experiments, conditions) == (["1"], "tags.`vae.key` = 'k'")
        following = {None: "1", "1": "2", "2": None}[page_token]
        return PagedList(pages[page_token], following)

    store.client.search_runs = search_runs
    assert store.find(vae__key="k") == ["a", "b", "c"]


def test_seconds_of_a_training_are_of_all_its_epochs(store):
    """Each epoch once, though it may have been logged twice; and none at all where the store was away for a while."""
    history = {"epoch_seconds": [(1, 2.0), (2, 3.0), (2, 3.5)], "val_neg_elbo_nats": [(1, 90.0), (2, 80.0)]}
    tags = {"vae.model_sha256": "m"}
    run = SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(tags=tags))
    store.client.get_run = lambda _: run
    store.client.search_runs = lambda *_, **__: PagedList([run], None)
    store.client.get_metric_history = lambda _, name: [
        SimpleNamespace(step=step, value=value) for step, value in history[name]
    ]
    assert store.training_seconds("r") == 5.5
    history["val_neg_elbo_nats"].append((3, 70.0))
    with pytest.raises(InputError, match=r"followed every epoch.*dvc repro --force train"):
        store.training_seconds("r")


def test_a_file_that_cannot_be_written_is_not_the_fault_of_the_uri():
    with pytest.raises(OSError, match="No space") as caught, tracking.reported("sqlite:///mlflow.db"):
        raise OSError(28, "No space left on device", "mlartifacts/model")
    assert caught.value.filename == "mlartifacts/model"
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"), tracking.reported("http://127.0.0.1:9"):
        raise ConnectionError("refused")


def test_a_store_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
    with tracking.store_lock(tmp_path):
        (held,) = (tmp_path / checkpoint.FOLDER).iterdir()
        with pytest.raises(InputError, match=rf"{held}: held by another process"), tracking.store_lock(tmp_path):
            pytest.fail("two hold it")
    with tracking.store_lock(tmp_path):
        pass


def test_a_store_that_cannot_be_opened_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one " * 10)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI") as caught:
        tracking.Store(tmp_path, "vae")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A folder with a store, whose schema takes a while."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def real_store(database, monkeypatch, request):
    """An experiment of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database / 'mlflow.db'}")
    return tracking.Store(database, request.node.name)


def training(store, status):
    """The id of a run that followed the training `k`."""
    run = store.client.create_run(store.experiment.experiment_id, tags={"vae.training": "k"})
    if status != "RUNNING":
        store.client.set_terminated(run.info.run_id, status)
    return run.info.run_id


def test_a_training_that_starts_again_logs_no_epoch_twice(real_store, database, root):
    """Whether it goes on from a checkpoint or from the start."""
    row = {"epoch": 1, "val_neg_elbo_nats": 100.0, "lr": 0.1}
    first = tracking.LiveRun(root / "params.yaml", database, "twice")
    first.log(row, 1.0)
    again = tracking.LiveRun(root / "params.yaml", database, "twice")
    again.log(row, 2.0)
    again.log(row | {"epoch": 2}, 2.0)
    assert again.run_id == first.run_id
    for name in ("val_neg_elbo_nats", "epoch_seconds"):
        history = real_store.client.get_metric_history(first.run_id, name)
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
    real_store.client.delete_experiment(real_store.experiment.experiment_id)
    with pytest.raises(InputError, match=r"is deleted; restore it, or change track\.experiment"):
        tracking.Store(database, real_store.experiment.name)


def test_a_state_has_the_names_of_all_its_experiments(real_store, monkeypatch):
    run_id = training(real_store, "FINISHED")
    for name in ("one", "two", "one"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        tracking.add_experiment(real_store, real_store.client.get_run(run_id))
    assert tracking.experiment_names(real_store.client.get_run(run_id)) == {"one", "two"}


def test_the_training_rate_is_not_the_test_rate():
    epoch, values = tracking.curve_point({"epoch": "2", "rate_nats": "20.5", "lr": "0.1"})
    assert (epoch, values) == (2, {"train_rate_nats": 20.5, "lr": 0.1})
