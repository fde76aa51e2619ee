"""How a script starts and ends: its arguments, one clear line for an error, and every `finally` runs."""

from vae.runtime import command

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def heed_interrupts() -> None:
    """A shell has its background jobs ignore SIGINT, and the test run may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def script(tmp_path):
    """Starts a script whose `main` has a given body; its arguments are the paths `source` and `result`."""
    buffered = {"PYTHONUNBUFFERED": ""}  # as in a user's shell, where what is not flushed would be lost
    environment = os.environ | buffered | {"PYTHONPATH": str(Path(command.__file__).parents[2])}

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
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        return subprocess.Popen(argv, cwd=tmp_path, preexec_fn=heed_interrupts, **pipes)

    return start


@pytest.fixture
def ended(script):
    """Runs a script to its end: (exit code, stdout, stderr)."""

    def run(body: str, *arguments: str) -> tuple[int, str, str]:
        process = script(body, *arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    return run


def test_paths_from_argv(ended):
    """Each parameter is a path, in order, and a good end says nothing."""
    body = "print(repr(source), repr(result))"
    assert ended(body, "a b", "dir/c") == (0, "PosixPath('a b') PosixPath('dir/c')\n", "")


def test_input_error_is_one_line(ended):
    """What a user can mend: exit code 1 and the message alone, no traceback."""
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
    """An error of the file system names the path: exit code 1, no traceback."""
    code, out, err = ended(body, "thing", "nowhere/out")
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert any(name in err for name in ("thing", "nowhere/out", "script.py/folder"))
    assert len(err.splitlines()) == 1


def test_a_full_disk_is_one_line(ended):
    """Which the system reports without a name where an open file is written."""
    code, out, err = ended("raise OSError(28, 'No space left on device')", "a", "b")
    assert (code, out, err) == (1, "", "error: No space left on device; make room, and start again\n")


def test_a_fault_of_the_program_keeps_its_traceback(ended):
    """What no user can mend is not dressed up."""
    for body in ("raise RuntimeError('a bug')", "raise OSError('a bug')"):
        code, _, err = ended(body, "a", "b")
        assert code == 1
        assert "Traceback" in err
        assert "a bug" in err


@pytest.mark.parametrize("arguments", [[], ["one"], ["one", "two", "three"], ["one", "two", "--unknown"]])
def test_usage_error(ended, arguments):
    """Too few, too many or unknown arguments: exit code 2 and the names of those that there are."""
    code, out, err = ended("print('ran')", *arguments)
    assert code == 2
    assert out == ""
    assert "source" in err
    assert "result" in err
    assert "Traceback" not in err


def test_help(ended):
    """--help says what the script does."""
    code, out, _ = ended("print('ran')", "--help")
    assert code == 0
    assert "Does a thing." in out
    assert "ran" not in out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_unwinds(script, tmp_path, name):
    """Stopped from outside, `finally` runs, the exit code says by which signal, and there is no traceback."""
    body = "try:\n    print('ready', flush=True)\n    time.sleep(30)\nfinally:\n    result.write_text('unwound')\n"
    process = script(body, "a", "out")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.Signals[name]
    assert (tmp_path / "out").read_text() == "unwound"
    assert err == ""


def parsed(main: Callable[..., None], *arguments: str) -> dict:
    """The arguments of `main` as the command line gives them."""
    return vars(command._parser(main).parse_args(arguments))


def test_keyword_only_parameters_are_required_options():
    """So two files cannot be swapped unnoticed."""

    def main(params: Path, *, model: Path, run: str, check: bool) -> None: ...

    expected = {"params": Path("p"), "model": Path("m"), "run": "r", "check": False}
    assert parsed(main, "p", "--run", "r", "--model", "m") == expected
    assert parsed(main, "p", "--model", "m", "--run", "r", "--check") == expected | {"check": True}
    for wrong in (["p", "--model", "m"], ["p", "m", "r"], ["p", "--mod", "m", "--run", "r"]):
        with pytest.raises(SystemExit) as ended:
            parsed(main, *wrong)
        assert ended.value.code == 2


SETTINGS = """
import ctypes, os, sys
from vae.runtime import command
print(os.environ["GOMP_SPINCOUNT"])

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def kept() -> bool:
    before = libc.mallinfo2()
    block = libc.malloc(40 << 20)
    mapped = libc.mallinfo2().hblks > before.hblks
    libc.free(block)
    return not mapped and libc.mallinfo2().arena - before.arena > 30 << 20

print(kept())
command.keep_freed_memory()
print(kept())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library has no mallinfo2")
@pytest.mark.parametrize(("given", "found"), [(None, "20000"), ("7", "7")])
def test_settings_of_the_process(given, found):
    """The spinning of threads is limited unless the user says otherwise, and freed memory stays in the process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "MALLOC"))}
    environment |= {"PYTHONPATH": str(Path(command.__file__).parents[2])} | ({"GOMP_SPINCOUNT": given} if given else {})
    done = subprocess.run([sys.executable, "-c", SETTINGS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False", "True"]
