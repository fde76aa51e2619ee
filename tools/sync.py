"""`make sync`: gives the present state, a commit or a DVC experiment its MLflow run, without running anything again."""

from vae.runtime import command, repository

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vae.errors import InputError
from vae.params import load
from vae.tracking import sync
from vae.tracking.address import shown, store_errors
from vae.tracking.experiments import experiments, recorded_run
from vae.tracking.store import Store, Tag, commits, experiment_names
from vae.tracking.worktree import execute, git, head


def main(params: Path, result: Path, revision: str, dry: bool) -> None:
    root, revision = Path().resolve(), revision.strip()
    store = Store(repository.main_repository(), load(params).track.experiment)
    what, recorded, experiment, commit, record = target(root, result, revision)
    with store_errors(store.uri):
        for run in store.find() if recorded or commit or experiment else []:
            linked = run.info.run_id == recorded or commit in commits(run) or experiment in experiment_names(run)
            if linked and run.info.status == "FINISHED" and not store.lost(run):
                print(f"{what}: MLflow run {run.info.run_id}")
                return
        if dry:
            option = f" REV={revision}" if revision else ""
            print(f"{what}: no whole run in {shown(store.uri)}; `make sync{option}` records it")
            return
        run_id = record()
        run = store.get_run(run_id)
        if commit and commit not in commits(run):
            store.set_tags(run_id, {Tag.COMMITS: ",".join(sorted(commits(run) | {commit}))})
        print(f"{what}: MLflow run {run_id}")


def target(root: Path, result: Path, revision: str) -> tuple[str, str | None, str, str, Callable[[], str]]:
    """What is recorded: its name, the id of its run, its experiment, its commit, and the function that records it.
    Raises InputError if the revision is neither an experiment nor a commit."""
    if not revision:
        current = execute(["dvc", "status", "--json", "track"], root).strip() == b"{}"
        changed = git("diff", "--name-only", "--relative", "HEAD", folder=root).decode().split("\n")
        commit = head() if {*changed} <= {"", str(result), "dvc.lock"} else ""
        run_id = json.loads(result.read_text())["run_id"] if current and result.is_file() else None
        return (
            "the present state",
            run_id,
            "",
            commit,
            partial(sync.track, root, result, "the present state", "dvc pull"),
        )
    for item in experiments(root, result):
        if item.name == revision:
            return f"experiment {revision}", item.run_id, item.name, "", partial(sync.record_again, root, item, result)
    try:
        commit = (
            git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}", folder=root).decode().strip()
        )
    except InputError as error:
        message = (
            f"REV={revision}: neither a DVC experiment nor a commit; `dvc exp list --all-commits`, `git fetch --all`"
        )
        raise InputError(message) from error
    run_id = recorded_run(root, commit, result)
    return f"commit {commit[:7]}", run_id, "", commit, partial(sync.record_commit, root, commit, result)


if __name__ == "__main__":
    command.run(main)
