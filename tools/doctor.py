"""`make doctor`: says in one line for each thing what is wrong and how to mend it, and mends what it can.
It checks git, the environment, the store, the links between DVC and MLflow, the queue and the machine. The exit code is
1 if something is left to mend."""

from vae.runtime import command, cores, files, repository
from vae.runtime.checkpoint import is_held

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import yaml
from dvc.rwlock import SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from mlflow import MlflowException
from mlflow.entities import Run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from voluptuous import Invalid, Schema

import vae
from vae.errors import InputError
from vae.params import load
from vae.tracking import experiments, registry, worktree
from vae.tracking.address import reason, sqlite_file
from vae.tracking.places import settle, strayed
from vae.tracking.store import Store, Tag, open_store
from vae.tracking.sync import record_again

LOCK_SECONDS = 60  # git holds a lock for a moment
DVC_FILES = {  # files that DVC does not replace at once, and their forms
    "dvc.lock": COMPILED_LOCKFILE_SCHEMA,
    "quality/dvc.lock": COMPILED_LOCKFILE_SCHEMA,
    ".dvc/tmp/rwlock": SCHEMA,
}
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
    root: Path = field(default_factory=Path().resolve)

    @cached_property
    def store(self) -> Store:
        """The store of the runs. Raises InputError if it cannot be reached."""
        return open_store(self.params)

    @cached_property
    def runs(self) -> dict[str, Run]:
        """All runs of the store by their ids, newest first."""
        return {run.info.run_id: run for run in self.store.find()}

    @cached_property
    def known(self) -> list[experiments.Experiment]:
        """All experiments of DVC."""
        return experiments.experiments(self.root, self.result)


def main(params: Path, result: Path, mend: bool, every: bool) -> None:
    here, said = Here(params, result, mend, every), dict[str, bool]()
    for name, parts in CHECKS.items():
        found = {item.text: item.left for check in parts for item in examined(check, here) if item.text not in said}
        said |= found
        for text in found or ["ok"]:
            print(f"{name}: {text}")
    left = sum(said.values())
    print(f"{left or 'nothing'} to mend")
    sys.exit(1 if left else 0)


def examined(check: Callable[[Here], Iterator[Finding]], here: Here) -> Iterator[Finding]:
    """The findings of a check. An error that ends it is one of them."""
    try:
        yield from check(here)
    except (InputError, MlflowException) as error:
        yield Finding(str(error) if isinstance(error, InputError) else f"MLflow: {reason(error)}")


def mendable(here: Here, text: str, way: str, mend: Callable[[], object], done: str = "") -> Finding:
    """A finding that `make doctor MEND=1` mends in this way. The line then says what was done."""
    if not here.mend:
        return Finding(f"{text}; `make doctor MEND=1` {way}")
    try:
        return Finding(f"{text}; {done.format(mend())}", left=False)
    except InputError as error:
        return Finding(f"{text}; not mended: {error}")


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
        yield Finding(f"{here.root} has letters outside ASCII: DVC queues no experiments in such a folder; move it")
    if unmerged := sorted(worktree.names("diff", "--name-only", "--relative", "--diff-filter=U", "-z")):
        way = "resolve code and params.yaml by hand, then `dvc repro`, `git add --update` and `git commit`"
        yield Finding(f"an unfinished merge of {', '.join(unmerged)}; {way}")


def locks(here: Here) -> Iterator[Finding]:
    """Locks that git or DVC left when it was killed. The next change of the same thing would fail."""
    folder = repository.git_folder(here.root)[1]
    for lock in sorted([*folder.glob("*.lock"), *folder.glob("refs/**/*.lock")]):
        if is_left(lock):
            text = f"{lock} is of a git or DVC that was killed, and stops the next one"
            yield mendable(here, text, "removes it", lock.unlink, "removed")


def is_left(path: Path) -> bool:
    """Whether a file is so old that no git or DVC can still be at work on it."""
    return time.time() - path.stat().st_mtime > LOCK_SECONDS


def cut_short(here: Here) -> Iterator[Finding]:
    """Files that DVC was writing when it was killed. It reads them in every command, and then fails."""
    for name, form in DVC_FILES.items():
        path = here.root / name
        if path.is_file() and is_left(path) and not has_form(path.read_text(errors="replace"), form):
            text = f"{name} was cut short when DVC was killed, and stops every command of DVC"
            way = "puts the committed one back, or removes it: DVC's cache has the results"
            yield mendable(here, text, way, partial(put_back, name), "{}")


