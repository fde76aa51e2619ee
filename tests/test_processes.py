"""How a script starts itself under torchrun, and how it says why that failed."""

from vae.runtime import command, processes

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vae.errors import InputError

LOST = "another process of this training has ended; run the same command to go on"


@pytest.fixture
def failure(tmp_path):
    """Makes a failure as torchrun does: with an exit code, the second in which it was seen, and a message or none."""

    def make(exitcode: int, second: int, message: str | None = None) -> SimpleNamespace:
        file = tmp_path / f"{exitcode} {second}"
        if message:
            file.write_text(message)
        return SimpleNamespace(exitcode=exitcode, timestamp=second, message=message, error_file=str(file))

    return make


def test_a_killed_process_is_the_reason_although_another_has_missed_it_before(failure):
    assert processes._reason({0: failure(1, 10, LOST), 1: failure(-9, 11)}).startswith("process 1 of the training was")


def test_an_error_is_the_reason_although_torchrun_had_to_kill_another(failure):
    """Torchrun waits for 30 s before it kills a process that hangs."""
    assert processes._reason({0: failure(-9, 40), 1: failure(1, 10, "no such file")}) == "no such file"


def test_the_first_error_with_a_message_is_the_reason(failure):
    """A process that torchrun has ended in the same second says nothing, also if it had only begun to start."""
    for ended in (143, -15):
        assert processes._reason({0: failure(ended, 10), 1: failure(1, 10, "no such file")}) == "no such file"
    assert "process 1 of the training ended with exit code 1" in processes._reason({1: failure(1, 9)})


@pytest.mark.parametrize("second", [10, 12])
def test_a_process_that_torchrun_has_ended_while_it_imported_is_not_the_reason(failure, second):
    assert processes._reason({0: failure(-15, second), 1: failure(1, 10, "no such file")}) == "no such file"


def test_without_the_variable_nothing_starts(monkeypatch):
    """Variables of other jobs, such as RANK, start nothing either, and change nothing."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("TORCHRUN", raising=False)
    processes.launch()
    assert processes.is_first()


def test_the_others_print_nothing(monkeypatch):
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda _name: SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(sys, "stdout", before := sys.stdout)
    monkeypatch.setenv(processes.UNDER_TORCHRUN, "x")
    monkeypatch.setenv("TORCHRUN", "--nproc-per-node 2")  # in this process, nothing starts again
    monkeypatch.setenv("RANK", "0")
    processes.launch()
    assert sys.stdout is before
    monkeypatch.setenv("RANK", "1")
    processes.launch()
    assert sys.stdout.name == "/dev/null"


def test_under_torchrun_an_error_goes_into_a_file(monkeypatch, tmp_path, capsys):
    """Otherwise each process would print it."""

    def fail(path: Path) -> None:
        raise InputError(f"{path}: wrong")

    monkeypatch.setattr(sys, "argv", ["script", "thing"])
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error"))
    monkeypatch.setattr(command, "leave", sys.exit)  # which would end the tests
    with pytest.raises(SystemExit, match=r"^1$"):
        command.run(fail)
    assert json.loads((tmp_path / "error").read_text())["message"] == "thing: wrong"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("under_torchrun", "said"), [(False, "interrupted\n"), (True, "")])
def test_an_interrupt_is_one_line_of_torchruns_own_process(monkeypatch, capsys, under_torchrun, said):
    """Torchrun also ends the processes that are left if one fails, and the line must say why that one failed."""
    if under_torchrun:
        monkeypatch.setenv(command.ERROR_FILE, "error")
    monkeypatch.setattr(command, "last_words", "interrupted")
    monkeypatch.setattr(command.os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match=r"^143$"):
        command.leave(143)
    assert capsys.readouterr().err == said
