"""Stage `track`: makes this state of the pipeline one complete MLflow run, and drops what is of another state."""

from vae import command

# isort: split
import json
from pathlib import Path

from vae import checkpoint, tracking


def main(
    params: Path,
    data: Path,
    model: Path,
    curves: Path,
    evaluation: Path,
    plots: Path,
    samples: Path,
    result: Path,
    quality: Path,
    nearest: Path,
) -> None:
    """Records the run in MLflow."""
    drop_of_another(model, quality, nearest)
    state = tracking.State(params, data, model, curves, evaluation, plots, samples)
    run_id = tracking.record(state, checkpoint.repository())
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"run_id": run_id}, indent=2) + "\n")
    print(f"MLflow run {run_id}")


def drop_of_another(model: Path, quality: Path, nearest: Path) -> None:
    """Removes what quality/dvc.yaml measured of another model: DVC would list it as this one's."""
    if quality.is_file() and json.loads(quality.read_text()).get("model_sha256") != tracking.file_sha256(model):
        for path in (quality, nearest):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
