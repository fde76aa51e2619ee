"""The search: what it refuses, and how workers share a study. Whole searches: tests/pipeline."""

import json
import shutil
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from vae import params
from vae.errors import InputError
from vae.tracking import search
from vae.tracking.store import Tag

GOOD = {
    "study": "s",
    "trials": 3,
    "seed": 0,
    "startup": 2,
    "pruning": True,
    "set": {"train.epochs": "2"},
    "space": {
        "train.learning_rate": {"low": 1e-05, "high": 0.1, "log": True},
        "model.latent_dim": {"low": 2, "high": 8, "step": 2},
        "model.channels": ["[2, 3]", "[4, 8]"],
        "train.schedule": ["constant", "cosine"],
    },
}


@pytest.fixture
def load(tmp_path, root):
    """Reads a search.yaml with these changes."""

    def read(**changes: object):
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(GOOD | changes))
        return search.load(tmp_path / "search.yaml", params.load(root / "params.yaml"))

    return read


def test_the_space_has_the_types_of_params_yaml(load):
    found, space = load()
    assert found.set == {"train.epochs": "2"}
    assert space["train.learning_rate"] == optuna.distributions.FloatDistribution(1e-05, 0.1, log=True)
    assert space["model.latent_dim"] == optuna.distributions.IntDistribution(2, 8, step=2)
    assert space["model.channels"] == optuna.distributions.CategoricalDistribution(["[2, 3]", "[4, 8]"])


def test_the_committed_search_is_valid(root):
    found, space = search.load(root / "search.yaml", params.load(root / "params.yaml"))
    assert found.space.keys() == space.keys() != set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"train.speed": ["1"]}}, "train.speed: unknown key"),
        ({"space": {"data.name": ["digits"]}}, "space: data.name: only model.* and train.*"),
        ({"space": {"model.latent_dim": {"low": 1, "high": 8}}}, "model.latent_dim: input should be greater"),
        ({"space": {"train.schedule": ["cosine", "linear"]}}, "train.schedule: input should be 'constant'"),
        ({"space": {"train.learning_rate": {"low": 1, "high": 0.1}}}, "space: train.learning_rate: "),
        ({"space": {"train.learning_rate": {"low": 0.1, "hihg": 1}}}, "space: train.learning_rate: "),
        (
            {"space": {"train.learning_rate": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}},
            "train.learning_rate: ",
        ),
        ({"space": {"train.learning_rate": []}}, "space: train.learning_rate: "),
        ({"space": {"train.learning_rate": 0.1}}, "space.train.learning_rate"),
        ({"set": {"train.epochs": "0"}}, "train.epochs: input should be greater"),
        ({"set": {"model.encoder": "[2, 3"}}, "model.encoder: [2, 3 is not valid YAML"),
        ({"trials": 0}, "trials: Input should be greater"),
        ({"trails": 3}, "trails: Extra inputs are not permitted"),
        ({"study": "a,b"}, "study: String should match"),
    ],
)
def test_a_wrong_search_is_one_line_that_names_the_key(load, changes, message):
    with pytest.raises(InputError) as caught:
        load(**changes)
    assert message in str(caught.value)
    assert "search.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without studies. It is made once, because that takes seconds."""
    path = tmp_path_factory.mktemp("study") / "study.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    return path


