"""Stage `track_quality`: adds the quality of samples to the MLflow runs of the model."""

from vae import command

# isort: split
from pathlib import Path

from vae import checkpoint, tracking
from vae.params import load


def main(params: Path, quality: Path, picture: Path) -> None:
    """Records the quality of samples in MLflow."""
    for run_id in tracking.record_quality(quality, picture, load(params), checkpoint.repository()):
        print(f"MLflow run {run_id} has the quality of its samples")


if __name__ == "__main__":
    command.run(main)
