"""The main repository, its folder of state, and its address."""

from vae.runtime import repository

import subprocess
from pathlib import Path

import pytest

from vae.errors import InputError


def git(*arguments: str, folder: Path = Path()) -> None:
    """Runs git with a name and an address, which a commit needs."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def main(tmp_path, monkeypatch):
    """A repository with two commits, and the project in its folder `part`."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "main/part").mkdir(parents=True)
    (tmp_path / "main/part/file").touch()
    git("init", "--quiet", folder=tmp_path / "main")
    git("add", "--all", folder=tmp_path / "main")
    for message in ("one", "two"):
        git("commit", "--quiet", "--allow-empty", "--message", message, folder=tmp_path / "main")
    return tmp_path / "main"


def test_the_main_repository_is_where_dvc_says_or_here(tmp_path, monkeypatch):
    """DVC sets DVC_ROOT in the copy in which a queued or temporary experiment runs."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)  # this repository itself may be a linked work tree
    assert repository.main_repository() == Path()
    monkeypatch.setenv("DVC_ROOT", "/main")
    assert repository.main_repository() == Path("/main")


def test_a_linked_work_tree_belongs_to_the_main_one(main, tmp_path, monkeypatch):
    """Also if it was moved by git. So a repository has one store, however many work trees it has."""
    git("worktree", "add", "--quiet", "../linked", folder=main)
    for root in (main, main / "part"):
        assert repository.main_work_tree(root) == root
    for name in ("linked", "moved"):
        if name == "moved":
            git("worktree", "move", "../linked", "../moved", folder=main)
        assert repository.main_work_tree(tmp_path / name) == main.resolve()
        assert repository.main_work_tree(tmp_path / name / "part") == (main / "part").resolve()
    monkeypatch.chdir(tmp_path / "moved/part")
    assert repository.main_repository() == (main / "part").resolve()


def test_a_submodule_and_a_linked_work_tree_of_a_bare_repository_stand_alone(main, tmp_path):
    git("init", "--quiet", "super", folder=tmp_path)
    git("submodule", "--quiet", "add", str(main), "inner", folder=tmp_path / "super")
    assert repository.main_work_tree(tmp_path / "super/inner/part") == tmp_path / "super/inner/part"
    git("clone", "--quiet", "--bare", "main", "bare.git", folder=tmp_path)
    git("worktree", "add", "--quiet", "../tree", folder=tmp_path / "bare.git")
    assert repository.main_work_tree(tmp_path / "tree/part") == tmp_path / "tree/part"
    assert repository.main_work_tree(tmp_path) == tmp_path  # no repository at all


def test_copies_of_a_shallow_clone_are_refused(main, tmp_path, monkeypatch):
    """DVC would run the experiment there, report success, and lose it."""
    git("clone", "--quiet", "--depth", "1", f"file://{main}", "shallow", folder=tmp_path)
    for clone, refused in ((tmp_path / "shallow", True), (main, False)):
        project, copy = clone / "part", clone / "part/.dvc/tmp/exps/standalone/tmp"
        copy.mkdir(parents=True)
        assert repository.is_shallow(project) == refused
        monkeypatch.setenv("DVC_ROOT", str(project))
        monkeypatch.chdir(project)
        assert repository.main_repository() == project
        monkeypatch.chdir(copy)
        if refused:
            with pytest.raises(InputError, match="git fetch --unshallow"):
                repository.main_repository()
        else:
            assert repository.main_repository() == project


def test_the_state_folder_is_created_and_kept(tmp_path):
    folder = repository.state_folder(tmp_path / "new")
    (folder / "note").touch()
    assert repository.state_folder(tmp_path / "new") == folder
    assert (folder / "note").is_file()
    assert folder.parent == tmp_path / "new"


def test_git_ignores_the_state_folder(root):
    """Otherwise a checkpoint would be an uncommitted change of the code."""
    folder = repository.state_folder(root)
    assert f"/{folder.name}/" in (root / ".gitignore").read_text().splitlines()


def test_the_address_names_the_machine_and_the_repository(tmp_path, monkeypatch):
    """It does not depend on the way in which a path is written."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").symlink_to("one")
    monkeypatch.chdir(tmp_path / "one")
    assert repository.address(Path()) == repository.address(tmp_path / "two")
    assert repository.address(Path()) != repository.address(tmp_path)
    monkeypatch.setattr(repository.socket, "gethostname", lambda: "other")
    assert repository.address(Path()) == f"other:{(tmp_path / 'one').resolve()}"
