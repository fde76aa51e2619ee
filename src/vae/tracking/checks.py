"""What `make doctor` finds wrong with the store, the links between DVC and MLflow, and the queue."""

from vae.runtime import repository
from vae.runtime.checkpoint import is_held

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Run

from vae.errors import InputError
from vae.params import load
from vae.tracking import registry, worktree
from vae.tracking.address import sqlite_file
from vae.tracking.experiments import Experiment, abandoned, experiments, experiments_of, recorded_run
from vae.tracking.places import settle, strayed
from vae.tracking.store import Store, Tag, commits, experiment_names
from vae.tracking.sync import record_again, record_commit

NEWEST = 100  # runs whose files are looked at, because a store can have thousands


class Finding(NamedTuple):
    """A line of the doctor."""

    text: str  # what is wrong, and how to mend it
    left: bool = True  # False for a note, and for what was mended just now


@dataclass(frozen=True)
class Here:
    """The project that is examined, and whether to mend it."""

    params: Path
    result: Path
    mend: bool
    every: bool = False  # look at the files of every run

    @cached_property
    def root(self) -> Path:
        """The folder of the project. The store is in `repository.main_repository()`."""
        return Path().resolve()

    @cached_property
    def store(self) -> Store:
        """The store of the runs. Raises InputError if it cannot be reached."""
        return Store(repository.main_repository(), load(self.params).track.experiment)

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs of the store by their ids, newest first."""
        return {run.info.run_id: run for run in self.store.find()}

    @cached_property
    def known(self) -> list[Experiment]:
        """All experiments of DVC."""
        return experiments(self.root, self.result)


def mendable(here: Here, text: str, way: str, done: str) -> Finding:
    """A finding that `make doctor MEND=1` mends in this way, or that was `done` just now."""
    return Finding(f"{text}; {done if here.mend else f'`make doctor MEND=1` {way}'}", not here.mend)


def stuck(here: Here) -> Iterator[Finding]:
    """Runs that are RUNNING although no training holds their lock.
    A run that only waits for `track` may be ended too: `track` completes it all the same."""
    place = repository.address(here.store.root)  # other repositories may share the store
    for run in here.runs.values():
        tags, running = run.data.tags, run.info.status == "RUNNING"
        if running and tags.get(Tag.PLACE, place) == place and not is_held(here.store.root, tags.get(Tag.TRAINING, "")):
            if here.mend:
                here.store.set_terminated(run.info.run_id, "KILLED")
            text = f"{run.info.run_name} ({run.info.run_id}): RUNNING, but nothing trains"
            yield mendable(here, text, "ends it", "ended as KILLED")


def copied(here: Here) -> Iterator[Finding]:
    """A store that was copied with its folder, so that its files, also new ones, are in the old folder."""
    if file := sqlite_file(here.store.uri):
        for old in strayed(file, here.store.root):
            if here.mend:
                settle(file, here.store.root, mend=True)
            text = f"the files of the store are in {old}, of which this folder is a copy"
            yield mendable(here, text, "keeps new ones here", "new ones are kept here now")


def damaged(here: Here) -> Iterator[Finding]:
    """Runs whose files were deleted or damaged. Their state is recorded again if it is a commit or an experiment."""
    head = worktree.head()
    at_head = recorded_run(here.root, head, here.result)
    whole = [run for run in here.runs.values() if run.info.status == "FINISHED" and Tag.KEY in run.data.tags]
    if len(whole) > len(looked_at := whole if here.every else whole[:NEWEST]):
        text = f"only the newest {len(looked_at)} of {len(whole)} runs were searched for lost files"
        yield Finding(f"{text}; `make doctor ALL=1` looks at all", left=False)
    for run in looked_at:
        if lost := here.store.lost(run):
            more = f" and {len(lost) - 1} more" * (len(lost) > 1)
            text = f"{run.info.run_name} ({run.info.run_id}): its record has lost {lost[0]}{more}"
            found = [head] if at_head == run.info.run_id else sorted(commits(run))
            ways = [partial(record_again, here.root, item) for item in experiments_of(run, here.known, here.runs)]
            ways += [partial(record_commit, here.root, commit) for commit in found]
            none = Finding(f"{text}; no commit and no experiment has its state: run it again, or delete the run")
            yield recorded(here, text, ways[0]) if ways else none


def recorded(here: Here, text: str, record: Callable[[Path], str]) -> Finding:
    """A state that lacks its record, which is recorded from DVC's cache."""
    if not here.mend:
        return Finding(f"{text}; `make doctor MEND=1` records it from DVC's cache")
    try:
        return Finding(f"{text}; recorded as {record(here.result)}", left=False)
    except InputError as error:
        return Finding(f"{text}; not recorded: {error}")


def champions(here: Here) -> Iterator[Finding]:
    """Champions that cannot be loaded."""
    prefix = f"{load(here.params).track.registered_model}-"
    for model in here.store.search_registered_models():
        if model.name.startswith(prefix) and (lost := registry.lost_champion(here.store, model.name)):
            done = registry.replace_champion(here.store, lost) if here.mend else ""
            text = f"{model.name} version {lost.version}, the champion, cannot be loaded"
            yield mendable(here, text, "replaces it", done)


def unrecorded(here: Here) -> Iterator[Finding]:
    """HEAD and experiments whose run is not in this store, because it is new, or the repository was cloned."""
    names = {name for run in here.runs.values() for name in experiment_names(run) | commits(run)}
    head = worktree.head()
    run_id = recorded_run(here.root, head, here.result)
    if run_id and run_id not in here.runs and head not in names:
        text = f"HEAD ({head[:7]}) has no run in this store; `make sync` records it too, after `dvc pull` in a clone"
        yield recorded(here, text, partial(record_commit, here.root, head))
    for item in here.known:
        if item.run_id not in here.runs and item.name not in names:
            text = f"experiment {item.name} ({item.revision[:7]}): no run in this store"
            yield recorded(here, text, partial(record_again, here.root, item))


def orphans(here: Here) -> Iterator[Finding]:
    """Runs whose experiment DVC no longer has. Nothing is lost, because each can be run again."""
    names = {item.name for item in here.known}
    for run in here.runs.values():
        gone = experiment_names(run)
        if gone and not gone & names and not experiments_of(run, here.known, here.runs):
            yield Finding(
                f"{run.info.run_name} ({run.info.run_id}): DVC has no experiment {', '.join(sorted(gone))}; "
                f"`make reproduce RUN={run.info.run_id}` runs it again",
                left=False,
            )
    yield Finding(f"{len(here.runs)} runs, {len(here.known)} experiments", left=False)


def queue(here: Here) -> Iterator[Finding]:
    """Tasks of DVC's queue whose worker was killed, so that DVC calls them running for ever."""
    for name, folder in abandoned(here.root):
        name, remove = shlex.quote(name), f", then `rm -rf {shlex.quote(folder)}`" if folder else ""
        text = f"task {name} is Running in `dvc queue status`, but its worker is gone; `dvc queue kill {name}`{remove}"
        yield Finding(f"{text}, then run the experiment again: its training resumes")
