"""`make which`: which MLflow run is this DVC experiment, and which experiment is this run?"""

from vae.runtime import command

from pathlib import Path

from vae.errors import InputError
from vae.tracking.experiments import experiment_names, experiments, experiments_of
from vae.tracking.store import Tag, open_store


def main(params: Path, result: Path, name: str) -> None:
    if not (name := name.strip()):  # which would match every run
        raise InputError("nothing is named; `make which NAME=<experiment or run>`")
    known, store = experiments(Path(), result), open_store(params)
    recorded = {item.run_id for item in known if item.name == name}
    like = name.replace(",", "%").replace("'", "_")  # a comma has a backslash in the tag, and a quote ends the text
    ids = ", ".join(f"'{run_id}'" for run_id in {like, *recorded})
    conditions = f"attributes.run_name LIKE '{like}'", f"tags.`{Tag.EXPERIMENTS}` LIKE '%{like}%'"
    found = {
        run.info.run_id: run  # three searches, because to read all runs of a large store takes half a minute
        for condition in (f"attributes.run_id IN ({ids})", *conditions)
        for run in store.search_runs([store.experiment.experiment_id], condition)
    }
    held = [run for run_id, run in found.items() if run_id in recorded]
    named = [run for run_id, run in found.items() if name in (run_id, run.info.run_name, *experiment_names(run))]
    if recorded and not (held or named):
        raise InputError(f"{name}: this experiment has no run in this store; `make sync REV={name}` gives it one")
    if not (held or named):
        raise InputError(f"{name}: no DVC experiment with a run, and no MLflow run; see `make doctor`")
    for run in held or named:  # a name that was used twice is the run that the experiment holds now
        tags, here = run.data.tags, ", ".join(item.name for item in experiments_of(run, known, found.keys()))
        print(
            f"MLflow run {run.info.run_id} ({run.info.run_name}, {run.info.status}) is "
            f"{'DVC experiment ' + here if here else 'no DVC experiment of this repository'}; "
            f"baseline {tags.get(Tag.BASELINE, 'none')[:7]}, commit {tags.get(Tag.COMMIT, 'none')[:7]}"
            f"{' with changes' if tags.get(Tag.DIRTY) == 'true' else ''}"
        )


if __name__ == "__main__":
    command.run(main)
