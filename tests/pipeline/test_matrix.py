"""Every way to start the pipeline, with every store and every ending: which runs MLflow has afterwards.

A few cells always run. Each value of each axis is among them. All others have the mark `matrix`: `make test-matrix`.
"""

import itertools
import re
import shutil
import signal
from collections.abc import Callable

import pytest

from tests.pipeline.project import DOWN, LIMIT_SECONDS, Project, wait_for

pytestmark = pytest.mark.pipeline

STARTS = ("repro", "exp", "temp", "queue", "cache")
STORES = ("database", "server", "down", "new")
ENDINGS = ("well", "killed", "terminated", "diverged")
SIGNALS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}
EXPERIMENTS = ("exp", "temp", "queue")  # these ways to start make a DVC experiment
NAME = "other"  # the name of this experiment
ALWAYS = {
    ("repro", "database", "killed"),
    ("repro", "new", "diverged"),
    ("exp", "server", "terminated"),
    ("temp", "down", "well"),
    ("queue", "new", "well"),
    ("cache", "database", "well"),
    ("cache", "new", "well"),
}


def possible(start: str, ending: str) -> bool:
    """If every stage is restored from the cache, nothing trains, so no training can be killed or diverge."""
    return start != "cache" or ending == "well"


def expected(start: str, store: str, ending: str) -> tuple[list[str], list[str]]:
    """The statuses of the runs that are new in the store after the first start, and after the second start.

    A store that is down is replaced by the project's own database for the second start.
    """
    if start == "cache" and store in ("database", "down"):
        return [], []  # this database has a run of the state already
    status = {
        "well": "FINISHED",
        "killed": "KILLED",  # the observer outlives the training, and ends the run
        "terminated": "KILLED",  # the training tells the observer
        "diverged": "FAILED",
    }[ending]
    first = [] if store == "down" else [status]
    if ending == "diverged":
        return first, ["FAILED"]  # the same run diverges again: there is no state to record
    return first, ["FINISHED"]  # the run of a killed training continues: there is no second one


def followed(start: str, store: str, ending: str) -> bool:
    """Whether the run has epochs that were followed live. Otherwise all its curves come from the file.

    A training that made its model is in DVC's run cache, so it does not run again when the store is up.
    """
    return start != "cache" and not (store == "down" and ending == "well")


def cells() -> list:
    """All possible cells, with the mark on those that do not always run."""
    found = []
    for cell in itertools.product(STARTS, STORES, ENDINGS):
        if possible(cell[0], cell[2]):
            marks = [] if cell in ALWAYS else [pytest.mark.matrix]
            found.append(pytest.param(*cell, marks=marks, id="-".join(cell)))
    return found


def test_each_value_of_each_axis_always_runs():
    for axis, values in enumerate((STARTS, STORES, ENDINGS)):
        assert {cell[axis] for cell in ALWAYS} == {*values}
    assert all(possible(start, ending) for start, _, ending in ALWAYS)


def begin(project: Project, start: str, settings: dict[str, dict]) -> Callable[[], bool]:
    """Starts the pipeline with these fields of params.yaml.

    Returns a function that waits for the end, and says whether all stages succeeded.
    """
    changes = [
        argument
        for section, fields in settings.items()
        for name, value in fields.items()
        for argument in ("--set-param", f"{section}.{name}={value}")
    ]
    match start:
        case "repro":
            project.params(**settings)
            command = ["repro"]
        case "cache":
            command = ["repro"]
        case "exp":
            command = ["exp", "run", "--name", NAME, *changes]
        case "temp":
            command = ["exp", "run", "--temp", "--name", NAME, *changes]
        case "queue":
            return queue(project, changes)
    started = project.start("dvc", *command)
    return lambda: not started.finish().returncode


def queue(project: Project, changes: list[str]) -> Callable[[], bool]:
    """Does what `begin` does, with a worker of the queue."""

    def statuses() -> list[str]:
        return re.findall(r"\b(Queued|Running|Success|Failed)\b", project.dvc("queue", "status").stdout)

    def ended() -> bool:
        # Asked twice, because an experiment that has just ended is missing from the list for a moment.
        wait_for(lambda: not any({"Queued", "Running"} & {*statuses()} for _ in range(2)), 1)
        project.stop("queue-worker")  # or it would take the next experiment as well, with the environment of this one
        return statuses().count("Success") == well + 1

    well = statuses().count("Success")
    project.dvc("exp", "run", "--queue", "--name", NAME, *changes)
    project.dvc("queue", "start")
    return ended


def recorded_in(project: Project, start: str) -> str:
    """The run that metrics/mlflow.json names, in the workspace or in the commit of the experiment."""
    return project.recorded_by(NAME) if start in ("temp", "queue") else project.recorded()


@pytest.mark.parametrize(("start", "store", "ending"), cells())
def test_every_start_with_every_store_to_every_end(start, store, ending, project, tmp_path, request):
    match store:
        case "database":  # the default, which no variable names
            first = again = project
        case "server":
            first = again = project.at(request.getfixturevalue("served"))
        case "new":
            first = again = project.at(f"sqlite:///{tmp_path / 'new.db'}")
        case "down":
            first, again = project.at(DOWN), project
    settings = {"train": {"seed": 21} | ({"learning_rate": 100, "optimizer": "adam"} if ending == "diverged" else {})}
    if start == "cache":
        forget_results(project)
    before = again.runs()
    statuses, statuses_again = expected(start, store, ending)

    def added() -> dict[str, str]:
        return {run_id: run.info.status for run_id, run in again.runs().items() if run_id not in before}

    if ending in SIGNALS:
        with project.after_one_epoch(lambda: begin(first, start, settings)) as ended:
            if store != "down":  # the run has an epoch before its training is killed
                wait_for(lambda: [again.epochs(run_id) for run_id in added()] == [[1]])
            training = project.training()
            training.send_signal(SIGNALS[ending])
            training.wait(LIMIT_SECONDS)
    else:
        ended = begin(first, start, settings)
    well = ended()
    assert well == (ending == "well" and store != "down")
    wait_for(lambda: "RUNNING" not in added().values())  # the observer ends it soon after
    live = added()
    assert [*live.values()] == statuses

    if not well:
        well = begin(again, start, settings)()
        assert well == (ending != "diverged")
    wait_for(lambda: "RUNNING" not in added().values())
    assert [*added().values()] == statuses_again
    assert live.keys() <= added().keys()  # the same run
    if well:
        run = again.assert_whole(recorded_in(project, start))
        same = [other for other in again.runs().values() if other.data.tags.get("vae.key") == run.data.tags["vae.key"]]
        assert [other.info.run_id for other in same] == [run.info.run_id]
        assert {*added()} <= {run.info.run_id}
        if added():
            live_epochs = again.epochs(run.info.run_id, "epoch_seconds")
            assert bool(live_epochs) == followed(start, store, ending)
    if well and start in EXPERIMENTS:
        assert project.experiments() == [NAME]
        assert run.data.tags["dvc.experiments"] == NAME
        assert run.info.run_name == NAME


def forget_results(project: Project) -> None:
    """Removes all results and the lock file, so that the next `dvc repro` restores them from DVC's cache."""
    (project.folder / "dvc.lock").unlink()
    for name in ("data", "models", "metrics", "plots", "samples"):
        shutil.rmtree(project.folder / name)
