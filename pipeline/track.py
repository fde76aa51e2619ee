"""Stage `track`: makes this state of the pipeline one complete MLflow run."""

from vae import command

# isort: split
import json
import os
from pathlib import Path

from vae import tracking


def main(
    params: Path, data: Path, model: Path, curves: Path, evaluation: Path, plots: Path, samples: Path, result: Path
) -> None:
    """Records the run in MLflow."""
    root = Path(os.environ.get("DVC_ROOT", "."))
    state = tracking.State(params, data, model, curves, evaluation, plots, samples)
    run_id = tracking.record(state, root)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"run_id": run_id}, indent=2) + "\n")
    print(f"MLflow run {run_id}")


if __name__ == "__main__":
    command.run(main)
