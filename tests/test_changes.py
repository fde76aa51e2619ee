"""The uncommitted changes that a run records, and the files that it leaves out."""

import subprocess
from pathlib import Path

import pytest

from vae.tracking.changes import MOST_BYTES, NEW, refusal, uncommitted_changes

OUTPUTS = [Path("plots"), Path("metrics/train.csv")]
DEPENDENCIES = ["code.py", "src/used.py", "src/package", "table.csv", "data"]


def git(*arguments: str) -> str:
    """Runs git with a name and an address, which a commit needs."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write(**files: str) -> None:
    """Writes files. Two underscores in a name stand for a slash, and the last one for a dot."""
    for key, text in files.items():
        path = Path(".".join(key.replace("__", "/").rsplit("_", 1)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(params=["a", "a b: 'c' \"d\" é", "-a"])
def folder(tmp_path, monkeypatch, request):
    """The current folder: a repository with one commit."""
    path = tmp_path / request.param
    path.mkdir()
    monkeypatch.chdir(path)
    write(code_py="old\n", plots__old_png="old\n", dvc_lock="old\n", _gitignore="ignored\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "base")
    return path


def test_the_difference_has_changes_and_no_outputs(folder):
    assert uncommitted_changes(OUTPUTS, DEPENDENCIES).diff == b""
    write(plots__old_png="output", plots__new_png="output", dvc_lock="output", metrics__mlflow_json="output")
    Path("ignored").write_text("output")
    changes = uncommitted_changes(OUTPUTS, DEPENDENCIES)
    assert (changes.diff, changes.needed, changes.others) == (b"", {}, {})
    write(code_py="changed\n")
    assert b"+changed" in uncommitted_changes(OUTPUTS, DEPENDENCIES).diff


def test_a_changed_configuration_of_dvc_stays_here(folder):
    """`dvc remote modify` without `--local` writes a password into it, even if git tracks it."""
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n")
    git("add", ".dvc/config")
    git("commit", "--quiet", "--message", "configured")
    Path(".dvc/config").write_text("['remote \"box\"']\n    password = abc\n")
    changes = uncommitted_changes(OUTPUTS, DEPENDENCIES)
    assert b"abc" not in changes.diff
    assert changes.others == {".dvc/config": "may have the password of a remote"}


def test_new_files_are_recorded_only_if_a_stage_or_the_user_names_them(folder):
    """A file that is left out has its name in the record. A folder stands for its files, if all are left out."""
    write(src__used_py="x = 1\n", src__package__a_py="x = 2\n", src__unused_py="x = 3\n", table_csv="1,2\n")
    write(venv__lib__a_py="x = 4\n", venv__lib__b_py="x = 5\n", notes_txt="mine\n", mine__deep__a_txt="mine\n")
    Path(".env").write_text("TOKEN=abc\n")
    Path("given.txt").write_bytes(b"caf\xe9\r\n")  # neither UTF-8 nor the line ends of this system
    git("add", "given.txt")
    staged = git("diff", "--cached", "--raw")
    objects = {path for path in Path(".git/objects").rglob("*") if path.is_file()}
    changes = uncommitted_changes(OUTPUTS, DEPENDENCIES)
    added = {line.split(b" b/")[1] for line in changes.diff.splitlines() if line.startswith(b"diff --git")}
    assert added == {b"given.txt", b"src/used.py", b"src/package/a.py"}
    assert b"+caf\xe9\r\n" in changes.diff
    assert b"abc" not in changes.diff
    assert changes.needed == {"src/unused.py": NEW, "table.csv": NEW}
    assert changes.others == {
        ".env": "named like a secret",
        "venv/": "part of an environment",
        "notes.txt": NEW,
        "mine/": NEW,
    }
    assert git("diff", "--cached", "--raw") == staged  # the user's index has not changed
    new = {path for path in Path(".git/objects").rglob("*") if path.is_file()} - objects
    assert len(new) <= 1  # at most the empty file, so no copy of a new file is left


def test_secrets_and_large_files_are_never_recorded(folder):
    """Even if git tracks them, or the user has added them."""
    Path(".env").write_text("TOKEN=abc\n")
    write(src__used_py="x" * (MOST_BYTES + 1))
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", "a mistake")
    Path(".env").write_text("TOKEN=def\n")
    write(src__used_py="y" * (MOST_BYTES + 1), deploy_pem="private\n", large_txt="z" * (MOST_BYTES + 1))
    git("add", "--all")
    changes = uncommitted_changes(OUTPUTS, DEPENDENCIES)
    assert changes.diff == b""
    assert changes.needed == {"src/used.py": "over 1 MB"}
    assert changes.others == {
        ".env": "named like a secret",
        "deploy.pem": "named like a secret",
        "large.txt": "over 1 MB",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("src/vae/model.py", ""),
        ("src/vae/environment.py", ""),
        (".env.production", "named like a secret"),
        ("conf/AWS_Credentials.json", "named like a secret"),
        ("keys/id_ed25519", "named like a secret"),
        (".ssh/known_hosts", "named like a secret"),
        ("src/venv/lib/x.py", "part of an environment"),
        ("lib/site-packages/x.py", "part of an environment"),
    ],
)
def test_names_that_are_refused(name, expected):
    assert refusal(name) == expected


def test_settings_of_the_user_change_nothing(folder):
    write(code_py="changed \n", src__used_py="x = 1\n\n\n", notes_txt="mine\n")
    changes = uncommitted_changes(OUTPUTS, DEPENDENCIES)
    Path("../excluded").write_text("*.py\n*.txt\n")
    settings = {
        "diff.noprefix": "true",
        "diff.context": "0",
        "diff.relative": "true",
        "diff.external": "false",
        "color.ui": "always",
        "core.excludesFile": str(Path("../excluded").resolve()),
        "core.hooksPath": "nowhere",
        "status.showUntrackedFiles": "no",
    }
    for name, value in settings.items():
        git("config", name, value)
    assert uncommitted_changes(OUTPUTS, DEPENDENCIES) == changes
    git("update-index", "--assume-unchanged", "code.py")
    assert uncommitted_changes(OUTPUTS, DEPENDENCIES) == changes


def test_a_folder_of_a_larger_repository_records_itself_alone(folder, monkeypatch):
    write(project__code_py="old\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "project")
    write(code_py="other\n", project__code_py="changed\n", project__new_py="x = 1\n", private_txt="mine\n")
    monkeypatch.chdir("project")
    changes = uncommitted_changes(OUTPUTS, ["code.py", "new.py"])
    assert b"+changed" in changes.diff
    assert b"+x = 1" in changes.diff
    assert b"other" not in changes.diff
    assert (changes.needed, changes.others) == ({}, {})


def test_a_repository_inside_is_left_out_by_name(folder):
    """It has no commit, so git cannot add it."""
    Path("inner").mkdir()
    git("init", "--quiet", "inner")
    assert uncommitted_changes(OUTPUTS, DEPENDENCIES).others == {"inner/": NEW}
