"""The places of the files of runs. A SQLite store has their absolute paths, which a move of the project breaks."""

from vae.runtime.repository import address

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"  # the folder next to the database
COLUMNS = (  # of the database, with places of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
WAIT_SECONDS = 60  # for another process that writes


def local_path(place: str) -> Path | None:
    """The path of a place on this machine, or None for a place on a server."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if place.startswith("/") else None


def strayed(file: Path, root: Path) -> list[Path]:
    """The folders of artifacts of a store in `root` that are not in `root`, because it was moved or copied."""
    here = root / ARTIFACTS
    if not file.is_relative_to(root):
        return []  # a store of several projects
    with closing(sqlite3.connect(file, timeout=WAIT_SECONDS)) as connection:
        places = [row[0] for row in connection.execute("SELECT artifact_location FROM experiments")]
    paths = {path.parent if path.name == "0" else path for place in places if (path := local_path(place or ""))}
    away = {path for path in paths if path.name == ARTIFACTS and path != here}
    return sorted(path for path in away if not (path.exists() and here.exists() and path.samefile(here)))


def settle(file: Path, root: Path, mend: bool = False) -> None:
    """Makes a store in `root` that was moved find its files again, and keep new ones here.
    If the old folder still exists, this is a copy, and nothing is changed without `mend`. Says so in one line."""
    for old in strayed(file, root):
        if mend or not old.exists():
            print(f"MLflow: the store was moved; its files were in {old}, now in {root / ARTIFACTS}", file=sys.stderr)
            _move(file, old, root / ARTIFACTS)
        else:
            message = f"the files of the store {file} are in {old}, new ones too; `make doctor MEND=1` keeps them here"
            print(f"MLflow: {message}", file=sys.stderr)


def _move(file: Path, old: Path, new: Path) -> None:
    """Replaces the folder in all places, except in those of files that are in the old folder alone."""

    def moved(place: str | None) -> str | None:
        path = local_path(place or "")
        if path is None or not path.is_relative_to(old):
            return place
        target = new / path.relative_to(old)
        if path != old and path.exists() and not target.exists():
            return place
        return target.as_uri() if str(place).startswith("file:") else str(target)

    here, before = address(new.parent), f":{old.parent}"
    with closing(sqlite3.connect(file, timeout=WAIT_SECONDS)) as connection, connection:
        connection.create_function("moved", 1, moved)
        for table, column in COLUMNS:
            connection.execute(f"UPDATE {table} SET {column} = moved({column}) WHERE {column} LIKE '%/{ARTIFACTS}%'")
        connection.execute(
            "UPDATE tags SET value = ? WHERE key = 'vae.place' AND substr(value, -length(?)) = ?",
            (here, before, before),
        )
