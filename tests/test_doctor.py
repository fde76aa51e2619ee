"""What the doctor says of git, the environment and the machine. Runs and experiments: tests/pipeline."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import doctor
from tools.doctor import Finding, Here
from vae.errors import InputError


def here(mend: bool = False) -> Here:
    """The current folder as the doctor sees it."""
    return Here(Path("params.yaml"), Path("metrics/mlflow.json"), mend)


def git(*arguments: str) -> None:
    """Runs git with a name and an address, which a commit needs."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The current folder: a repository with one commit, and an identity."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("base\n")
    git("init", "--quiet", "--initial-branch", "main")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    for name in ("user.name", "user.email"):
        git("config", name, "mine")


def said(check) -> list[str]:
    """The lines of a check, each of which names a way out."""
    found = list(doctor.examined(check, here()))
    assert all(item.left for item in found)
    return [item.text for item in found]


def test_git_is_well(repository):
    assert said(doctor.git) == []


def test_a_folder_without_a_commit_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    (line,) = said(doctor.git)
    assert "git cat-file" in line


def test_an_identity_that_is_missing_is_a_finding_unless_dvc_has_a_stand_in(repository, monkeypatch):
    git("config", "--unset", "user.email")
    (line,) = said(doctor.git)
    assert "no user.email" in line
    assert "git config --global user.email" in line
    monkeypatch.setenv("GIT_COMMITTER_NAME", "vae-pipeline")
    assert [item.left for item in doctor.git(here())] == [False]


@pytest.mark.parametrize("name", ["index.lock", "refs/exps/exec/EXEC_MERGE.lock"])
def test_a_lock_of_a_killed_git_is_removed_and_a_new_one_stays(repository, tmp_path, name):
    """`dvc exp run` that was killed while it wrote a reference fails ever after, with `File exists`."""
    lock = tmp_path / ".git" / name
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    assert said(doctor.locks) == []
    os.utime(lock, (0, 0))
    (line,) = said(doctor.locks)
    assert str(lock) in line
    assert "MEND=1" in line
    (mended,) = doctor.locks(here(mend=True))
    assert not mended.left
    assert not lock.exists()


