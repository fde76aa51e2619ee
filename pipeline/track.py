"""Stage `track`: makes this state of the pipeline one complete MLflow run."""

from vae import command

# isort: split
import json
from pathlib import Path

from vae import checkpoint, tracking


def main(
    params: Path, data: Path, model: Path, curves: Path, evaluation: Path, plots: Path, samples: Path, result: Path
) -> None:
    """Records the run in MLflow."""
    state = tracking.State(params, data, model, curves, evaluation, plots, samples)
    run_id = tracking.record(state, checkpoint.repository())
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"run_id": run_id}, indent=2) + "\n")
    print(f"MLflow run {run_id}")


if __name__ == "__main__":
    command.run(main)