def has_form(text: str, form: Schema) -> bool:
    """Whether a file of DVC is whole. The marks of a merge are left to the user, and `git` above names them."""
    try:
        form(yaml.safe_load(text))
    except (yaml.YAMLError, Invalid):
        return "<<<<<<<" in text
    return True


def put_back(name: str) -> str:
    """Restores a file as it is in the last commit, or removes it if it is not committed. Returns which."""
    if worktree.names("ls-tree", "-z", "--name-only", "HEAD", "--", name):
        files.write_whole(Path(name), worktree.git("show", f"HEAD:./{name}"))
        return "the committed one is back"
    Path(name).unlink()
    return "removed"


def cache(here: Here) -> Iterator[Finding]:
    """Whether DVC can keep new results, and has one cache for all work trees, because experiments are known in each."""
    main, used = repository.main_work_tree(here.root), worktree.cache(here.root)
    if used.exists() and not os.access(used, os.W_OK):
        way = f"`dvc config --local --unset cache.dir`, then `dvc remote add --local --default shared {used}`"
        yield Finding(f"DVC's cache {used} cannot be written, so no new result can be kept; {way}")
    if (shared := worktree.cache(main)) != used:
        text = f"DVC's cache is not the one of the main work tree, {shared}"
        yield mendable(here, text, "sets it", partial(worktree.share_cache, main, here.root), "it is now")


def environment(here: Here) -> Iterator[Finding]:
    """Whether the commands of the stages get the packages of requirements.lock and the code of this folder."""
    lines = (here.root / "requirements.lock").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    needed = {canonicalize_name(item.name): item for item in wanted if not item.marker or item.marker.evaluate()}
    have = {canonicalize_name(item.name): item.version for item in distributions()}
    lacking = [f"{name}{item.specifier}" for name, item in needed.items() if have.get(name, "0") not in item.specifier]
    if lacking:
        yield Finding(f"not installed: {', '.join(lacking)}; `rm .venv/installed && make setup`")
    if (used := Path(str(vae.__file__)).resolve().parent) != here.root / "src/vae":
        yield Finding(f"`import vae` takes {used}, not src/vae; `rm .venv/installed && make setup`")
    for name in ("python", "dvc", "mlflow"):
        found = shutil.which(name)
        if not found or Path(found).parent != Path(sys.executable).parent:
            yield Finding(f"`{name}` is {found}, which is not in this environment; `source .venv/bin/activate`")


def machine(here: Here) -> Iterator[Finding]:
    """Whether the machine has the room and the cores that params.yaml asks for."""
    if (free := shutil.disk_usage(here.root).free) < LEAST_BYTES:
        yield Finding(f"{here.root}: {free >> 20} MB are free, and {LEAST_BYTES >> 20} MB are needed; make room")
    threads, usable = load(here.params).train.threads, len(cores.usable())
    if threads > usable:
        yield Finding(f"train.threads is {threads}, but {usable} cores can be used; lower it in {here.params}", False)


def named(run: Run) -> str:
    """A run in words."""
    return f"{run.info.run_name} ({run.info.run_id})"


def stuck(here: Here) -> Iterator[Finding]:
    """Runs that are RUNNING although no training holds their lock.
    A run that only waits for `track` may be ended too: `track` completes it all the same."""
    place = repository.address(here.store.root)  # other repositories may share the store
    for run in here.runs.values():
        tags, running = run.data.tags, run.info.status == "RUNNING"
        if running and tags.get(Tag.PLACE, place) == place and not is_held(here.store.root, tags.get(Tag.TRAINING, "")):
            end = partial(here.store.set_terminated, run.info.run_id, "KILLED")
            yield mendable(here, f"{named(run)}: RUNNING, but nothing trains", "ends it", end, "ended as KILLED")


def copied(here: Here) -> Iterator[Finding]:
    """A store that was copied with its folder, so that its files, also new ones, are in the old folder."""
    if file := sqlite_file(here.store.uri):
        for old in strayed(file, here.store.root):
            text = f"the files of the store are in {old}, of which this folder is a copy"
            keep = partial(settle, file, here.store.root, mend=True)
            yield mendable(here, text, "keeps new ones here", keep, "new ones are kept here now")


