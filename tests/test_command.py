"""How a script ends: one clear line and an exit code, and every `finally` gets its turn."""

from vae.runtime import command

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def heed_interrupts() -> None:
    """A shell has its background jobs ignore SIGINT, and the test run may be one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def script(tmp_path):
    """Starts a script whose `main` has a given body; its arguments are the paths `source` and `result`."""
    buffered = {"PYTHONUNBUFFERED": ""}  # as in a user's shell, where what is not flushed would be lost
    environment = os.environ | buffered | {"PYTHONPATH": str(Path(command.__file__).parents[1])}

    def start(body: str, *arguments: str) -> subprocess.Popen:
        lines = [
            "import time",
            "from pathlib import Path",
            "from vae import command",
            "from vae.errors import InputError",
            "def main(source: Path, result: Path) -> None:",
            '    """Does a thing."""',
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
