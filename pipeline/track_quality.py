"""Stage `track_quality`: adds the quality of samples to the MLflow runs of the model."""

from vae.runtime import command, repository

from pathlib import Path

from vae.tracking.record import record_quality
from vae.tracking.state import check_file


def main(params: Path, quality: Path, picture: Path) -> None:
    check_file(picture)
    for run_id in record_quality(params, quality, picture, repository.main_repository()):
        print(f"MLflow run {run_id} has the quality of its samples")


if __name__ == "__main__":
    command.run(main)
