"""A state is recorded from its files, without running anything again: the present state, a commit or an experiment."""

import json
from pathlib import Path

from vae.errors import InputError
from vae.tracking.experiments import Experiment
from vae.tracking.worktree import execute, git, worktree


def record_again(root: Path, state: Experiment | str, result: Path) -> str:
    """Records the state of an experiment, as if it had just ended, or of a commit, and returns the id of its run.
    Raises InputError like `track`."""
    environment = {"DVC_ROOT": str(root)}
    if isinstance(state, str):
        with worktree(root, f"record-{state}", state, keep=False) as folder:
            return track(folder, result, f"commit {state[:7]}", "dvc fetch --all-commits", environment)
    environment |= {"DVC_EXP_NAME": state.name, "DVC_EXP_BASELINE_REV": state.baseline}
    with worktree(root, f"record-{state.name}", state.baseline, keep=False) as folder:
        git("checkout", state.revision, "--", ".", folder=folder)
        git("reset", "--quiet", "--intent-to-add", folder=folder)  # its changes are uncommitted again, its files known
        return track(folder, result, f"experiment {state.name}", f"dvc exp pull <remote> {state.name}", environment)


def track(folder: Path, result: Path, what: str, fetch: str, environment: dict[str, str] | None = None) -> str:
    """Runs the stage `track` alone, and returns the id of the run. Missing files come from DVC's cache.
    Raises InputError if the cache lacks them, so that `fetch` must bring them, or if the files are not the results of
    the code and the parameters next to them."""
    if missing := unready(folder)[0]:
        try:
            execute(["dvc", "checkout", *missing], folder)
        except InputError as error:
            files = ", ".join(missing)
            raise InputError(
                f"{what}: DVC's cache lacks {files}; `{fetch}` brings them from a remote, `dvc repro` makes them"
            ) from error
    missing, stale = unready(folder)
    if missing or stale:
        raise InputError(f"{what}: no results of this code and these parameters; `dvc repro` ({(missing + stale)[0]})")
    execute(["dvc", "repro", "--single-item", "--force", "track"], folder, environment)
    return str(json.loads((folder / result).read_text())["run_id"])


def unready(folder: Path) -> tuple[list[str], list[str]]:
    """The results that are not in `folder`, and everything else that DVC finds changed in the stages before `track`."""
    listed = json.loads(execute(["dvc", "status", "--json", "--with-deps", "track"], folder))
    found = [  # such as ("train", "changed deps", "params.yaml", "modified")
        (stage, kind, path, what)
        for stage, changes in listed.items()
        for change in changes
        for kind, paths in (change if isinstance(change, dict) else {change: {"": ""}}).items()
        for path, what in paths.items()
        if stage != "track"
    ]
    missing = [path for _, kind, path, _ in found if kind == "changed outs" and not (folder / path).exists()]
    stale = [
        f"{stage}: {kind} {path}" for stage, kind, path, what in found if what != "not in cache" and path not in missing
    ]
    return missing, stale
