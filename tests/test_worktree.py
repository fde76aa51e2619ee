"""Work trees, and failures of git."""

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from vae.errors import InputError
from vae.tracking import worktree
from vae.tracking.changes import uncommitted_changes


def git(*arguments: str, folder: Path = Path()) -> str:
    """Runs git with a name and an address, which a commit needs."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_failure_of_git_is_an_error_and_not_an_empty_answer(tmp_path, monkeypatch):
    """Otherwise a folder without a repository would look like one without changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("LC_ALL", "C")  # messages in English
    for ask in (worktree.head, lambda: uncommitted_changes([Path("plots")], [])):
        with pytest.raises(InputError, match="not a git repository") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_program_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (worktree.head, lambda: uncommitted_changes([Path("plots")], [])):
        with pytest.raises(InputError, match=r"`git` cannot be started.*install it") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_the_error_of_a_command_ends_with_its_last_line(tmp_path):
    command = ["sh", "-c", "echo first; printf 'caf\\351\\nlast line\\n' >&2; exit 3"]
    with pytest.raises(InputError, match=r"failed in .*: last line$"):
        worktree.execute(command, tmp_path)
    with pytest.raises(InputError, match=r": exit code 4$"):
        worktree.execute(["sh", "-c", "exit 4"], tmp_path)
    command = ["sh", "-c", "echo output; printf 'warning\nerror: the cause;\n  the way out\nlast line\n' >&2; exit 3"]
    with pytest.raises(InputError, match=r": error: the cause; the way out last line$"):
        worktree.execute(command, tmp_path)


def test_the_error_of_a_command_has_no_password(tmp_path):
    """DVC prints the address of a remote that fails."""
    script = tmp_path / "script"
    script.write_text("echo 'ERROR: failed to pull http://me:secret@box/data?token=secret' >&2; exit 1")
    with pytest.raises(InputError, match=r"failed to pull http://box/data\?token=\*\*\*$"):
        worktree.execute(["bash", str(script)], tmp_path)


def test_a_folder_of_another_owner_is_one_line_with_the_remedy_of_git(tmp_path, monkeypatch):
    git("init", "--quiet", folder=tmp_path)
    monkeypatch.delenv("GIT_CONFIG_COUNT")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(InputError, match=r"dubious ownership.* git config --global --add safe\.directory") as caught:
        worktree.git("rev-parse", "--git-dir", folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hook_of_git_does_not_lead_it_to_another_repository(tmp_path, monkeypatch):
    """Git sets these variables for its hooks."""
    for name in ("one", "two"):
        git("init", "--quiet", name, folder=tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "one/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "one/.git/index"))
    found = worktree.git("rev-parse", "--show-toplevel", folder=tmp_path / "two").decode().strip()
    assert Path(found) == (tmp_path / "two").resolve()


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


def commits(root: Path) -> None:
    """Makes a repository with two commits of `file`."""
    git("init", "--quiet", str(root))
    for content in ("old", "new"):
        (root / "file").write_text(content)
        git("add", "--all", folder=root)
        git("commit", "--quiet", "--message", content, folder=root)


@pytest.fixture
def shared(monkeypatch):
    """A project without DVC: its commands do nothing. The list gets each command and the folder in which it ran."""
    done, run = [], worktree.execute

    def execute(command, folder=Path(), environment=None):
        if command[0] != "dvc":
            return run(command, folder, environment)
        done.append((*command, folder))
        return b"../cache\n" if folder.parts[-2:-1] == ("worktrees",) else b".dvc/cache\n"

    monkeypatch.setattr(worktree, "execute", execute)
    return done


@pytest.fixture
def repository(tmp_path, shared):
    """A repository with two commits of `file`, in a folder whose name is hard to quote."""
    root = tmp_path / '-it\'s "a: b" é'
    commits(root)
    return root


@pytest.mark.parametrize("keep", [True, False])
def test_a_work_tree_has_the_files_of_its_commit(repository, keep):
    """The user's own tree and repository are not touched."""
    files = sorted(path for path in (repository / ".git").rglob("*"))
    with worktree.worktree(repository, "name", "HEAD~1", keep) as folder:
        assert (folder / "file").read_text() == "old"
        (folder / "file").write_text("changed")
        assert "+changed" in git("diff", folder=folder)
    assert (repository / "file").read_text() == "new"
    assert folder.exists() == keep
    assert sorted(path for path in (repository / ".git").rglob("*")) == files


def test_settings_and_hooks_of_the_user_do_not_reach_a_work_tree(repository, tmp_path, monkeypatch):
    """With a failing hook, `git checkout` would fail after it has made half a work tree."""
    hook = tmp_path / "hooks/post-checkout"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    settings = tmp_path / "settings"
    text = f"[core]\nhooksPath = {hook.parent}\nautocrlf = true\n[init]\ntemplateDir = {tmp_path / 'none'}\n"
    settings.write_text(text + "[commit]\ngpgSign = true\n[submodule]\nrecurse = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    with worktree.worktree(repository, "name", "HEAD", keep=False) as folder:
        assert (folder / "file").read_text() == "new"
        assert not list((folder / ".git").glob("hooks/*"))


@pytest.mark.parametrize("kind", ["linked", "submodule", "folder", "shallow", "partial", "sparse"])
def test_a_work_tree_in_any_kind_of_repository(tmp_path, shared, kind):
    """In a folder of a larger repository, it is this folder of the work tree."""
    root = tmp_path / kind
    commits(tmp_path / "main")
    main, allow = tmp_path / "main", ("-c", "protocol.file.allow=always")
    if kind == "linked":
        git("worktree", "add", "--quiet", str(root), folder=main)
    elif kind == "submodule":
        git("init", "--quiet", "super", folder=tmp_path)
        git(*allow, "submodule", "--quiet", "add", str(main), "part", folder=tmp_path / "super")
        root = tmp_path / "super/part"
    elif kind == "folder":
        root = main / "part"
        root.mkdir()
        (main / "file").rename(root / "file")
        git("add", "--all", folder=main)
        git("commit", "--quiet", "--message", "moved", folder=main)
    elif kind == "sparse":
        root = main
        git("sparse-checkout", "set", "--no-cone", "/nothing", folder=main)
    else:
        git("config", "uploadpack.allowFilter", "true", folder=main)
        part = ("--depth", "1") if kind == "shallow" else ("--filter=blob:none",)
        git("clone", "--quiet", *part, f"file://{main}", str(root), folder=tmp_path)
    old = kind == "partial"  # the clone has the file of its own commit alone
    with worktree.worktree(root, "name", "HEAD~1" if old else "HEAD", keep=False) as folder:
        assert (folder / "file").read_text() == ("old" if old else "new")
        assert git("status", "--porcelain", "--untracked-files=no", folder=folder) == ""
        assert git("rev-parse", "--abbrev-ref", "HEAD", folder=folder) == "HEAD\n"  # on no branch
        assert folder.is_relative_to(worktree.place(root, "name"))
        assert shared[-1][:4] == ("dvc", "cache", "dir", "--local")
        assert (folder.resolve() / shared[-1][4]).resolve() == (root / ".dvc/cache").resolve()
        assert folder.name == ("part" if kind == "folder" else "name")


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
