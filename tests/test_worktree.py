"""Uncommitted changes, work trees, and failures of git."""

import subprocess
from pathlib import Path

import pytest

from vae.errors import InputError
from vae.tracking import worktree


def test_the_diff_has_changes_and_new_files_and_leaves_out_outputs(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments], cwd=tmp_path, check=True
        )

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
    staged = subprocess.run(["git", "diff", "--cached", "--name-only"], cwd=tmp_path, capture_output=True, text=True)
    assert staged.stdout == ""  # the user's index has not changed
    assert list((tmp_path / ".git/objects").rglob("*")) == objects  # and no copy of a new file is left

    for setting in ("diff.noprefix", "color.ui=always", "diff.external=true"):
        name, _, value = setting.partition("=")
        git("config", name, value or "true")
    assert worktree.uncommitted_changes(outputs) == diff
    (tmp_path / "inner").mkdir()
    subprocess.run(
        ["git", "init", "--quiet", "inner"], cwd=tmp_path, check=True
    )  # git cannot add a repository without a commit
    assert worktree.uncommitted_changes(outputs) == diff


def test_a_failure_of_git_is_an_error_and_not_an_empty_answer(tmp_path, monkeypatch):
    """Otherwise a folder without a repository would look like one without changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for ask in (worktree.head, lambda: worktree.uncommitted_changes([Path("plots")])):
        with pytest.raises(InputError, match="not a git repository") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_program_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"`git` cannot be started.*install it"):
        worktree.git("status", folder=tmp_path)


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
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    commit = "0" * 40
    with pytest.raises(InputError, match=rf"commit {commit} is not in this clone; fetch it"):
        next(worktree.worktree(tmp_path, "name", commit, keep=False).gen)
    with worktree.FileLock(tmp_path / ".dvc/tmp/worktrees/name.lock", blocking=False):
        pass  # it is free again