@pytest.mark.parametrize(
    ("name", "whole", "half"),
    [
        ("dvc.lock", "schema: '2.0'\nstages: {}\n", "schema: '2.0'\nstages:\n  download:\n    cmd: a\n    outs:"),
        (".dvc/tmp/rwlock", '{"read": {}, "write": {}}', '{"read": {"a": [{"p'),
    ],
)
@pytest.mark.parametrize("committed", [True, False])
def test_a_file_that_a_killed_dvc_cut_short_is_put_back(repository, tmp_path, name, whole, half, committed):
    """DVC writes it in place, and fails in every command until it is whole."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(whole)
    os.utime(path, (0, 0))
    assert said(doctor.cut_short) == []
    if committed:
        git("add", "--all")
        git("commit", "--quiet", "--message", "whole")
    for text in (half, ""):
        path.write_text(text)
        assert said(doctor.cut_short) == []  # it may be written just now
        os.utime(path, (0, 0))
        (line,) = said(doctor.cut_short)
        assert name in line
        assert "MEND=1" in line
        (mended,) = doctor.cut_short(here(mend=True))
        assert not mended.left
        assert (path.read_text() if path.exists() else None) == (whole if committed else None)


def test_a_lock_file_with_a_merge_in_it_is_left_to_the_user(repository, tmp_path):
    lock = tmp_path / "dvc.lock"
    lock.write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n")
    os.utime(lock, (0, 0))
    assert said(doctor.cut_short) == []


def test_a_cache_that_cannot_be_written_is_a_finding(repository, tmp_path, monkeypatch):
    subprocess.run(["dvc", "init", "--quiet"], check=True)
    assert said(doctor.cache) == []
    folder = tmp_path / ".dvc/cache"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(doctor.os, "access", lambda path, _: path != folder)
    (line,) = said(doctor.cache)
    assert f"{folder} cannot be written" in line
    assert "dvc config --local --unset cache.dir" in line


def test_a_shallow_clone_and_a_path_that_dvc_cannot_write(repository, tmp_path, monkeypatch):
    git("commit", "--quiet", "--allow-empty", "--message", "more")
    folder = tmp_path / "é"
    git(
        "clone",
        "--quiet",
        "--config",
        "user.name=t",
        "--config",
        "user.email=t",
        "--depth",
        "1",
        f"file://{tmp_path}",
        str(folder),
    )
    monkeypatch.chdir(folder)
    shallow, path = said(doctor.git)
    assert "git fetch --unshallow" in shallow
    assert "é has letters outside ASCII" in path


def test_an_unfinished_merge_names_its_files(repository):
    git("checkout", "--quiet", "-b", "other")
    for branch in ("other", "main"):
        git("checkout", "--quiet", branch)
        Path("dvc.yaml").write_text(branch)
        git("commit", "--quiet", "--all", "--message", branch)
    assert subprocess.run(["git", "merge", "--quiet", "other"], capture_output=True).returncode == 1
    (line,) = said(doctor.git)
    assert line.startswith("an unfinished merge of dvc.yaml; ")


def test_a_linked_work_tree_gets_the_cache_of_the_main_one(repository, tmp_path, monkeypatch):
    folder = tmp_path / "linked"
    git("worktree", "add", "--quiet", str(folder))
    shared = []
    monkeypatch.setattr(doctor.worktree, "cache", lambda root: root / ".dvc/cache")
    monkeypatch.setattr(doctor.worktree, "share_cache", lambda *folders: shared.append(folders))
    assert said(doctor.cache) == []
    monkeypatch.chdir(folder)
    (line,) = said(doctor.cache)
    assert "MEND=1" in line
    assert shared == []
    (mended,) = doctor.cache(here(mend=True))
    assert not mended.left
    assert shared == [(tmp_path.resolve(), folder.resolve())]


def test_an_environment_that_is_not_the_locked_one(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root)
    assert not [line for line in said(doctor.environment) if line.startswith("`import vae`")]
    monkeypatch.setattr(doctor, "distributions", lambda: [SimpleNamespace(name="Torch", version="2.14.0+cpu")])
    monkeypatch.chdir(tmp_path)
    Path("requirements.lock").write_text("# made\ntorch==2.14.1\nnone==1 ; sys_platform == 'nowhere'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    packages, code, *programs = said(doctor.environment)
    assert packages.startswith("not installed: torch==2.14.1; ")
    assert "not src/vae" in code
    assert [line.split(" is ")[0] for line in programs] == ["`python`", "`dvc`", "`mlflow`"]
    same = SimpleNamespace(name="Torch", version="2.14.1+cpu")  # the same release, built for the CPU alone
    monkeypatch.setattr(doctor, "distributions", lambda: [same])
    assert not [line for line in said(doctor.environment) if line.startswith("not installed")]


def test_a_full_disk_and_missing_cores(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(doctor.cores, "usable", lambda: list(range(64)))
    assert said(doctor.machine) == []
    monkeypatch.setattr(doctor, "LEAST_BYTES", 1 << 60)
    monkeypatch.setattr(doctor.cores, "usable", lambda: [0])
    disk, threads = doctor.machine(here())
    assert disk.left
    assert "make room" in disk.text
    assert not threads.left  # experiments take turns


def test_the_report_ends_with_a_count_and_an_exit_code(monkeypatch, capsys):
    """A check that fails is a finding, and the others still run. The same line is printed once."""

    def away(_):
        yield Finding("first")
        raise InputError("the store is away")

    def note(_):
        yield Finding("a note", left=False)

    def report(**checks) -> tuple[int, list[str]]:
        monkeypatch.setattr(doctor, "CHECKS", checks)
        with pytest.raises(SystemExit) as ended:
            doctor.main(Path("params.yaml"), Path("metrics/mlflow.json"), mend=False, every=False)
        return ended.value.code, capsys.readouterr().out.splitlines()

    assert report(git=(away,), store=(away, note), machine=()) == (
        1,
        ["git: first", "git: the store is away", "store: a note", "machine: ok", "2 to mend"],
    )
    assert report(store=(note,)) == (0, ["store: a note", "nothing to mend"])
