"""`make doctor`: finds runs and experiments that DVC and MLflow do not both know, and repairs what can be repaired."""

from vae.runtime import checkpoint, command, repository

import sys
from pathlib import Path

from mlflow.entities import Run

from vae.errors import InputError
from vae.params import load
from vae.tracking.experiments import Experiment, experiments, record_again
from vae.tracking.store import Store, Tag, experiment_names


def main(params: Path, result: Path, mend: bool) -> None:
    root = Path().resolve()
    store = Store(root, load(params).track.experiment)
    runs, known = store.find(), experiments(root, result)
    left = stuck(store, runs, mend) + unrecorded(root, runs, known, mend)
    orphans(runs, known)
    print(f"{len(runs)} runs, {len(known)} experiments: {left or 'nothing'} to mend")
    sys.exit(1 if left else 0)


def stuck(store: Store, runs: list[Run], mend: bool) -> int:
    """Runs that are RUNNING although no training holds their lock.
    A run that only waits for `track` may be ended too: `track` completes it all the same."""
    here = repository.address(store.root)  # other repositories may share the store
    open_runs = [run for run in runs if run.info.status == "RUNNING" and run.data.tags.get(Tag.PLACE, here) == here]
    found = [run for run in open_runs if not checkpoint.is_held(store.root, run.data.tags.get(Tag.TRAINING, ""))]
    for run in found:
        if mend:
            store.set_terminated(run.info.run_id, "KILLED")
        print(f"{run.info.run_name} ({run.info.run_id}): RUNNING, but nothing trains{'; ended as KILLED' * mend}")
    return 0 if mend else len(found)


def unrecorded(root: Path, runs: list[Run], known: list[Experiment], mend: bool) -> int:
    """Experiments whose run is not in this store. Their files are recorded again from DVC's cache."""
    ids = {run.info.run_id for run in runs}
    names = {name for run in runs for name in experiment_names(run)}
    left = [item for item in known if item.run_id not in ids and item.name not in names]
    for item in list(left):
        print(f"experiment {item.name} ({item.revision[:7]}): no run in this store{'; recording it' * mend}")
        if mend:
            try:
                record_again(root, item)
                left.remove(item)
            except InputError as error:
                print(f"  not recorded: {error}")
    return len(left)


def orphans(runs: list[Run], known: list[Experiment]) -> None:
    """Names the runs whose experiment DVC no longer has. Nothing is lost, because each can be run again."""
    names, recorded = {item.name for item in known}, {item.run_id for item in known}
    for run in runs:
        gone = experiment_names(run) - names
        if gone and run.info.run_id not in recorded and not experiment_names(run) & names:
            print(
                f"{run.info.run_name} ({run.info.run_id}): DVC has no experiment {', '.join(sorted(gone))}; "
                f"`make reproduce RUN={run.info.run_id}` runs it again"
            )


if __name__ == "__main__":
    command.run(main)
