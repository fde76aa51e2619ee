"""The set-up: a clear answer to an old Python, uv with the settings of pip, and pip where uv cannot be had."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import install

SCRIPT = Path(install.__file__)
INDEX = "https://index.example/cpu"
LOCK = "numpy==2.4.6\nnvidia-nccl-cu13==2.30.7 ; sys_platform == 'linux'\ntorch==2.14.1\ntriton==3.8.0 ; x\n"


class Packages:
    """Stands for venv, pip and uv: keeps every command, and fails if a command has one of the `failing` words."""

    def __init__(self, *failing: str, listed: str = "") -> None:
        self.failing, self.listed = failing, listed
        self.commands: list[str] = []
        self.requirements: list[str] = []
        self.environments: list[dict[str, str]] = []

    def run(self, command: list[str], env: dict[str, str] | None = None, **_: object) -> SimpleNamespace:
        line = " ".join(command)
        self.commands.append(line)
        if "-m venv" in line:
            Path(command[-1]).mkdir(exist_ok=True)
            (Path(command[-1]) / "installed").unlink(missing_ok=True)  # --clear
        if "--requirement" in command:
            self.requirements.append(Path(command[-1]).read_text())
            self.environments.append(env or {})
        return SimpleNamespace(returncode=int(any(word in line for word in self.failing)), stdout=self.listed)


@pytest.fixture
def set_up(tmp_path, monkeypatch, capsys):
    """Sets up an environment with such packages. Returns its folder and what was printed, or the error."""
    (tmp_path / "lock").write_text(LOCK)
    folder = tmp_path / "venv"

    def start(packages: Packages, torch: str = "") -> tuple[Path, str]:
        with monkeypatch.context() as patch:
            patch.setattr(install.subprocess, "run", packages.run)
            try:
                install.main(folder, tmp_path / "lock", torch, INDEX)
            except SystemExit as error:
                return folder, str(error)
        return folder, capsys.readouterr().out

    return start


@pytest.mark.parametrize("version", ["(2, 7, 18)", "(3, 6, 15)", "(3, 10, 13)"])
def test_an_old_python_gets_a_clear_answer(version):
    code = f"import sys, runpy; sys.version_info = {version}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: \S+ is Python [\d.]+, and 3\.11 or later is needed; PYTHON=<newer python> make setup\n", done.stderr
    )


def test_an_old_python_can_read_the_script():
    """Otherwise its answer would be a syntax error."""
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    with pytest.raises(SyntaxError):
        ast.parse("if x := 1: pass", feature_version=(3, 6))


def test_the_guard_is_what_the_package_demands(root):
    demanded = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (root / "pyproject.toml").read_text())
    assert f"sys.version_info < ({demanded[1]}, {demanded[2]})" in SCRIPT.read_text()


def test_uv_installs_the_lock_file(set_up):
    packages = Packages()
    folder, said = set_up(packages)
    assert (folder / "installed").is_file()
    assert packages.requirements == [LOCK]
    assert [command for command in packages.commands if "-m uv" in command] == packages.commands[-2:]
    assert packages.commands[-1].endswith("--no-deps --no-build-isolation --editable .")
    assert (
        f"-m pip install --quiet --disable-pip-version-check --only-binary :all: {install.UV}" in packages.commands[1]
    )
    assert len(said.splitlines()) == 1
    assert re.search(r"fetches about [\d.]+ GB once", said)


@pytest.mark.parametrize("failing", [("uv==",), ("-m uv",)])
def test_pip_takes_the_place_of_uv(set_up, failing):
    """If uv cannot be had, or if it fails, for example behind a mirror that only pip knows."""
    packages = Packages(*failing)
    folder, _ = set_up(packages)
    assert (folder / "installed").is_file()
    assert packages.requirements[-1] == LOCK
    assert all("-m pip install" in command for command in packages.commands[-2:])


def test_a_set_up_that_failed_or_was_interrupted_starts_again(set_up, monkeypatch):
    """Its environment never counts as installed. The choice of torch is kept."""
    set_up(Packages())
    for failing in ("--requirement", "--editable"):
        folder, said = set_up(Packages(failing), torch="cpu")
        assert said.startswith("error: the packages could not be installed")
        assert {"HTTPS_PROXY", "PIP_INDEX_URL", "PIP_CERT"} <= set(re.findall(r"[A-Z_]{6,}", said))
        assert not (folder / "installed").exists()
    packages = Packages()
    folder, _ = set_up(packages)
    assert (folder / "installed").is_file()
    assert "nvidia" not in packages.requirements[0]


@pytest.mark.parametrize("failing", [(), ("uv==",)])
def test_the_build_of_torch_for_cpus(set_up, failing):
    """It needs no library of CUDA, and one lock file serves both."""
    packages = Packages(*failing)
    set_up(packages, torch="cpu")
    assert packages.requirements == ["numpy==2.4.6\ntorch==2.14.1\n"]
    assert f"--extra-index-url {INDEX}" in packages.commands[-2]
    again = Packages()
    set_up(again)
    assert again.requirements == packages.requirements  # the choice stays
    set_up(again, torch="cuda")
    assert again.requirements[-1] == LOCK


def test_an_environment_that_cannot_be_made_is_an_error(set_up):
    folder, said = set_up(Packages("-m venv"))
    assert said == f"error: {folder} could not be made; mend what is said above, and start again"


def test_only_libraries_of_cuda_are_left_out(root):
    lock = (root / "requirements.lock").read_text()
    left = install.ONLY_CUDA.sub("", lock)
    gone = set(lock.splitlines()) - set(left.splitlines())
    assert len(gone) > 10
    assert all("sys_platform == 'linux'" in line for line in gone)
    assert not re.search("nvidia-(?!ml-py)|cuda|triton", left)


def test_a_wrong_build_of_torch_changes_nothing(set_up):
    folder, _ = set_up(Packages())
    packages = Packages()
    _, said = set_up(packages, torch="gpu")
    assert said == "error: TORCH=gpu: must be one of cuda, cpu"
    assert packages.commands == []
    assert (folder / "installed").is_file()


def test_uv_gets_the_settings_of_pip():
    """Mirrors, certificates and proxies. A variable comes before a file, and a setting for uv itself before both."""
    listed = """:env:.index-url='https://user:word@mirror.example/simple'
