"""What another system has: the old make and bash of macOS, its own tools, and no /proc. Only Linux runs these tests, so
they look for what the other system lacks."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / ".ci").iterdir()), *sorted((ROOT / "recipes").glob("*.sh"))]
NEWER_THAN_BASH_3_2 = (
    r"\$\{\w+(,,?|\^\^?|@\w)\}",  # ${x,,} ${x^^} ${x@Q}
    r"\b(mapfile|readarray|coproc)\b",
    r"\b(declare|local|typeset) -\w*[Agn]",  # associative arrays, global variables, references
    r"&>>|\|&",
    r"\[\[ .* -v ",
    r"\$\{\w+\[-\d",  # ${array[-1]}
    r"\bwait -n\b|\bshopt -s (globstar|lastpipe|inherit_errexit)\b",
)
NEWER_THAN_MAKE_3_81 = (
    r"^\.(SHELLFLAGS|ONESHELL|RECIPEPREFIX)\b",
    r"^[\w.]+ *(!=|::=)",
    r"^(undefine|private|load|define \w+ *=)\b",
    r"^[^#\t]*&:",
    r"\$\((file|let|intcmp|guile) ",
)
NOT_ON_MACOS = (
    r"\b(nproc|lscpu|sha256sum|md5sum|timeout|setsid|chrt|tac|free)\b",
    r"\breadlink -f\b|\bsed -i\b|\bgrep -\w*P|\bdate -d\b|\bxargs -\w*r|\bbase64 -w",
    r"\bsed .*\\t",  # its sed takes this for the letter t
    r"/proc/|/dev/shm",
)


def found(text: str, patterns: tuple[str, ...]) -> list[str]:
    """The lines of a text that one of the patterns matches."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in lines if any(re.search(pattern, line) for pattern in patterns)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_with_bash_3_2_and_the_tools_of_macos(path):
    assert found(path.read_text(), NEWER_THAN_BASH_3_2 + NOT_ON_MACOS) == []


def test_the_makefile_runs_with_make_3_81_and_the_tools_of_macos():
    text = (ROOT / "Makefile").read_text()
    assert found(text, NEWER_THAN_MAKE_3_81 + NEWER_THAN_BASH_3_2 + NOT_ON_MACOS) == []
    assert "\nSHELL := bash\n" in text  # make 3.81 calls simple commands itself, without the PATH of the Makefile


@pytest.mark.parametrize(
    ("line", "patterns"),
    [
        ('echo "${name,,}"', NEWER_THAN_BASH_3_2),
        ("mapfile -t lines < file", NEWER_THAN_BASH_3_2),
        ("declare -A table", NEWER_THAN_BASH_3_2),
        ("make |& tee log", NEWER_THAN_BASH_3_2),
        (".SHELLFLAGS := -euo pipefail -c", NEWER_THAN_MAKE_3_81),
        ("now != date", NEWER_THAN_MAKE_3_81),
        ("one two &: three", NEWER_THAN_MAKE_3_81),
        ("\t@sed -n 's/a/\\t/p' file", NOT_ON_MACOS),
        ("threads=$(nproc)", NOT_ON_MACOS),
        ("grep -oP x file", NOT_ON_MACOS),
    ],
)
def test_what_is_newer_is_found(line, patterns):
    assert found(line, patterns) == [line]


def test_the_library_runs_without_what_only_linux_has(tmp_path):
    """No sched_getaffinity, no mallopt, no /proc: cores are counted, and nothing is lowered or kept."""
    code = """
import ctypes, os, pathlib
for name in ("sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
ctypes.CDLL = lambda _: object()
real = pathlib.Path.write_text
def write_text(self, *arguments, **options):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return real(self, *arguments, **options)
pathlib.Path.write_text = write_text
os.getsid = lambda _: os.getpid()  # so that the observer tries to lower its session
from vae.runtime import command, cores
cores.QUOTA = pathlib.Path("/nowhere")
from vae.tracking import observer
command.keep_freed_memory()
observer.yield_cores()
with cores.turn(1):
    print(len(cores.usable()) == os.cpu_count())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Runs make in this repository, without a new set-up. Variables of a make that runs these tests are left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--assume-old=.venv/installed", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_lists_its_targets():
    listed = make().stdout.splitlines()
    assert all(re.fullmatch(r"  make [a-z-]+ +\S.*", line) for line in listed)
    assert {"make setup", "make run", "make test"} <= {" ".join(line.split()[:2]) for line in listed}


def test_a_busy_port_is_named_with_the_way_out():
    """AirPlay uses the port of MLflow's UI on macOS."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = make("ui", f"PORT={port}")
    assert "error: PORT=http: not a port" in make("ui", "PORT=http").stderr
    assert done.returncode
    assert f"error: another program uses port {port} (AirPlay uses 5000 on macOS); PORT=5001 make ui" in done.stderr
    assert "Traceback" not in done.stderr
