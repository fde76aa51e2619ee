"""The main repository, its folder of state, and its address."""

from vae.runtime import repository

from pathlib import Path


def test_the_main_repository_is_where_dvc_says_or_here(monkeypatch):
    """DVC sets DVC_ROOT in the copy in which a queued or temporary experiment runs."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert repository.main_repository() == Path()
    monkeypatch.setenv("DVC_ROOT", "/main")
    assert repository.main_repository() == Path("/main")


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
