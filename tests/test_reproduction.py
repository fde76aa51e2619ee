"""A run is restored, run again and compared. Real pipelines: tests/pipeline."""

from vae.runtime.files import sha256

import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tools import reproduce
from vae.errors import InputError
from vae.tracking import reproduction
from vae.tracking.worktree import git

SETTINGS = ("params.yaml", "dvc.yaml", "dvc.lock")


@pytest.fixture
def run(tmp_path):
    """A work tree at a commit, and the artifacts of a run with changes of all kinds."""
    folder, recorded = tmp_path / "tree", tmp_path / "recorded"
    for path in (folder, recorded):
        path.mkdir()

    def git(*arguments: str) -> bytes:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout

    files = {"code.py": b"x = 1\r\n", "data.bin": bytes(range(256)), **dict.fromkeys(SETTINGS, b"old\n")}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    changed = {"code.py": b"x = 2\r\n", "data.bin": bytes(range(255, -1, -1)), "new.txt": b"caf\xe9\r\n"}
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    git("add", "--all")
    (recorded / "working-tree.diff").write_bytes(git("diff", "--cached", "--binary", "HEAD"))
    for name in SETTINGS:
        (recorded / name).write_bytes(f"{name} of the run\r\n".encode())
    git("reset", "--quiet", "--hard")
    assert not (folder / "new.txt").exists()
    return folder, recorded, changed


def test_a_run_is_restored_byte_for_byte(run):
    """Its text has any encoding and line ends. There are binary files, new files, params and a lock file."""
    folder, recorded, changed = run
    reproduction.restore(folder, recorded)
    for name, content in changed.items():
        assert (folder / name).read_bytes() == content
    for name in SETTINGS:
        assert (folder / name).read_bytes() == (recorded / name).read_bytes()


@pytest.mark.parametrize("setting", ["fix", "error"])
def test_settings_of_the_user_do_not_change_what_is_restored(run, monkeypatch, tmp_path, setting):
    """Not the spaces at the ends of lines either."""
    folder, recorded, _ = run
    settings = tmp_path / "settings"
    settings.write_text(f"[apply]\nwhitespace = {setting}\nignoreWhitespace = change\n[core]\nhooksPath = none\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    content = b"x = 2  \n\n\n"
    (folder / "code.py").write_bytes(content)
    (recorded / "working-tree.diff").write_bytes(git("diff", "--binary", "HEAD", folder=folder))
    git("checkout", "--quiet", "--", ".", folder=folder)
    reproduction.restore(folder, recorded)
    assert (folder / "code.py").read_bytes() == content


def test_files_that_the_record_lacks_are_named(tmp_path, capsys):
    """With the question if a stage may need them. A run of an older version does not say."""
    reproduction.tell_left_out(tmp_path)
    assert capsys.readouterr().out == ""
    left_out = {"needed": {"src/new.py": "new"}, "others": {".env": "named like a secret", "venv/": "an environment"}}
    (tmp_path / "left-out.json").write_text(json.dumps(left_out))
    reproduction.tell_left_out(tmp_path)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "src/new.py is not in the record, and a stage may need it: new",
        "not in the record, and no stage depends on it: .env, venv/",
    ]


def test_a_run_without_changes_is_restored(run):
    folder, recorded, _ = run
    (recorded / "working-tree.diff").write_bytes(b"")
    reproduction.restore(folder, recorded)
    assert (folder / "code.py").read_bytes() == b"x = 1\r\n"


def test_changes_that_do_not_fit_are_one_clear_error(run):
    folder, recorded, _ = run
    (folder / "code.py").write_bytes(b"something else\n")
    with pytest.raises(InputError, match="git apply"):
        reproduction.restore(folder, recorded)


@pytest.mark.parametrize("works", [0, 1, 2, 3])
def test_data_comes_from_the_first_source_that_works(tmp_path, monkeypatch, works):
    """DVC's cache, then its remote, then the mirrors. If none has it, nothing is trained."""
    done = []

    def execute(command, folder, environment=None):
        done.append((command, environment))
        if len(done) <= works:
            raise InputError(f"failure {len(done)}")

    monkeypatch.setattr(reproduction, "execute", execute)
    sources = [["dvc", "checkout", "--force", "data"], ["dvc", "pull", "data"], ["dvc", "repro", "download"]]
    if works == 3:
        with pytest.raises(InputError, match="failure 3"):
            reproduction.rerun(tmp_path)
    else:
        reproduction.rerun(tmp_path)
    asked = min(works + 1, 3)
    assert [command for command, _ in done[:asked]] == sources[:asked]
    stages = done[asked:]
    assert [command[-1] for command, _ in stages] == (["train", "evaluate", "generate"] if works < 3 else [])
    for command, environment in stages:
        assert {"--single-item", "--force", "--no-commit"} <= set(command)
        assert environment["DVC_ROOT"] == str(tmp_path)
        assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path / 'mlflow.db'}"  # not the user's store


def test_numbers_of_each_kind_of_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"x": 1.5, "name": "text", "n": 2}))
    (tmp_path / "a.csv").write_text("epoch,loss\n1,2.5\n2,1.25\n")
    Image.fromarray(np.array([[0, 7], [255, 1]], dtype=np.uint8)).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", b=np.array([3.0]), a=np.array([[1, 2]]))
    save_file({"w": np.array([[1.0, 2.0]]), "b": np.array([0.5])}, tmp_path / "a.safetensors")
    (tmp_path / "a.txt").write_text("1 2 3")
    expected = {
        "json": [1.5, 2],
        "csv": [1, 2.5, 2, 1.25],
        "png": [0, 7, 255, 1],
        "npz": [1, 2, 3],
        "safetensors": [0.5, 1, 2],
        "txt": [],
    }
    for suffix, numbers in expected.items():
        found = reproduction._numbers(tmp_path / f"a.{suffix}")
        assert (found.dtype, found.tolist()) == (np.float64, numbers)


