"""`make doctor`: says in one line for each thing what is wrong and how to mend it, and mends what it can.
It checks git, the environment, the store, the links between DVC and MLflow, and the machine. The exit code is 1 if
something is left to mend."""

from vae.runtime import checkpoint, command, cores, repository

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowException
from mlflow.entities import Run
from packaging.requirements import Requirement

import vae
from vae.errors import InputError
from vae.params import load
from vae.tracking import registry, worktree
from vae.tracking.address import reason, sqlite_file
from vae.tracking.experiments import Experiment, abandoned, experiments, experiments_of, recorded_run
from vae.tracking.places import settle, strayed
from vae.tracking.store import Store, Tag, commits, experiment_names
from vae.tracking.sync import record_again, record_commit

LEAST_BYTES = 2 << 30  # free space for the cache, the runs and a checkpoint
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
    def runs(self) -> list[Run]:
        """All runs of the store, newest first."""
        return self.store.find()

    @cached_property
    def ids(self) -> set[str]:
        """The ids of all runs."""
        return {run.info.run_id for run in self.runs}

    @cached_property
    def known(self) -> list[Experiment]:
        """All experiments of DVC."""
        return experiments(self.root, self.result)


def main(params: Path, result: Path, mend: bool, every: bool) -> None:
    here, said, left = Here(params, result, mend, every), set[str](), 0
    for name, checks in CHECKS.items():
        found = [finding for check in checks for finding in examined(check, here) if finding.text not in said]
        said |= {finding.text for finding in found}
        left += sum(finding.left for finding in found)
        for line in [finding.text for finding in found] or ["ok"]:
            print(f"{name}: {line}")
    print(f"{left or 'nothing'} to mend")
    sys.exit(1 if left else 0)


def mendable(here: Here, text: str, way: str, done: str) -> Finding:
    """A finding that `make doctor MEND=1` mends in this way, or that was `done` just now."""
    return Finding(f"{text}; {done if here.mend else f'`make doctor MEND=1` {way}'}", not here.mend)


def examined(check: Callable[[Here], Iterator[Finding]], here: Here) -> Iterator[Finding]:
    """The findings of a check. An error that ends it is one of them."""
    try:
        yield from check(here)
    except InputError as error:
        yield Finding(str(error))
    except MlflowException as error:
        yield Finding(f"MLflow: {reason(error)}")


def git(here: Here) -> Iterator[Finding]:
    """Whether git works here, and has what DVC needs from it."""
    worktree.git("cat-file", "-e", "HEAD:./dvc.yaml")
    if absent := [name for name in ("user.name", "user.email") if not worktree.setting(name)]:
        commands = " and ".join(f'`git config --global {name} "..."`' for name in absent)
        stand_in = os.environ.get("GIT_COMMITTER_NAME")
        known = f"the commits of DVC are by {stand_in}" if stand_in else "`dvc exp run` needs it"
        yield Finding(f"no {' and no '.join(absent)}: {known}; {commands}", left=not stand_in)
    if repository.is_shallow(here.root):
        yield Finding("a shallow clone, in which DVC loses queued and temporary experiments; `git fetch --unshallow`")
    if not str(here.root).isascii():
        yield Finding(
            f"{here.root} has letters outside ASCII, with which DVC runs no queued or temporary experiments; move it"
        )
    if unmerged := worktree.unmerged():
        yield Finding(
            f"an unfinished merge of {', '.join(unmerged)}; resolve code and params.yaml by hand, "
            "then `dvc repro`, `git add --update` and `git commit`"
        )


def linked_work_tree(here: Here) -> Iterator[Finding]:
    """A linked work tree (`git worktree add`) needs the cache of the main one: experiments are known in both."""
    main = repository.main_work_tree(here.root)
    if worktree.cache(main) != worktree.cache(here.root):
        if here.mend:
            worktree.share_cache(main, here.root)
        text = f"DVC's cache is not the one of the main work tree, {worktree.cache(main)}"
        yield mendable(here, text, "sets it", "it is now")


def environment(here: Here) -> Iterator[Finding]:
    """Whether the commands of the stages get the packages of requirements.lock and the code of this folder."""
    lines = (here.root / "requirements.lock").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    needed = [item for item in wanted if not item.marker or item.marker.evaluate()]
    if lacking := [f"{item.name}{item.specifier}" for item in needed if installed(item.name) not in item.specifier]:
        yield Finding(f"not installed: {', '.join(lacking)}; `rm .venv/installed && make setup`")
    if (used := Path(str(vae.__file__)).resolve().parent) != here.root / "src/vae":
        yield Finding(f"`import vae` takes {used}, not src/vae; `rm .venv/installed && make setup`")
    for name in ("python", "dvc", "mlflow"):
        found = shutil.which(name)
        if not found or Path(found).parent != Path(sys.executable).parent:
            yield Finding(f"`{name}` is {found}, which is not in this environment; `source .venv/bin/activate`")


def installed(name: str) -> str:
    """The version of a package, or 0 if it is not installed."""
    with suppress(PackageNotFoundError):
        return version(name)
    return "0"