@pytest.fixture
def worker(empty, tmp_path, root, monkeypatch):
    """Makes a worker of a clone. Its trials, and what it writes to MLflow, are replaced."""
    shutil.copy(empty, tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setattr(search, "Store", lambda *_: SimpleNamespace(uri="sqlite:///x.db", root=tmp_path))
    monkeypatch.setattr(search.sweep, "parent", lambda *_: None)
    monkeypatch.setattr(search, "revision", lambda *_: None)
    monkeypatch.setenv(search.ADDRESS, f"sqlite:///{tmp_path / 'study.db'}")

    def make(clone: str = "a", remote: str = "", **changes: object) -> search.Worker:
        monkeypatch.setattr(search.repository, "address", lambda _: clone)
        (tmp_path / "search.yaml").write_text(yaml.safe_dump(GOOD | changes))
        return search.Worker(root / "params.yaml", tmp_path / "search.yaml", root / "metrics/validation.json", remote)

    return make


def states(worker: search.Worker) -> list[str]:
    return [trial.state.name for trial in worker.study.get_trials()]


def test_workers_share_the_trials_of_a_study(worker):
    """Each is taken once, with values of its own."""
    one, two = worker("a"), worker("b")
    trials = [one.claim(), two.claim(), one.claim()]
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert len({json.dumps(trial.params) for trial in trials}) == 3
    assert states(one) == ["RUNNING"] * 3
    for trial in trials:
        two.study.tell(trial.number, 1.0)
    assert one.claim() is two.claim() is None


def test_a_trial_of_a_killed_worker_of_this_clone_is_taken_again_at_once(worker):
    taken = worker("a").claim()
    worker("b")  # another clone leaves it alone
    again = worker("a")
    assert states(again) == ["FAIL", "WAITING"]
    assert again.claim().params == taken.params
    assert search.original(again.study.get_trials()[1]) == taken.number
    assert [again.claim().number, again.claim().number] == [2, 3]  # three trials in all, not counting the killed one


def test_a_trial_of_a_silent_worker_is_taken_by_another_one(worker, monkeypatch):
    monkeypatch.setattr(search, "BEAT_SECONDS", 1)
    monkeypatch.setattr(search, "SILENT_SECONDS", 1)
    silent, other = worker("a", trials=1), worker("b", trials=1)
    taken, again = silent.claim(), other.claim()  # waits until the first one is silent for long
    assert again.params == taken.params
    assert states(other) == ["FAIL", "RUNNING"]
    silent.study.tell(taken, 1.0, skip_if_finished=True)  # as `work` does: it is not its trial any more
    assert states(other) == ["FAIL", "RUNNING"]


def test_more_trials_go_on_with_the_same_study(worker):
    for trials in (1, 3, 2):
        more = worker(trials=trials)
        while trial := more.claim():
            more.study.tell(trial, state=TrialState.PRUNED)
        assert states(more) == ["PRUNED"] * max(trials, len(states(more)))
    assert len(states(more)) == 3


@pytest.mark.parametrize("changes", [{"space": {"train.schedule": ["cosine"]}}, {"set": {"train.epochs": "3"}}])
def test_another_space_or_other_parameters_need_another_study(worker, changes):
    worker()
    with pytest.raises(InputError, match="study s has another space or other parameters"):
        worker(**changes)
    worker(study="t", **changes)


def test_experiments_of_the_same_name_are_no_trials(worker, monkeypatch):
    monkeypatch.setattr(search, "revision", lambda _, name: "0123" if name == "s-*" else None)
    with pytest.raises(InputError, match="give this one a new name"):
        worker()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:////dev/null/study.db", "/dev/null"),
        ("postgresql+nodriver://me:secret@127.0.0.1:9/vae", "nodriver"),
        ("http://127.0.0.1:9", "Can't load plugin"),
        ("nonsense", "neither a database nor a server"),
    ],
)
def test_a_wrong_database_is_one_line_without_the_password(worker, monkeypatch, address, message):
    monkeypatch.setenv(search.ADDRESS, address)
    with pytest.raises((InputError, OSError)) as caught:
        worker()
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_cannot_share_the_database_of_mlflow(worker, tmp_path, monkeypatch):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('of mlflow')")
    monkeypatch.setenv(search.ADDRESS, f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(InputError, match=r"a study needs a database of its own, not MLflow's$"):
        worker()


@pytest.mark.parametrize("remote", ["no-such-remote", "http://me:secret@127.0.0.1:9/vae.git", "--all"])
def test_a_wrong_remote_is_one_line_before_the_first_trial(worker, remote):
    with pytest.raises(InputError, match=r"^PUSH=.*`git remote --verbose` lists the remotes$") as caught:
        worker(remote=remote)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("statuses", [["KILLED"], ["RUNNING", "KILLED"], ["", "RUNNING", "KILLED"]])
def test_a_pruned_trial_waits_for_the_observer_of_its_training(worker, monkeypatch, statuses):
    """Otherwise a run that is late would not say why its training was ended."""
    one, asked = worker(), iter(statuses)
    monkeypatch.setattr(search.time, "sleep", lambda _: None)

    def find(_tags: dict[str, str]) -> list[SimpleNamespace]:
        status = next(asked)
        return [SimpleNamespace(info=SimpleNamespace(status=status))] if status else []

    one.store.find = find
    assert [run.info.status for run in one.ended_runs("s-0")] == ["KILLED"]
    assert list(asked) == []
    monkeypatch.setattr(search, "GRACE_SECONDS", -1)
    one.store.find = lambda _: []
    assert one.ended_runs("s-0") == []  # the store did not follow this training


@pytest.mark.parametrize("status", ["KILLED", "RUNNING"])
def test_the_run_of_a_pruned_trial_is_ended(worker, monkeypatch, status):
    """A training that has just done its last epoch leaves its run to `track`, which does not come for this trial."""
    one, ended = worker(), {"of-training": status}
    run = SimpleNamespace(
        info=SimpleNamespace(run_id="of-training", status=status), data=SimpleNamespace(tags={Tag.TRAINING: "t"})
    )
    tags = {}
    monkeypatch.setattr(search, "GRACE_SECONDS", -1)
    monkeypatch.setattr(search, "revision", lambda *_: None)
    monkeypatch.setattr(one, "train", lambda *_: "epoch 1: it is behind")
    one.store.find = lambda _: [run]
    one.store.set_tags = lambda run_id, found: tags.update({run_id: found})
    one.store.set_terminated = lambda run_id, found: ended.update({run_id: found})
    assert one.run(one.claim(), "s-0") == (TrialState.PRUNED, None)
    assert ended == {"of-training": "KILLED"}
    assert tags == {"of-training": {Tag.PRUNED: "epoch 1: it is behind"}}


def test_trials_that_fail_one_after_the_other_end_the_worker(worker, monkeypatch):
    failing = worker(trials=5)
    monkeypatch.setattr(failing, "run", lambda *_: (TrialState.FAIL, None))
    monkeypatch.setattr(search.sweep, "summarize", lambda *_: None)
    with pytest.raises(InputError, match="the last trials of study s have failed"):
        failing.work()
    assert states(failing) == ["FAIL"] * 3
