"""Turns on the cores: never more threads than cores, nobody left out, nothing held by the dead."""

from vae.runtime import cores
from vae.runtime.repository import state_folder

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock, Timeout

WAIT_SECONDS = 120  # only a hang takes this long


@pytest.fixture(autouse=True)
def four_cores(tmp_path, monkeypatch):
    """A repository of its own, on a machine of four cores."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "no quota")


def taken(root) -> int:
    """How many cores are held by anyone."""
    count = 0
    for number in range(4):
        try:
            with FileLock(state_folder(root) / f"core-{number}.lock", blocking=False):
                pass
        except Timeout:
            count += 1
    return count


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def wait_until_queued(root) -> None:
    """Waits until a process is first in the queue for cores."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            with FileLock(state_folder(root) / "turn.lock", blocking=False):
                time.sleep(0.001)
        except Timeout:
            return
    pytest.fail("nobody waits for cores")


def asking(threads: int) -> tuple[threading.Thread, threading.Event]:
    """Another that takes a turn: the event is set once it has it."""
    has_it = threading.Event()

    def run() -> None:
        with cores.turn(threads):
            has_it.set()

    return in_thread(run), has_it


@pytest.mark.parametrize(("threads", "held"), [(1, 1), (3, 3), (4, 4), (16, 4)])
def test_as_many_cores_as_threads(tmp_path, threads, held):
    """And all where there are not so many; none before, none after, none after an error."""
    with cores.turn(threads):
        assert taken(tmp_path) == held
    assert taken(tmp_path) == 0
    with pytest.raises(ValueError, match="diverged"), cores.turn(threads):
        raise ValueError("diverged")
    assert taken(tmp_path) == 0


def test_those_that_fit_run_side_by_side(tmp_path):
    """Two trainings of two threads have four cores; a third waits until one of them ends."""
    with cores.turn(2):
        with cores.turn(2):
            assert taken(tmp_path) == 4
            thread, third = asking(2)
            assert not third.wait(0.2)
        assert third.wait(WAIT_SECONDS)
    thread.join(WAIT_SECONDS)


def test_one_that_needs_all_is_not_passed_over(tmp_path):
    """It waits for one that takes turn after turn, which then waits for it, however short the time between turns."""
    order, done = [], threading.Event()

    def whole() -> None:
        with cores.turn(4):
            order.append("whole")
        done.set()

    with cores.turn(3):
        thread = in_thread(whole)
        wait_until_queued(tmp_path)
    for _ in range(3):
        with cores.turn(3):
            order.append("part")
    assert done.wait(WAIT_SECONDS)
    thread.join(WAIT_SECONDS)
    assert order == ["whole", "part", "part", "part"]


def test_a_killed_process_holds_nothing(tmp_path):
    """Its cores are free at once."""
    code = "import time; from vae.runtime import cores\nwith cores.turn(9): print('held', flush=True); time.sleep(99)\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "held\n"
        assert taken(tmp_path) > 0
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert taken(tmp_path) == 0


def test_cores_that_are_not_ours_are_not_counted(tmp_path, monkeypatch):
    """Of two processes bound to the same two of four cores, with two threads each, one waits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    with cores.turn(2):
        assert taken(tmp_path) == 2
        thread, second = asking(2)
        assert not second.wait(0.2)
    assert second.wait(WAIT_SECONDS)
    thread.join(WAIT_SECONDS)


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, quota, count):
    """Whatever the machine has: what is beyond the quota stands still for the rest of each period."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    with cores.turn(16):
        assert taken(tmp_path) == count


def test_experiments_in_copies_share_them(tmp_path, monkeypatch):
    """The locks are in the main repository, wherever the stage runs."""
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    with cores.turn(2):
        assert taken(tmp_path) == 2
    assert not list(copy.iterdir())
