"""Hashes, and JSON and CSV files."""

from vae.runtime import files

import csv
import hashlib
import json
import math

import pytest

from vae.errors import InputError


@pytest.mark.parametrize("content", [b"", b"caf\xe9\r\n", bytes(3_000_000)], ids=["empty", "text", "large"])
def test_the_hash_is_of_the_bytes(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert files.sha256(path) == hashlib.sha256(content).hexdigest()


def test_files_below_a_folder_are_sorted(tmp_path):
    """Folders are left out. Files in them count, also hidden ones."""
    for name in ("b", "a/z", "a/.hidden", "c/d/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in files.files_below(tmp_path)]
    assert found == ["a/.hidden", "a/z", "b", "c/d/e"]
    assert files.files_below(tmp_path / "b") == [tmp_path / "b"]
    assert files.files_below(tmp_path / "missing") == []


def test_json_has_one_line_for_each_value(tmp_path):
    """The folder is created, every float keeps all its digits, and the last line ends."""
    values = {"pi": math.pi, "count": 3, "sha256": "0"}
    path = tmp_path / "new" / "folder" / "file.json"
    files.write_json(path, values)
    assert json.loads(path.read_text()) == values
    assert path.read_text().splitlines()[1:-1] == [f'  "pi": {math.pi!r},', '  "count": 3,', '  "sha256": "0"']
    assert path.read_text().endswith("}\n")


def test_csv_has_the_columns_first(tmp_path):
    """The folder is created, lines end as on Linux, and every float keeps all its digits."""
    path = tmp_path / "new" / "file.csv"
    files.write_csv(path, ("epoch", "name"), [(1, math.pi), (2, "a,b")])
    assert path.read_bytes() == f'epoch,name\n1,{math.pi!r}\n2,"a,b"\n'.encode()
    with path.open(newline="") as file:
        assert float(next(csv.DictReader(file))["name"]) == math.pi


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("old content, longer than the new content\n" * 9)
    files.write_json(path, {})
    assert path.read_text() == "{}\n"
    files.write_csv(path, ["x"], [])
    assert path.read_text() == "x\n"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """If a write fails halfway, the old file stays alone. Until the end, a reader has the old file."""
    path, seen = tmp_path / "train.csv", []
    files.write_csv(path, ["x"], [[1]])

    def full(_file):
        seen.append(path.read_text())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_csv(path, ["x"], [[2]])
    assert seen == [path.read_text()] == ["x\n1\n"]
    with pytest.raises(TypeError):
        files.write_json(path, {"x": object()})
    assert path.read_text() == "x\n1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_conflict_marks_are_named(tmp_path):
    """Git leaves them in a file, if two branches have changed it."""
    path = tmp_path / "quality.json"
    path.write_text('{\n<<<<<<< HEAD\n"a": 1\n=======\n"a": 2\n>>>>>>> other\n}\n')
    for read in (files.read_text, files.read_json):
        with pytest.raises(InputError, match=r"quality\.json has conflict marks.*git checkout --ours") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(InputError, match=r"quality\.json is not JSON.*git restore") as caught:
        files.read_json(path)
    files.write_json(path, {"a": "<<<<<<< "})
    assert files.read_json(path) == {"a": "<<<<<<< "}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is no text"),
        (b"[1]", "is no JSON object"),
        (99999 * b"[", "is not JSON"),
        (b'{"a": NaN}', "is not JSON: NaN is no finite number"),
        (b'{"a": [-1e999]}', "is not JSON: -1e999 is no finite number"),
        (b"{}", "has no run_id"),
        (b'{"run_id": 1}', "has a run_id that is no str"),
    ],
)
def test_a_damaged_json_file_is_one_line_with_the_way_out(tmp_path, content, problem):
    path = tmp_path / "mlflow.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        files.read_json(path, run_id=str)
    assert str(caught.value).startswith(f"{path} {problem}")
    assert str(caught.value).endswith("makes results again")
    assert "\n" not in str(caught.value)


def test_numbers_of_json_keep_their_type(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"whole": -3, "large": 12345678901234567890, "real": 1e3}')
    values = files.read_json(path, whole=int, large=float, real=float)
    assert [(type(value), value) for value in values.values()] == [
        (int, -3),
        (int, 12345678901234567890),
        (float, 1000),
    ]


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"new")
    assert [item.read_bytes() for item in tmp_path.iterdir()] == [b"old"]
