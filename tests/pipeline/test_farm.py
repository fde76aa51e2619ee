"""A farm of experiments: many workers, each in a clone, take trials from one study and push their results."""

from contextlib import suppress

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState
from sqlalchemy import NullPool, create_engine, text

from tests.pipeline.project import wait_for
from tests.pipeline.test_searching import COMMAND, SEARCH, SMALL
from vae.tracking.search import original

pytestmark = pytest.mark.scale

WORKERS, TRIALS = 8, 9
SPACE = {"train.learning_rate": {"low": 0.005, "high": 0.02}}
FARM = SEARCH | {"study": "farm", "trials": TRIALS, "pruning": False, "space": SPACE}


@pytest.fixture
def address(database) -> str:
    """The address of a new database of PostgreSQL for a study. It cannot share the database of MLflow."""
    with create_engine(database, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("CREATE DATABASE study"))
    return f"{database.removesuffix('/postgres')}/study"


def test_a_farm_of_which_two_workers_die_loses_and_doubles_nothing(project, served, address):
    """The study is in one database, the runs in one MLflow server, the experiments in a bare git repository, and the
    models in one DVC remote."""
    home, bare = project.home, project.home / "farm.git"
    (project.folder / "search.yaml").write_text(yaml.safe_dump(FARM))
    project.params(model=SMALL)
    project.dvc("remote", "add", "--default", "models", str(home / "models"))
    project.commit()
    project.run("git", "clone", "--quiet", "--bare", ".", str(bare))
    farm = project.at(served)
    workers = []
    for number in range(WORKERS):
        farm.folder = home / f"clone-{number}"
        project.run("git", "clone", "--quiet", str(bare), str(farm.folder))
        farm.run("git", "config", "user.email", "test@example.org")
        farm.run("git", "config", "user.name", "test")
        workers.append(farm.start(*COMMAND, "origin", PYTHONPATH="src", VAE_STUDY=address))

    def running() -> set[str]:
        with suppress(KeyError, optuna.exceptions.StorageInternalError):  # there is no study yet
            trials = optuna.load_study(study_name="farm", storage=address).get_trials(states=(TrialState.RUNNING,))
            return {trial.user_attrs.get("place", "").rpartition("/")[2] for trial in trials}
        return set()

    killed = workers[:2]
    wait_for(lambda: {"clone-0", "clone-1"} <= running(), 1)
    for worker in killed:
        process = psutil.Process(worker.process.pid)
        for dying in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                dying.kill()
        worker.process.wait()
    for worker in workers[2:]:
        assert "the best experiment is farm-" in worker.ended()

    study = optuna.load_study(study_name="farm", storage=address)
    trials = study.get_trials()
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    lost = {trial.number for trial in trials if trial.state == TrialState.FAIL}
    names = {f"farm-{original(trial)}" for trial in ended}
    assert len(lost) == len(killed)
    assert len(ended) == len(names) == TRIALS
    assert len(trials) == TRIALS + len(killed)  # each killed trial was taken once more
    assert {original(trial) for trial in ended if original(trial) != trial.number} == lost
    listing = ("git", "--git-dir", str(bare), "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps")
    assert sorted(project.run(*listing).stdout.split()) == sorted(names)
    runs = farm.runs()
    assert sorted(run.info.run_name for run in runs.values()) == sorted(names)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert farm.group("farm")[1] == runs.keys()
    for trial in ended:
        (run,) = [run for run in runs.values() if run.info.run_name == f"farm-{original(trial)}"]
        assert float(run.data.params["train.learning_rate"]) == pytest.approx(trial.params["train.learning_rate"])
        assert run.data.metrics["val_neg_elbo_nats"] == pytest.approx(trial.value)
        assert farm.epochs(run.info.run_id) == [1, 2, 3]

    best = f"farm-{original(study.best_trial)}"
    project.run("git", "remote", "add", "farm", str(bare))
    project.dvc("exp", "pull", "farm", best)
    project.dvc("exp", "apply", best)  # with its model
    assert (project.folder / "models/vae.safetensors").is_file()
    assert project.json("metrics/mlflow.json")["run_id"] in runs
