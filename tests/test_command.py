"""How a script starts and ends: its arguments, one clear line for an error, and every `finally` runs."""

from vae.runtime import command

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = str(Path(command.__file__).parents[2])
HANG_SECONDS = 300  # far longer than any of these tests takes on a slow machine


def heed_interrupts() -> None:
    """Handles SIGINT again. A shell makes its background jobs ignore it, and the tests may be such a job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def script(tmp_path):
    """Starts a script with a given body of `main`. Its arguments are the paths `source` and `result`."""
    buffered = {"PYTHONUNBUFFERED": ""}  # as in a user's shell: output that is not flushed would be lost

    def start(body: str, *arguments: str) -> subprocess.Popen:
        lines = [
            '"""Does a thing."""',
            "import time",
            "from pathlib import Path",
            "from vae.runtime import command",
            "from vae.errors import InputError",
            "def main(source: Path, result: Path) -> None:",
            *(f"    {line}" for line in body.splitlines()),
            "command.run(main)",
        ]
        path = tmp_path / "script.py"
        path.write_text("\n".join(lines))
        argv = [sys.executable, str(path), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | buffered | {"PYTHONPATH": SOURCE}
        return subprocess.Popen(argv, cwd=tmp_path, env=environment, preexec_fn=heed_interrupts, **pipes)

    return start


@pytest.fixture
def ended(script):
    """Runs a script to its end: (exit code, stdout, stderr)."""

    def run(body: str, *arguments: str) -> tuple[int, str, str]:
        process = script(body, *arguments)
        out, err = process.communicate(timeout=HANG_SECONDS)
        return process.returncode, out, err

    return run


def test_paths_from_argv(ended):
    """Each parameter is a path, in order. A script that ends well adds no output."""
    body = "print(repr(source), repr(result))"
    assert ended(body, "a b", "dir/c") == (0, "PosixPath('a b') PosixPath('dir/c')\n", "")


def test_input_error_is_one_line(ended):
    """For an error that the user can mend: exit code 1 and only the message, without a traceback."""
    code, out, err = ended('raise InputError(f"{source}: no such thing; make one")', "thing", "out")
    assert (code, out, err) == (1, "", "error: thing: no such thing; make one\n")


@pytest.mark.parametrize(
    "body",
    [
        "result.write_text('x')",
        "result.read_text()",
        "result.parent.parent.joinpath('script.py', 'folder').mkdir(parents=True)",
        "source.replace(result)",
    ],
)
def test_a_path_that_cannot_be_used_is_one_line(ended, body):
    """An error of the file system names the path, with exit code 1 and without a traceback."""
    code, out, err = ended(body, "thing", "nowhere/out")
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert any(name in err for name in ("thing", "nowhere/out", "script.py/folder"))
    assert len(err.splitlines()) == 1


def test_a_full_disk_is_one_line(ended):
    """The system reports it without a file name if the file is open already."""
    code, out, err = ended("raise OSError(28, 'No space left on device')", "a", "b")
    assert (code, out, err) == (1, "", "error: system: No space left on device; make room, and start again\n")
    _, _, err = ended("raise OSError(28, 'No space left on device', 'file')", "a", "b")
    assert err == "error: file: No space left on device; make room, and start again\n"


def test_too_many_open_files_are_one_line(ended):
    """Here the import of a module fails, or a file of this script."""
    body = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\nsource.read_text()"
    code, out, err = ended(body, "a", "b")
    assert (code, out, err) == (
        1,
        "",
        "error: a: Too many open files; raise the limit with `ulimit -n`, and start again\n",
    )


def test_output_that_cannot_be_written_is_no_success(script, tmp_path):
    process = script("import os\nos.dup2(os.open('/dev/full', os.O_WRONLY), 1)\nprint('result')", "a", "b")
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert (process.returncode, err) == (1, "error: system: No space left on device; make room, and start again\n")


def test_a_fault_of_the_program_keeps_its_traceback(ended):
    """The user cannot mend it, and whoever can needs the traceback."""
    for body in ("raise RuntimeError('a bug')", "raise OSError('a bug')"):
        code, _, err = ended(body, "a", "b")
        assert code == 1
        assert "Traceback" in err
        assert "a bug" in err


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["one", "two", "--unknown"]])
def test_usage_error(ended, arguments):
    """Too few, too many or unknown arguments: exit code 2, and the names of the right ones."""
    code, out, err = ended("print('ran')", *arguments)
    assert code == 2
    assert out == ""
    assert "source" in err
    assert "result" in err
    assert "Traceback" not in err


def test_help(ended):
    """--help shows the docstring of the script."""
    code, out, _ = ended("print('ran')", "--help")
    assert code == 0
    assert "Does a thing." in out
    assert "ran" not in out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_unwinds(script, tmp_path, name):
    """If a signal stops the script, `finally` runs, the exit code names the signal, and there is no traceback."""
    body = "try:\n    print('ready', flush=True)\n    time.sleep(600)\nfinally:\n    result.write_text('unwound')\n"
    process = script(body, "a", "out")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 128 + signal.Signals[name]
    assert (tmp_path / "out").read_text() == "unwound"
    assert err == "interrupted\n"


HUNG = """
from vae.runtime import command
command.last_words = "stopped"
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()  # as of a client library
print("ready", flush=True)
"""
UNTIL = {
    "in a library": "ctypes.CDLL(None).sleep(600)",
    "in a finally": "try:\n    time.sleep(600)\nfinally:\n    time.sleep(600)",
    "while it waits for a thread": "[item.join() for item in threading.enumerate()[1:]]",
}


@pytest.mark.parametrize("place", UNTIL)
def test_an_interrupt_ends_a_script_that_hangs(script, place):
    process = script(HUNG + UNTIL[place], "a", "b")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANG_SECONDS)[1] == "stopped\n"
    assert process.returncode == 128 + signal.SIGINT


def test_an_interrupt_while_a_script_imports_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    code = "from vae.runtime import command; import slow"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed_interrupts}
    environment = os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=HANG_SECONDS)[1] == "interrupted\n"
    assert process.returncode == 128 + signal.SIGINT


def test_every_script_heeds_interrupts_before_it_imports_anything_else(root):
    for path in [*root.glob("pipeline/*.py"), *root.glob("tools/*.py")]:
        text = path.read_text()
        if "command.run(" in text:
            first = next(line for line in text.splitlines() if line.startswith(("import ", "from ")))
            assert re.match(r"from vae\.runtime import .*\bcommand\b", first), path  # its neighbours import no torch


def test_a_background_job_goes_on_ignoring_interrupts():
    code = "from signal import *; signal(2, SIG_IGN); from vae.runtime import command; print(repr(getsignal(2)))"
    environment = os.environ | {"PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "<Handlers.SIG_IGN: 1>\n"


def parsed(main: Callable[..., None], *arguments: str) -> dict:
    """The arguments of `main` as the command line gives them."""
    return vars(command._parser(main).parse_args(arguments))


def test_keyword_only_parameters_are_required_options():
    """A script with many files names each, so that nobody swaps two of them unnoticed."""

    def main(params: Path, *, model: Path, run: str, check: bool) -> None: ...

    expected = {"params": Path("p"), "model": Path("m"), "run": "r", "check": False}
    assert parsed(main, "p", "--run", "r", "--model", "m") == expected
    assert parsed(main, "p", "--model", "m", "--run", "r", "--check") == expected | {"check": True}
    for wrong in (["p", "--model", "m"], ["p", "m", "r"], ["p", "--mod", "m", "--run", "r"]):
        with pytest.raises(SystemExit) as ended:
            parsed(main, *wrong)
        assert ended.value.code == 2


@pytest.mark.parametrize(("given", "found"), [(None, "20000"), ("7", "7")])
def test_the_spinning_of_threads_is_limited_unless_the_user_has_set_it(given, found):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"PYTHONPATH": SOURCE} | ({"GOMP_SPINCOUNT": given} if given else {})
    code = "import os; from vae.runtime import command; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


ARENA = """
import ctypes, sys

class Info(ctypes.Structure):  # of malloc.h
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def kept():
    libc.free(libc.malloc(40 << 20))
    return libc.mallinfo2().keepcost >= 40 << 20  # free at the top of the arena, and not given back
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library has no mallinfo2")
def test_a_script_keeps_freed_memory(ended, tmp_path, monkeypatch):
    """A freed block of 40 MiB stays in the arena of a script. Without `run`, it goes back to the kernel."""
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    (tmp_path / "arena.py").write_text(ARENA)
    done = subprocess.run([sys.executable, "-c", f"{ARENA}\nprint(kept())"], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert ended("import arena; print(arena.kept())", "a", "b") == (0, "True\n", "")


def test_a_c_library_without_mallopt_is_no_error(monkeypatch):
    monkeypatch.setattr(command.ctypes, "CDLL", lambda _: object())
    command.keep_freed_memory()