def stuck(here: Here) -> Iterator[Finding]:
    """Runs that are RUNNING although no training holds their lock.
    A run that only waits for `track` may be ended too: `track` completes it all the same."""
    place = repository.address(here.store.root)  # other repositories may share the store
    for run in here.runs:
        if run.info.status != "RUNNING" or run.data.tags.get(Tag.PLACE, place) != place:
            continue
        if not checkpoint.is_held(here.store.root, run.data.tags.get(Tag.TRAINING, "")):
            if here.mend:
                here.store.set_terminated(run.info.run_id, "KILLED")
            text = f"{run.info.run_name} ({run.info.run_id}): RUNNING, but nothing trains"
            yield mendable(here, text, "ends it", "ended as KILLED")


def copied(here: Here) -> Iterator[Finding]:
    """A store that was copied with its folder, so that its files, also new ones, are in the old folder."""
    file = sqlite_file(here.store.uri)
    for old in strayed(file, here.store.root) if file else ():
        if here.mend:
            settle(file, here.store.root, mend=True)
        text = f"the files of the store are in {old}, of which this folder is a copy"
        yield mendable(here, text, "keeps new ones here", "new ones are kept here now")


def damaged(here: Here) -> Iterator[Finding]:
    """Runs whose files were deleted or damaged. Their state is recorded again if it is a commit or an experiment."""
    head = worktree.head()
    at_head = recorded_run(here.root, head, here.result)
    whole = [run for run in here.runs if run.info.status == "FINISHED" and Tag.KEY in run.data.tags]
    if len(whole) > len(looked_at := whole if here.every else whole[:NEWEST]):
        text = f"only the newest {len(looked_at)} of {len(whole)} runs were searched for lost files"
        yield Finding(f"{text}; `make doctor ALL=1` looks at all", left=False)
    for run in looked_at:
        if lost := here.store.lost(run):
            more = f" and {len(lost) - 1} more" * (len(lost) > 1)
            text = f"{run.info.run_name} ({run.info.run_id}): its record has lost {lost[0]}{more}"
            items = experiments_of(run, here.known, here.ids)
            found = [head] if at_head == run.info.run_id else sorted(commits(run))
            ways = [partial(record_again, here.root, item) for item in items]
            ways += [partial(record_commit, here.root, commit) for commit in found]
            if ways:
                yield recorded(here, text, ways[0])
            else:
                yield Finding(f"{text}; no commit and no experiment has its state: run it again, or delete the run")


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
    names = {name for run in here.runs for name in experiment_names(run) | commits(run)}
    head = worktree.head()
    run_id = recorded_run(here.root, head, here.result)
    if run_id and run_id not in here.ids and head not in names:
        text = f"HEAD ({head[:7]}) has no run in this store; `make sync` records it too, after `dvc pull` in a clone"
        yield recorded(here, text, partial(record_commit, here.root, head))
    for item in here.known:
        if item.run_id not in here.ids and item.name not in names:
            text = f"experiment {item.name} ({item.revision[:7]}): no run in this store"
            yield recorded(here, text, partial(record_again, here.root, item))


def orphans(here: Here) -> Iterator[Finding]:
    """Runs whose experiment DVC no longer has. Nothing is lost, because each can be run again."""
    names = {item.name for item in here.known}
    for run in here.runs:
        gone = experiment_names(run)
        if gone and not gone & names and not experiments_of(run, here.known, here.ids):
            yield Finding(
                f"{run.info.run_name} ({run.info.run_id}): DVC has no experiment {', '.join(sorted(gone))}; "
                f"`make reproduce RUN={run.info.run_id}` runs it again",
                left=False,
            )
    yield Finding(f"{len(here.runs)} runs, {len(here.known)} experiments", left=False)


def queue(here: Here) -> Iterator[Finding]:
    """Tasks of DVC's queue whose worker was killed, so that DVC calls them running for ever."""
    for name, folder in abandoned(here.root):
        name = shlex.quote(name)
        yield Finding(
            f"task {name} of the queue is called running, but its worker was killed; `dvc queue kill {name}`, then "
            f"`rm -rf {shlex.quote(folder)}`, and start the experiment again: it resumes after its last epoch"
        )


def machine(here: Here) -> Iterator[Finding]:
    """Whether the machine has the room and the cores that params.yaml asks for."""
    if (free := shutil.disk_usage(here.root).free) < LEAST_BYTES:
        yield Finding(f"{here.root}: {free >> 20} MB are free, and {LEAST_BYTES >> 20} MB are needed; make room")
    threads, usable = load(here.params).train.threads, len(cores.usable())
    if threads > usable:
        yield Finding(f"train.threads is {threads}, but {usable} cores can be used; lower it in {here.params}", False)


# Each part of the report has its checks, in this order. A check yields its findings, or nothing.
CHECKS: dict[str, tuple[Callable[[Here], Iterator[Finding]], ...]] = {
    "git": (git, linked_work_tree),
    "environment": (environment,),
    "store": (copied, stuck, damaged, champions),
    "links": (unrecorded, orphans),
    "queue": (queue,),
    "machine": (machine,),
}

if __name__ == "__main__":
    command.run(main)
