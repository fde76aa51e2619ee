"""Files: their hashes, JSON and CSV."""

import csv
import hashlib
import io
import json
import math
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


def damaged(path: Path, what: str) -> InputError:
    """The error for a file with a wrong content, with the way out."""
    again = "`dvc repro` (`dvc repro quality/dvc.yaml` for the quality of samples) makes results again"
    return InputError(f"{path} {what}; `git restore {path}` brings the committed file back, and {again}")


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError if it is no text, or if git has left conflict marks in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "is no text") from error
    if re.search(r"^(<<<<<<<|>>>>>>>) ", text, flags=re.M):
        raise InputError(
            f"{path} has conflict marks of a merge; `git checkout --ours -- {path}` takes one side, "
            "and `dvc repro` makes the results of stages again"
        )
    return text


def _number(text: str) -> float:
    """A number of a JSON file. Raises ValueError for NaN, and for a number that is too large for a float."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return int(text) if text.lstrip("-").isdigit() else value


def read_json(path: Path, **needed: type) -> dict[str, Any]:
    """The values of a JSON file. A value of the type `float` may be a whole number.
    Raises InputError if it is not JSON, has conflict marks or a number that is not finite, or lacks a value."""
    text = read_text(path)
    try:
        values = json.loads(text, parse_float=_number, parse_int=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise damaged(path, "is no JSON object with names and values")
    for name, kind in needed.items():
        if type(values.get(name)) not in ({int, float} if kind is float else {kind}):
            raise damaged(path, f"has no {name}" if name not in values else f"has a {name} that is no {kind.__name__}")
    return values


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file, and creates its folder if it is missing. The file is whole, or as it was before, even if the
    power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_whole(path, text.getvalue().encode())