global.cert='/etc/company.pem'
global.extra-index-url='https://a.example https://b.example'
global.find-links='/wheels\\n/more'
global.index-url='https://file.example/simple'
global.proxy='http://proxy.example:3128'
global.trusted-host='mirror.example'
install.timeout='90'
"""
    assert install.uv_environment(listed, {"PATH": "/bin", "UV_HTTP_TIMEOUT": "7", "REQUESTS_CA_BUNDLE": "/old"}) == {
        "PATH": "/bin",
        "REQUESTS_CA_BUNDLE": "/old",
        "UV_DEFAULT_INDEX": "https://user:word@mirror.example/simple",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "mirror.example",
        "UV_HTTP_TIMEOUT": "7",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_SYSTEM_CERTS": "true",
        "SSL_CERT_FILE": "/etc/company.pem",
        "ALL_PROXY": "http://proxy.example:3128",
    }


def test_uv_gets_the_settings_that_pip_really_has(set_up, monkeypatch):
    """The real pip lists them in this form."""
    base = getattr(sys, "_base_executable", sys.executable)
    environment = os.environ | {"PIP_INDEX_URL": "https://mirror.example/simple", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run([base, "-m", "pip", "config", "list"], env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this Python has no pip")
    packages = Packages(listed=done.stdout)
    set_up(packages)
    assert packages.environments[0]["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"


@pytest.mark.parametrize(("place", "again"), [("", False), ("{here}", False), ("/elsewhere", True)])
def test_an_environment_that_was_moved_is_made_again(tmp_path, place, again):
    """Its commands have absolute paths. An environment of before is empty here, and counts as in its place."""
    shutil.copy(SCRIPT.parents[1] / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(place.format(here=tmp_path.resolve()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--dry-run", "setup"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert ("tools/install.py" in done.stdout) == again


@pytest.mark.parametrize("value", ["", "1"])
def test_packages_are_compiled_at_once_where_python_may_not_do_so_later(set_up, monkeypatch, value):
    """pip compiles what it installs; uv leaves it to the first import, which this variable forbids."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", value)
    packages = Packages()
    set_up(packages)
    (line,) = [line for line in packages.commands if "-m uv" in line and "--requirement" in line]
    assert ("--compile-bytecode" in line) == bool(value)
