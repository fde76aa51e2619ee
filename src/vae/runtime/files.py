"""Files: their hashes, JSON and CSV."""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vae.errors import InputError


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_below(root: Path) -> list[Path]:
    """The files of a folder in order, or `root` alone if it is a file."""
    return [path for path in (sorted(root.rglob("*")) if root.is_dir() else [root]) if path.is_file()]


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError if git has left the conflict marks of a merge in it."""
    text = path.read_text()
    if re.search(r"^(<<<<<<<|>>>>>>>) ", text, flags=re.M):
        raise InputError(
            f"{path} has conflict marks of a merge; `git checkout --ours -- {path}` takes one side, "
            "and `dvc repro` makes the results of stages again"
        )
    return text


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file. Raises InputError if it is not JSON, or has conflict marks."""
    try:
        values: dict[str, Any] = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; `git restore {path}` brings the committed file back") from error
    return values


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all, so that no reader sees half of it. Creates its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, newline="")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file."""
    _replace(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    _replace(path, text.getvalue())
