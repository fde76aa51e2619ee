"""`make which`: which MLflow run is this DVC experiment, and which experiment is this run?"""

from vae.runtime import command, repository

from pathlib import Path

from vae.errors import InputError
from vae.params import load
from vae.tracking.experiments import experiments
from vae.tracking.store import Store, Tag, experiment_names


def main(params: Path, result: Path, name: str) -> None:
    if not (name := name.strip()):
        raise InputError("nothing is named; `make which NAME=<experiment or run>`")
    store = Store(repository.main_repository(), load(params).track.experiment)
    known = experiments(Path(), result)
    recorded = {item.run_id for item in known if item.name == name}
    ids = ", ".join(f"'{run_id}'" for run_id in {name, *recorded} if run_id)
    named = f"attributes.run_name = '{name}'", f"tags.`{Tag.EXPERIMENTS}` LIKE '%{name}%'"
    found = {
        run.info.run_id: run  # three searches, because to read all runs of a large store takes half a minute
        for condition in (f"attributes.run_id IN ({ids})", *named)
        for run in ([] if "'" in name else store.search_runs([store.experiment.experiment_id], condition))
    }
    runs = [
        run
        for run_id, run in found.items()
        if name in (run_id, run.info.run_name, *experiment_names(run)) or run_id in recorded
    ]
    if not runs:
        raise InputError(
            f"{name}: neither a DVC experiment with a run nor an MLflow run; `make doctor` looks for orphans"
        )
    for run in runs:
        tags, names = run.data.tags, experiment_names(run)
        here = [item.name for item in known if item.name in names or item.run_id == run.info.run_id]
        print(
            f"MLflow run {run.info.run_id} ({run.info.run_name}, {run.info.status}) is "
            f"{'DVC experiment ' + ', '.join(here) if here else 'no DVC experiment of this repository'}; "
            f"baseline {tags.get(Tag.BASELINE, 'none')[:7]}, commit {tags.get(Tag.COMMIT, 'none')[:7]}"
            f"{' with changes' if tags.get(Tag.DIRTY) == 'true' else ''}"
        )


if __name__ == "__main__":
    command.run(main)
