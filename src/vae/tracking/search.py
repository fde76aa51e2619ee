"""A search for better parameters: optuna chooses them, and each trial is a DVC experiment and an MLflow run.
The study is in a database, which workers on many machines may share. A worker runs one trial at a time."""

from vae.runtime import repository
from vae.runtime.live import GRACE_SECONDS

import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
import yaml
from filelock import FileLock
from mlflow.entities import Run
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import ValidationError
from sqlalchemy import NullPool, create_engine, text

from vae import params
from vae.errors import InputError
from vae.tracking import sweep
from vae.tracking.address import absolute, shown, sqlite_file, store_errors
from vae.tracking.experiments import content, revision, with_values
from vae.tracking.store import CHAMPION_METRIC, Store, Tag, store_lock
from vae.tracking.worktree import execute, git

ADDRESS = "VAE_STUDY"  # the variable with the address of the database
BEAT_SECONDS = 10  # between two signs of life of a worker
SILENT_SECONDS = 60  # after which other workers take its trial
TRIES = 3  # of a trial whose worker dies
FAILURES = 3  # failed trials in a row after which a worker gives up
EPOCH = re.compile(r"^epoch (\d+) of (\d+): .*validation ([\d.]+)")  # a line of the train stage


class Search(params.Section):
    """The content of search.yaml. Values are text, as in `dvc exp run --set-param`."""

    study: params.Name
    trials: params.Count
    seed: params.Seed
    startup: params.Count
    pruning: bool
    set: dict[str, str]
    space: dict[str, list[str] | dict[str, float | bool]]


def load(path: Path, config: params.Params) -> tuple[Search, dict[str, BaseDistribution]]:
    """Reads search.yaml. Returns it with the space as optuna knows it.
    Raises InputError if it is not valid, or if params.yaml would not be valid with its values."""
    try:
        search = Search.model_validate(yaml.load(path.read_text(), Loader=yaml.BaseLoader))
    except (ValidationError, yaml.YAMLError) as error:
        detail = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else {"msg": str(error)}
        where = ".".join(map(str, detail.get("loc", ())))
        raise InputError(f"{path}: {where or 'not valid'}: {' '.join(detail['msg'].split())}") from error
    leaves, space = params.leaves(config), dict[str, BaseDistribution]()
    for key, values in search.space.items():
        if not key.startswith(("model.", "train.")):
            raise InputError(f"{path}: space: {key}: only model.* and train.* make another model on the same images")
        number: type[int] | type[float] = int if isinstance(leaves.get(key), int) else float
        try:
            if isinstance(values, list):
                space[key], ends = CategoricalDistribution(values), values
            else:
                numbers: dict[str, Any] = {name: number(value) for name, value in values.items()}
                space[key] = IntDistribution(**numbers) if number is int else FloatDistribution(**numbers)
                ends = [str(numbers["low"]), str(numbers["high"])]
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: space: {key}: {' '.join(str(error).split())}") from error
        for value in ends:
            with_values(config.model_dump_json(), search.set | {key: value}, path)
    return search, space


