"""`make search`: looks for better parameters. Each trial is a DVC experiment and an MLflow run."""

from vae.runtime import command, repository

from pathlib import Path

from filelock import FileLock, Timeout

from vae.errors import InputError
from vae.tracking.search import Worker


def main(params: Path, search: Path, result: Path, remote: str) -> None:
    try:
        with FileLock(repository.state_folder(Path()) / "search.lock", blocking=False):
            best = Worker(params, search, result, remote.strip()).work()
    except Timeout as error:
        raise InputError(
            "a search runs in this clone; wait for it, or start another worker in another clone"
        ) from error
    fetch = f"dvc exp pull {remote.strip()} {best} && " if remote.strip() else ""
    print(f"the best experiment is {best}; `{fetch}dvc exp apply {best}` brings its parameters and results here")


if __name__ == "__main__":
    command.run(main)
