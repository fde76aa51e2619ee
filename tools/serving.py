"""`make serving`: logs the model of an MLflow run again as a new version, with the present code of src/vae/serving/."""

from vae.runtime import command

from pathlib import Path

from vae.errors import InputError
from vae.tracking.record import record_serving


def main(params: Path, run: str) -> None:
    if not (run := run.strip()):
        raise InputError("no run is named; `make serving RUN=<run id>`, which `make ui` and `make which` show")
    record_serving(params, run, Path().resolve())


if __name__ == "__main__":
    command.run(main)