def damaged(here: Here) -> Iterator[Finding]:
    """Runs whose files were deleted or damaged. Their state is recorded again if it is a commit or an experiment."""
    at_head = experiments.recorded_run(here.root, head := worktree.head(), here.result)
    whole = [run for run in here.runs.values() if run.info.status == "FINISHED" and Tag.KEY in run.data.tags]
    if len(whole) > len(looked_at := whole if here.every else whole[:NEWEST]):
        text = f"only the newest {len(looked_at)} of {len(whole)} runs were searched for lost files"
        yield Finding(f"{text}; `make doctor ALL=1` looks at all", left=False)
    nowhere = "no commit and no experiment has its state: run it again, or delete the run"
    for run in looked_at:
        if lost := here.store.lost(run):
            text = f"{named(run)}: its record has lost {lost[0]}{f' and {len(lost) - 1} more' * (len(lost) > 1)}"
            found = sorted(experiments.commits(run)) + [head] * (at_head == run.info.run_id)
            state = next(iter(experiments.experiments_of(run, here.known, here.runs)), found[0] if found else None)
            yield unrecorded(here, text, state) if state else Finding(f"{text}; {nowhere}")


def unrecorded(here: Here, text: str, state: experiments.Experiment | str) -> Finding:
    """An experiment or a commit that lacks its record."""
    record = partial(record_again, here.root, state, here.result)
    return mendable(here, text, "records it from DVC's cache", record, "recorded as {}")


def champions(here: Here) -> Iterator[Finding]:
    """Champions that cannot be loaded."""
    prefix = f"{load(here.params).track.registered_model}-"
    for model in here.store.search_registered_models():
        if model.name.startswith(prefix) and (lost := registry.lost_champion(here.store, model.name)):
            text = f"{model.name} version {lost.version}, the champion, cannot be loaded"
            yield mendable(here, text, "replaces it", partial(registry.replace_champion, here.store, lost), "{}")


def links(here: Here) -> Iterator[Finding]:
    """HEAD and experiments whose run is not in this store, because it is new, or the repository was cloned.
    Notes name runs whose experiment DVC no longer has: nothing is lost, because each can be run again."""
    runs = here.runs.values()
    names = set[str]().union(*map(experiments.experiment_names, runs), *map(experiments.commits, runs))
    run_id = experiments.recorded_run(here.root, head := worktree.head(), here.result)
    if run_id and run_id not in here.runs and head not in names:
        text = f"HEAD ({head[:7]}) has no run in this store; `make sync` records it too, after `dvc pull` in a clone"
        yield unrecorded(here, text, head)
    for item in here.known:
        if item.run_id not in here.runs and item.name not in names:
            yield unrecorded(here, f"experiment {item.name} ({item.revision[:7]}): no run in this store", item)
    present = {item.name for item in here.known}
    for run in here.runs.values():
        gone = experiments.experiment_names(run)
        if gone and not gone & present and not experiments.experiments_of(run, here.known, here.runs):
            text = f"{named(run)}: DVC has no experiment {', '.join(sorted(gone))}"
            yield Finding(f"{text}; `make reproduce RUN={run.info.run_id}` runs it again", left=False)
    yield Finding(f"{len(here.runs)} runs, {len(here.known)} experiments", left=False)


def queue(here: Here) -> Iterator[Finding]:
    """Tasks of DVC's queue whose worker was killed, so that DVC calls them running for ever."""
    for name, folder in experiments.abandoned(here.root):
        name, remove = shlex.quote(name), f", then `rm -rf {shlex.quote(folder)}`" if folder else ""
        text = f"task {name} is Running in `dvc queue status`, but its worker is gone; `dvc queue kill {name}`{remove}"
        yield Finding(f"{text}, then run the experiment again: its training resumes")


# Each part of the report has its checks, in this order. A check yields its findings, or nothing.
CHECKS: dict[str, tuple[Callable[[Here], Iterator[Finding]], ...]] = {
    "git": (git, locks, cut_short, cache),
    "environment": (environment,),
    "store": (copied, stuck, damaged, champions),
    "links": (links,),
    "queue": (queue,),
    "machine": (machine,),
}

if __name__ == "__main__":
    command.run(main)