class Worker:
    """Takes trials of a study, one at a time, until there are none left."""

    def __init__(self, config: Path, search: Path, result: Path, remote: str) -> None:
        parsed = params.load(config)
        self.root, self.result, self.remote = Path().resolve(), result, remote
        self.search, self.space = load(search, parsed)
        self.uri = absolute(os.environ.get(ADDRESS, "").strip() or "sqlite:///search.db", self.root)
        self.place = repository.address(self.root)
        self.store = Store(repository.main_repository(), parsed.track.experiment)
        if remote:
            self.reach()
        models = remote and execute(["dvc", "remote", "default"], self.root).strip()
        self.remote_options = [] if models else ["--no-cache"]  # without a DVC remote, models stay in their clones
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")  # optuna calls heartbeats experimental
        self.open(search, parsed.model_dump(include={*params.TRAINING}, mode="json"))

    def reach(self) -> None:
        """Raises InputError if the git remote cannot be reached: before a trial, whose result it could not take."""
        try:
            git("ls-remote", "--", self.remote, folder=self.root)
        except InputError as error:
            raise InputError(f"PUSH={shown(self.remote)}: {error}; `git remote --verbose` lists the remotes") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets one worker at a time open the study or take a trial, on all machines that share the database.
        Raises InputError if the database cannot be used."""
        with store_errors(self.uri, ADDRESS):
            if file := sqlite_file(self.uri):
                with FileLock(f"{file}.lock"):
                    yield
            else:
                with create_engine(self.uri, poolclass=NullPool).begin() as connection:
                    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": ADDRESS})
                    yield

    def open(self, path: Path, fixed: dict[str, dict[str, object]]) -> None:
        """Opens the study. Trials of this clone that a killed worker has left will be done again.
        Raises InputError if the study has another space or other parameters."""
        again = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=TRIES - 1)
        name, described = self.search.study, self.search.model_dump(include={"set", "space"}) | fixed
        for key in self.space:
            fixed[key.partition(".")[0]].pop(key.partition(".")[2])
        with self.alone():
            storage = optuna.storages.RDBStorage(
                self.uri,
                engine_kwargs={"poolclass": NullPool},
                heartbeat_interval=BEAT_SECONDS,
                grace_period=SILENT_SECONDS,
                heartbeat_stale_trial_callback=again,
            )
            pruner = optuna.pruners.MedianPruner(self.search.startup)
            self.study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, pruner=pruner)
            self.beat = storage.record_heartbeat
            trials = self.study.get_trials()
            known = self.study.user_attrs.get("described", described)
            if known != described or (not trials and revision(self.root, f"{name}-*")):
                raise InputError(
                    f"{path}: study {name} has another space or other parameters; give this one a new name"
                )
            self.study.set_user_attr("described", described)
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.user_attrs.get("place") == self.place:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    again(self.study, trial)
            with store_errors(self.store.uri), store_lock(self.store.root):
                sweep.parent(self.store, name)  # here, so that workers at the same time make one

    def claim(self) -> Trial | None:
        """The next trial, or None if all have ended. Waits while other workers have trials that they may lose."""
        while True:
            with self.alone():
                optuna.storages.fail_stale_trials(self.study)
                trials = self.study.get_trials(deepcopy=False)
                again = [trial.number for trial in trials if trial.state == TrialState.WAITING]
                if again or len({original(trial) for trial in trials}) < self.search.trials:
                    # Each trial has a seed of its own, so that workers do not draw the same one.
                    seed = self.search.seed + (again[0] if again else len(trials))
                    self.study.sampler = optuna.samplers.TPESampler(
                        n_startup_trials=self.search.startup, seed=seed, constant_liar=True
                    )
                    trial = self.study.ask(self.space)
                    self.beat(trial._trial_id)
                    trial.set_user_attr("place", self.place)
                    return trial
                if all(trial.state.is_finished() for trial in trials):
                    return None
            time.sleep(BEAT_SECONDS)

    def work(self) -> str:
        """Runs trials until all have ended. Returns the name of the best experiment.
        Raises InputError if one trial after the other fails."""
        failures = 0
        while failures < FAILURES and (trial := self.claim()):
            name = f"{self.search.study}-{original(self.study.get_trials(deepcopy=False)[trial.number])}"
            state, figure = self.run(trial, name)
            with store_errors(self.uri, ADDRESS):  # another worker may have taken the trial in the meantime
                self.study.tell(trial, figure, state, skip_if_finished=True)
            print(f"{name}: {state.name.lower()}{f', {figure:.2f} nats' if figure else ''}", flush=True)
            failures = failures + 1 if state == TrialState.FAIL else 0
        with store_errors(self.store.uri), store_lock(self.store.root):
            sweep.summarize(self.store, sweep.parent(self.store, self.search.study))
        complete = [trial for trial in self.study.get_trials() if trial.state == TrialState.COMPLETE]
        if failures == FAILURES or not complete:
            raise InputError(f"the last trials of study {self.search.study} have failed; their messages are above")
        return f"{self.search.study}-{original(self.study.best_trial)}"

    def run(self, trial: Trial, name: str) -> tuple[TrialState, float | None]:
        """Runs a trial as an experiment, and returns how it ended, with its figure if it is complete.
        If an earlier try has completed the experiment, also in another clone, it is not run again."""
        if self.remote and not name.endswith(f"-{trial.number}"):
            with suppress(InputError):  # no other clone has completed it
                execute(["dvc", "exp", "pull", *self.remote_options, self.remote, name], self.root)
        behind = "" if revision(self.root, name) else self.train(trial, name)
        if found := revision(self.root, name):
            if self.remote:
                execute(["dvc", "exp", "push", *self.remote_options, self.remote, name], self.root)
            return TrialState.COMPLETE, float(content(found, self.result, self.root)[CHAMPION_METRIC])
        with store_errors(self.store.uri):
            for run in self.ended_runs(name) if behind else []:
                self.store.set_tags(run.info.run_id, {Tag.PRUNED: behind})
                if run.info.status == "RUNNING":  # it had trained its last epoch, and `track` will not come
                    self.store.set_terminated(run.info.run_id, "KILLED")
                checkpoint = f"{run.data.tags.get(Tag.TRAINING)}.pt"  # nobody goes on with this training
                (repository.state_folder(self.store.root) / checkpoint).unlink(missing_ok=True)
        return TrialState.PRUNED if behind else TrialState.FAIL, None

    def ended_runs(self, name: str) -> list[Run]:
        """The runs of a training that was ended. Waits a bounded time until its observer has ended them too."""
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            runs = self.store.find({"mlflow.runName": name})
            if (runs and all(run.info.status != "RUNNING" for run in runs)) or time.monotonic() > deadline:
                return runs
            time.sleep(1)

    def train(self, trial: Trial, name: str) -> str:
        """Runs an experiment in a copy, and ends it early if its validation curve is behind. Returns the reason."""
        values = self.search.set | {key: str(value) for key, value in trial.params.items()}
        options = [word for item in values.items() for word in ("--set-param", "=".join(item))]
        behind, ended = "", Event()
        Thread(target=self.stay_alive, args=(trial, ended), daemon=True).start()
        with subprocess.Popen(
            ["dvc", "exp", "run", "--temp", "--name", name, *options],
            cwd=self.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        ) as process:
            try:
                for line in process.stdout or ():
                    print(line, end="", flush=True)
                    if (found := EPOCH.match(line)) and not behind and found[1] != found[2]:
                        with store_errors(self.uri, ADDRESS):
                            trial.report(float(found[3]), int(found[1]))
                            if self.search.pruning and trial.should_prune():
                                behind = f"epoch {found[1]}: {found[3]} nats is behind the median of the other trials"
                                os.killpg(process.pid, signal.SIGINT)
            except BaseException:
                os.killpg(process.pid, signal.SIGINT)
                raise
            finally:
                ended.set()
        return behind

    def stay_alive(self, trial: Trial, ended: Event) -> None:
        """Gives signs of life until the trial has ended."""
        while not ended.wait(BEAT_SECONDS):
            with suppress(Exception):  # the database is away for a moment
                self.beat(trial._trial_id)


def original(trial: FrozenTrial) -> int:
    """The number of a trial, or the number of the trial that it does again."""
    return int(trial.system_attrs.get("failed_trial", trial.number))
