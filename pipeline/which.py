"""Which MLflow run is this DVC experiment, and which experiment is this run?"""

from pathlib import Path

from vae import command, experiments, tracking
from vae.errors import InputError
from vae.params import load


def main(params: Path, result: Path, name: str) -> None:
    """Prints the other side of an experiment's name, a run's name or a run's id."""
    if not (name := name.strip()):
        raise InputError("nothing is named; `make which NAME=<experiment or run>`")
    store = tracking.Store(Path(), load(params).track.experiment)
    known = experiments.experiments(Path(), result)
    recorded = {item.run_id for item in known if item.name == name}
    runs = [
        run
        for run in store.find()
        if name in (run.info.run_id, run.info.run_name, *tracking.experiment_names(run)) or run.info.run_id in recorded
    ]
    if not runs:
        raise InputError(
            f"{name}: neither a DVC experiment with a run nor an MLflow run; `make doctor` looks for orphans"
        )
    for run in runs:
        tags, names = run.data.tags, tracking.experiment_names(run)
        here = [item.name for item in known if item.name in names or item.run_id == run.info.run_id]
        print(
            f"MLflow run {run.info.run_id} ({run.info.run_name}, {run.info.status}) is "
            f"{'DVC experiment ' + ', '.join(here) if here else 'no DVC experiment of this repository'}; "
            f"baseline {tags.get('dvc.baseline', 'none')[:7]}, commit {tags.get('git.commit', 'none')[:7]}"
            f"{' with changes' if tags.get('git.dirty') == 'true' else ''}"
        )


if __name__ == "__main__":
    command.run(main)
