"""`make sync`: gives the present state, a commit or a DVC experiment its MLflow run, without running anything again."""

from vae.runtime import command
from vae.runtime.network import shown

from pathlib import Path

from vae.errors import InputError
from vae.tracking import sync
from vae.tracking.address import store_errors
from vae.tracking.experiments import commits, experiment_names, experiments, recorded_run
from vae.tracking.store import Tag, open_store
from vae.tracking.worktree import git, head


def main(params: Path, result: Path, revision: str, dry: bool) -> None:
    root, revision = Path().resolve(), revision.strip()
    store = open_store(params)
    item = next((item for item in experiments(root, result) if item.name == revision), None)
    commit = "" if item else resolved(revision) if revision else unchanged(result)
    run_id = item.run_id if item else recorded_run(root, commit, result) if commit else None
    what = f"experiment {revision}" if item else f"commit {commit[:7]}" if revision else "the present state"
    with store_errors(store.uri):
        for run in store.find():
            linked = run.info.run_id == run_id or {revision, commit} & (experiment_names(run) | commits(run))
            if linked and run.info.status == "FINISHED" and not store.lost(run):
                print(f"{what}: MLflow run {run.info.run_id}")
                return
        if dry:
            option = f" REV={revision}" if revision else ""
            print(f"{what}: no whole run in {shown(store.uri)} is known; `make sync{option}` records it")
            return
        if revision:
            run_id = sync.record_again(root, item or commit, result)
        else:
            run_id = sync.track(root, result, what, "dvc pull")
        if commit and commit not in (known := commits(store.get_run(run_id))):
            store.set_tags(run_id, {Tag.COMMITS: ",".join(sorted(known | {commit}))})
        print(f"{what}: MLflow run {run_id}")


def resolved(revision: str) -> str:
    """The hash of a commit. Raises InputError if there is none."""
    try:
        return git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
    except InputError as error:
        message = f"REV={revision}: neither a DVC experiment nor a commit; see `dvc exp list --all-commits`, `git log`"
        raise InputError(message) from error


def unchanged(result: Path) -> str:
    """The hash of HEAD if it is the present state, or nothing. The two files that `track` changes do not count."""
    changed = git("diff", "--name-only", "--relative", "HEAD").decode().split("\n")
    return head() if {*changed} <= {"", str(result), "dvc.lock"} else ""


if __name__ == "__main__":
    command.run(main)
