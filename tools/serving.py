"""`make serving`: logs the model of an MLflow run again as a new version, with the present code of src/vae/serving/."""

from vae.runtime import command

from pathlib import Path

from vae.tracking.record import record_serving


def main(params: Path, run: str) -> None:
    record_serving(params, run.strip(), Path().resolve())


if __name__ == "__main__":
    command.run(main)
