"""Stage `track`: makes this state of the pipeline one complete MLflow run."""

from vae.runtime import command, files, repository

from pathlib import Path

from PIL import Image

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
    empty_if_stale(state, quality, nearest)
    run_id = record(state, repository.main_repository())
    files.write_json(run, {"run_id": run_id})
    print(f"MLflow run {run_id}")


def empty_if_stale(state: State, quality: Path, nearest: Path) -> None:
    """Empties the results of quality/dvc.yaml if they are of another model: DVC would list them as this model's.
    The files stay, because DVC commands complain about an output that is missing."""
    if quality.is_file() and files.read_json(quality).get("model_sha256") != state.model_sha256:
        files.write_json(quality, {})
        Image.new("L", (1, 1)).save(nearest)


if __name__ == "__main__":
    command.run(main)
