"""`make doctor`: says in one line for each thing what is wrong and how to mend it, and mends what it can.
It checks git, the environment, the store, the links between DVC and MLflow, the queue and the machine. The exit code is
1 if something is left to mend."""

from vae.runtime import command, cores, repository

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlflow import MlflowException
from packaging.requirements import Requirement

import vae
from vae.errors import InputError
from vae.params import load
from vae.tracking import checks, worktree
from vae.tracking.address import reason
from vae.tracking.checks import Finding, Here, mendable

LEAST_BYTES = 2 << 30  # free space for the cache, the runs and a checkpoint


def main(params: Path, result: Path, mend: bool, every: bool) -> None:
    here, said, left = Here(params, result, mend, every), set[str](), 0
    for name, parts in CHECKS.items():
        found = [finding for check in parts for finding in examined(check, here) if finding.text not in said]
        said |= {finding.text for finding in found}
        left += sum(finding.left for finding in found)
        for line in [finding.text for finding in found] or ["ok"]:
            print(f"{name}: {line}")
    print(f"{left or 'nothing'} to mend")
    sys.exit(1 if left else 0)


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


def cache(here: Here) -> Iterator[Finding]:
    """Whether DVC can keep new results, and has one cache for all work trees, because experiments are known in each."""
    main, used = repository.main_work_tree(here.root), worktree.cache(here.root)
    if used.exists() and not os.access(used, os.W_OK):
        yield Finding(
            f"DVC's cache {used} cannot be written, so no new result can be kept; `dvc config --local --unset "
            f"cache.dir`, then `dvc remote add --local --default shared {used}`"
        )
    if (shared := worktree.cache(main)) != used:
        if here.mend:
            worktree.share_cache(main, here.root)
        text = f"DVC's cache is not the one of the main work tree, {shared}"
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


def machine(here: Here) -> Iterator[Finding]:
    """Whether the machine has the room and the cores that params.yaml asks for."""
    if (free := shutil.disk_usage(here.root).free) < LEAST_BYTES:
        yield Finding(f"{here.root}: {free >> 20} MB are free, and {LEAST_BYTES >> 20} MB are needed; make room")
    threads, usable = load(here.params).train.threads, len(cores.usable())
    if threads > usable:
        yield Finding(f"train.threads is {threads}, but {usable} cores can be used; lower it in {here.params}", False)


# Each part of the report has its checks, in this order. A check yields its findings, or nothing.
CHECKS: dict[str, tuple[Callable[[Here], Iterator[Finding]], ...]] = {
    "git": (git, cache),
    "environment": (environment,),
    "store": (checks.copied, checks.stuck, checks.damaged, checks.champions),
    "links": (checks.unrecorded, checks.orphans),
    "queue": (checks.queue,),
    "machine": (machine,),
}

if __name__ == "__main__":
    command.run(main)