@pytest.mark.parametrize(
    ("name", "one", "other", "kind", "words"),
    [
        ("a.csv", "x,y\n1,2\n3,4\n", "x,y\n1,2\n3,4\n", "SAME", ""),
        ("a.csv", "x,y\n100,2\n3,4\n", "x,y\n100.9,2\n3,4\n", "CLOSE", "largest difference 0.9 over 4 numbers"),
        ("a.csv", "x,y\n100,2\n3,4\n", "x,y\n101.1,2\n3,4\n", "DIFFERENT", "largest difference 1.1 over 4 numbers"),
        ("a.csv", "x\n1\n", "x\n1\n2\n", "DIFFERENT", "other content"),
        ("a.csv", "x\n1\nnan\n", "x\n1\n2\n", "DIFFERENT", "other numbers are finite"),
        ("a.csv", "x\n1\nnan\n", "x\n1.001\nnan\n", "CLOSE", "largest difference 0.001 over 2 numbers"),
        ("a.json", '{"x": 1, "sha": "a"}', '{"x": 1, "sha": "b"}', "DIFFERENT", "other content"),
        ("a.json", '{"x": 1, "precision": "bf16"}', '{"x": 1, "precision": "fp32"}', "CLOSE", "largest difference 0"),
        ("a.json", '{"x": 1}', '{"x": 1', "DIFFERENT", "unreadable"),
        ("a.json", '{"x": 1}', "[1]", "DIFFERENT", "unreadable"),
        ("a.png", "no picture", "no picture either", "DIFFERENT", "unreadable"),
        ("a.npz", "no archive", "no archive either", "DIFFERENT", "unreadable"),
        ("a.safetensors", "no tensors", "no tensors either", "DIFFERENT", "unreadable"),
        ("a.txt", "one", "other", "DIFFERENT", "other content"),
    ],
)
@pytest.mark.parametrize("other_machine", [False, True])
def test_the_three_verdicts(tmp_path, name, one, other, kind, words, other_machine):
    """Figures are the same, close or different on every machine. A damaged file is different, and no traceback."""
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / name).write_text(one)
    (tmp_path / name).write_text(other)
    expected = sha256(tmp_path / "recorded" / name)
    found, detail = reproduction.verdict(tmp_path / name, expected, tmp_path / "recorded" / name, other_machine)
    assert found == getattr(reproduction, kind)
    assert detail.startswith(words)


@pytest.mark.parametrize(("other_machine", "kind"), [(False, "DIFFERENT"), (True, "CLOSE")])
def test_weights_and_pictures_may_differ_only_on_another_machine(tmp_path, other_machine, kind):
    (tmp_path / "recorded").mkdir()
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "recorded/a.safetensors")
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    found = reproduction.verdict(tmp_path / "a.safetensors", "0", tmp_path / "recorded/a.safetensors", other_machine)
    assert found == (getattr(reproduction, kind), "largest difference 1 over 3 numbers")


@pytest.mark.parametrize(("other_machine", "kind"), [(False, "DIFFERENT"), (True, "CLOSE")])
def test_a_chart_may_differ_like_a_picture(tmp_path, other_machine, kind):
    """A latent with few nats changes by more than a figure may."""
    paths = [tmp_path / folder / "latents.csv" for folder in ("plots", "recorded/plots")]
    for path, nats in zip(paths, (0.2, 0.3), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(f"latent,nats\n1,{nats}\n")
    assert reproduction.verdict(paths[0], "0", paths[1], other_machine)[0] == getattr(reproduction, kind)


def test_files_are_compared_one_by_one(tmp_path, capsys):
    """Each file has a verdict: the same, different, of another shape, or missing."""
    folder, recorded = tmp_path / "tree", tmp_path / "recorded"
    for path in (folder, recorded):
        path.mkdir()
        (path / "same.json").write_text('{"x": 1}')
        (path / "other.json").write_text(json.dumps({"x": 1 + 5 * (path == folder)}))
        (path / "shape.csv").write_text("x\n1\n" + "2\n" * (path == folder))
    hashes = {path.name: sha256(path) for path in recorded.iterdir()} | {"missing.png": "0"}
    found = reproduction.compare(folder, dict(sorted(hashes.items())), recorded, other_machine=False)
    assert found == {reproduction.DIFFERENT: 3, reproduction.SAME: 1}
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["missing.png", "different (missing)"],
        ["other.json", "different (largest difference 5 over 1 numbers)"],
        ["same.json", "the same, bit for bit"],
        ["shape.csv", "different (other content)"],
    ]


def test_a_run_with_the_parameters_of_another_version_is_compared_too(root, tmp_path, capsys):
    """Only its number of threads counts. A key that is missing or gone is no error after minutes of training."""
    text = (root / "params.yaml").read_text()
    assert "  tags: {}" in text
    recorded = tmp_path / "params.yaml"
    recorded.write_text(text.replace("  tags: {}", "  gone: 1 "))
    tags = {"machine.threads": "2", "machine.cpu": "another"}
    (line,) = reproduce.machine_differences(recorded, tags)
    assert line.startswith("machine.cpu: another when it was recorded")
    assert line in capsys.readouterr().out
    assert reproduce.machine_differences(recorded, {}) == []
