"""Uncommitted changes, work trees, and failures of git."""

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from vae.errors import InputError
from vae.tracking import worktree


def git(*arguments: str, folder: Path = Path()) -> str:
    """Runs git with a name and an address, which a commit needs."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_diff_has_changes_and_new_files_and_leaves_out_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("code.py", "plots/old.png", "dvc.lock", ".gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("ignored\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    outputs = [Path("plots"), Path("metrics/train.csv")]
    assert worktree.uncommitted_changes(outputs) == b""
    (tmp_path / "metrics").mkdir()
    for name in ("plots/old.png", "plots/new.png", "dvc.lock", "metrics/mlflow.json", "ignored"):
        (tmp_path / name).write_text("output\n")
    assert worktree.uncommitted_changes(outputs) == b""
    objects = list((tmp_path / ".git/objects").rglob("*"))
    (tmp_path / "code.py").write_text("changed\n")
    (tmp_path / "new.py").write_bytes(b"caf\xe9\r\n")  # neither UTF-8 nor the line ends of this system
    diff = worktree.uncommitted_changes(outputs)
    assert b"+changed" in diff
    assert b"+caf\xe9\r\n" in diff
    assert git("diff", "--cached", "--name-only") == ""  # the user's index has not changed
    assert list((tmp_path / ".git/objects").rglob("*")) == objects  # and no copy of a new file is left

    for setting in ("diff.noprefix", "color.ui=always", "diff.external=true"):
        name, _, value = setting.partition("=")
        git("config", name, value or "true")
    assert worktree.uncommitted_changes(outputs) == diff
    (tmp_path / "inner").mkdir()
    git("init", "--quiet", "inner")  # a repository without a commit, which git cannot add
    assert worktree.uncommitted_changes(outputs) == diff


def test_a_failure_of_git_is_an_error_and_not_an_empty_answer(tmp_path, monkeypatch):
    """Otherwise a folder without a repository would look like one without changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("LC_ALL", "C")  # messages in English
    for ask in (worktree.head, lambda: worktree.uncommitted_changes([Path("plots")])):
        with pytest.raises(InputError, match="not a git repository") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_program_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (worktree.head, lambda: worktree.uncommitted_changes([Path("plots")])):
        with pytest.raises(InputError, match=r"`git` cannot be started.*install it") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_the_error_of_a_command_ends_with_its_last_line(tmp_path):
    command = ["sh", "-c", "echo first; printf 'caf\\351\\nlast line\\n' >&2; exit 3"]
    with pytest.raises(InputError, match=r"failed in .*: last line$"):
        worktree.execute(command, tmp_path)
    with pytest.raises(InputError, match=r": exit code 4$"):
        worktree.execute(["sh", "-c", "exit 4"], tmp_path)


def test_a_command_gets_its_folder_and_its_environment(tmp_path):
    done = worktree.execute(["sh", "-c", 'pwd; echo "$GIVEN"'], tmp_path, {"GIVEN": "yes"})
    assert done.decode().splitlines() == [str(tmp_path.resolve()), "yes"]


def test_a_commit_that_is_not_in_the_clone(tmp_path):
    git("init", "--quiet", folder=tmp_path)
    commit = "0" * 40
    with pytest.raises(InputError, match=rf"commit {commit} is not in this clone; fetch it"):
        next(worktree.worktree(tmp_path, "name", commit, keep=False).gen)
    with FileLock(tmp_path / ".dvc/tmp/worktrees/name.lock", blocking=False):
        pass  # it is free again


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with two commits of `file`, and without DVC: its commands do nothing."""
    root = tmp_path / "repository"
    root.mkdir()
    git("init", "--quiet", folder=root)
    for content in ("old", "new"):
        (root / "file").write_text(content)
        git("add", "--all", folder=root)
        git("commit", "--quiet", "--message", content, folder=root)
    run = worktree.execute

    def execute(command, folder=Path(), environment=None):
        return b".dvc/cache\n" if command[0] == "dvc" else run(command, folder, environment)

    monkeypatch.setattr(worktree, "execute", execute)
    return root


@pytest.mark.parametrize("keep", [True, False])
def test_a_work_tree_has_the_files_of_its_commit(repository, keep):
    """The user's own tree is not touched. Afterwards git knows the work tree only if it is kept."""
    with worktree.worktree(repository, "name", "HEAD~1", keep=keep) as folder:
        assert (folder / "file").read_text() == "old"
        (folder / "file").write_text("changed")
    assert (repository / "file").read_text() == "new"
    assert folder.exists() == keep
    assert (str(folder) in git("worktree", "list", folder=repository)) == keep


def test_a_work_tree_that_was_left_is_replaced(repository):
    """A process was killed, or the user removed the folder by hand."""
    with worktree.worktree(repository, "name", "HEAD", keep=True) as folder:
        (folder / "left").touch()
    with worktree.worktree(repository, "name", "HEAD", keep=True) as folder:
        assert not (folder / "left").exists()
    shutil.rmtree(folder)
    with worktree.worktree(repository, "name", "HEAD", keep=False) as folder:
        assert (folder / "file").read_text() == "new"


def test_an_error_removes_the_work_tree(repository):
    with pytest.raises(ValueError, match="inside"), worktree.worktree(repository, "name", "HEAD", keep=False) as folder:
        raise ValueError("inside")
    assert not folder.exists()


def test_two_processes_never_share_a_work_tree(tmp_path):
    """The second process would delete the files of the first."""
    inside = tmp_path / ".dvc/tmp/worktrees/run/file"
    inside.parent.mkdir(parents=True)
    inside.touch()
    held = FileLock(inside.parent.with_suffix(".lock"))
    with held, pytest.raises(InputError, match="another process uses this work tree"):
        next(worktree.worktree(tmp_path, "run", "HEAD", keep=True).gen)
    assert inside.exists()
