"""`make which`: which MLflow run is this DVC experiment, and which experiment is this run?"""

from vae.runtime import command, repository

from pathlib import Path

from vae.errors import InputError
from vae.params import load
from vae.tracking.experiments import experiments, experiments_of
from vae.tracking.store import Store, Tag, experiment_names


def main(params: Path, result: Path, name: str) -> None:
    if not (name := name.strip()):
        raise InputError("nothing is named; `make which NAME=<experiment or run>`")
    store = Store(repository.main_repository(), load(params).track.experiment)
    known, runs = experiments(Path(), result), {run.info.run_id: run for run in store.find()}
    held = [runs[item.run_id] for item in known if item.name == name and item.run_id in runs]
    named = [run for run in runs.values() if name in (run.info.run_id, run.info.run_name, *experiment_names(run))]
    if not (held or named):
        raise InputError(
            f"{name}: neither a DVC experiment with a run nor an MLflow run; `make doctor` looks for orphans"
        )
    for run in held or named:  # a name that was used twice is the run that the experiment holds now
        tags, here = run.data.tags, ", ".join(item.name for item in experiments_of(run, known, runs.keys()))
        print(
            f"MLflow run {run.info.run_id} ({run.info.run_name}, {run.info.status}) is "
            f"{'DVC experiment ' + here if here else 'no DVC experiment of this repository'}; "
            f"baseline {tags.get(Tag.BASELINE, 'none')[:7]}, commit {tags.get(Tag.COMMIT, 'none')[:7]}"
            f"{' with changes' if tags.get(Tag.DIRTY) == 'true' else ''}"
        )


if __name__ == "__main__":
    command.run(main)
