"""Stage `track`: makes this state of the pipeline one complete MLflow run."""

from vae.runtime import command, files, repository

from pathlib import Path

from vae.tracking.record import record
from vae.tracking.state import State


def main(
    params: Path,
    *,
    data: Path,
    model: Path,
    curves: Path,
    validation: Path,
    evaluation: Path,
    plots: Path,
    samples: Path,
    run: Path,
    quality: Path,
    nearest: Path,
) -> None:
    state = State(params, data, model, curves, validation, evaluation, plots, samples)
    state.check()
    remove_if_stale(state, quality, nearest)
    run_id = record(state, repository.main_repository())
    files.write_json(run, {"run_id": run_id})
    print(f"MLflow run {run_id}")


def remove_if_stale(state: State, quality: Path, nearest: Path) -> None:
    """Removes the results of quality/dvc.yaml if they are of another model: DVC would list them as this model's."""
    if quality.is_file() and files.read_json(quality).get("model_sha256") != state.model_sha256:
        for path in (quality, nearest):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
