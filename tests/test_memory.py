"""The memory of the machine: what is free, errors that say it is short, and notes of killed processes."""

from vae.runtime import command, memory

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch


def test_a_container_has_less(tmp_path, monkeypatch):
    """The limit of the container counts, if there is one."""
    monkeypatch.setattr(memory, "LIMIT", tmp_path / "memory.max")
    assert 0 < memory.free_bytes("cpu") <= psutil.virtual_memory().total
    memory.LIMIT.write_text("max\n")
    assert memory.free_bytes("cpu") > 1000
    memory.LIMIT.write_text("1000\n")
    assert memory.free_bytes("cpu") == 1000


HUGE = 2**46


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(HUGE),
        lambda: torch.empty(2**40, 2**40),
        lambda: np.empty(HUGE),
        lambda: bytearray(HUGE),
    ],
    ids=["torch", "torch, beyond 64 bits", "numpy", "python"],
)
def test_an_allocation_that_fails_is_one_line(allocate, monkeypatch, capsys):
    """Real allocations of 70 TB or more. Another RuntimeError keeps its traceback."""

    def main() -> None:
        allocate()

    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setattr(command, "leave", sys.exit)  # which would end the tests
    with pytest.raises(SystemExit) as caught:
        command.run(main)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory")
    assert "lower the sizes in params.yaml" in said
    assert len(said.splitlines()) == 1

    def bug() -> None:
        torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError):
        command.run(bug)


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """The kernel's counters, as a file that a test can write."""
    path = tmp_path / "vmstat"
    path.write_text("nr_free_pages 7\noom_kill 3\nswap_ra 0\n")
    monkeypatch.setattr(memory, "COUNTERS", path)
    return path


KILLED = """
import os, signal, sys
from pathlib import Path
from vae.runtime import memory
memory.COUNTERS = Path(sys.argv[1])
with memory.noted(Path(sys.argv[2])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_a_note(counters, tmp_path, capsys):
    """The next start says if the kernel has killed a process for memory since, and only then."""
    note = tmp_path / "note"

    def killed() -> None:
        done = subprocess.run([sys.executable, "-c", KILLED, counters, note], env=os.environ | {"PYTHONPATH": "src"})
        assert done.returncode == -signal.SIGKILL
        assert note.is_file()

    killed()
    with memory.noted(note):
        pass
    assert not note.exists()
    assert capsys.readouterr().err == ""  # killed by something else
    killed()
    counters.write_text("nr_free_pages 7\noom_kill 4\n")
    with memory.noted(note):
        assert "memory was short" in capsys.readouterr().err
    with memory.noted(note):
        assert capsys.readouterr().err == ""  # said once


@pytest.mark.parametrize("content", ["", "text", "9"])
def test_a_damaged_note_or_a_restarted_machine_says_nothing(counters, tmp_path, capsys, content):
    (tmp_path / "note").write_text(content)
    with memory.noted(tmp_path / "note"):
        assert capsys.readouterr().err == ""


def test_a_kernel_without_counters(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "COUNTERS", tmp_path / "missing")
    with memory.noted(tmp_path / "note"):
        pass
    assert memory.kills() == 0


def test_the_kernel_of_this_machine_can_be_read():
    """Linux has the counter; other kernels give 0."""
    assert memory.kills() >= 0
    if sys.platform == "linux" and memory.COUNTERS.is_file() and "oom_kill" in memory.COUNTERS.read_text():
        assert str(memory.kills()) in memory.COUNTERS.read_text()
