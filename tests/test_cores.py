"""Turns on the cores: never more threads than cores, each process gets its turn, dead processes hold nothing."""

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

HANG_SECONDS = 300  # far longer than any of these tests takes on a slow machine


@pytest.fixture(autouse=True)
def four_cores(tmp_path, monkeypatch):
    """A separate repository, on a machine with four cores."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "no quota")


def taken(root) -> int:
    """The number of cores that are held, by any process."""
    count = 0
    for number in range(4):
        try:
            with FileLock(state_folder(root) / f"core-{number}.lock", blocking=False):
                pass
        except Timeout:
            count += 1
    return count


def in_thread(function) -> threading.Thread:
    """Starts a thread. It can stand for a process, because locks of different objects exclude each other."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def wait_until_queued(root) -> None:
    """Waits until someone is first in the queue, and so collects cores."""
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        try:
            with FileLock(state_folder(root) / "turn.lock", blocking=False):
                time.sleep(0.001)
        except Timeout:
            return
    pytest.fail("nobody waits for cores")


def asking(threads: int) -> tuple[threading.Thread, threading.Event]:
    """A thread that takes a turn, and an event that is set when the thread has it."""
    has_it = threading.Event()

    def run() -> None:
        with cores.turn(threads):
            has_it.set()

    return in_thread(run), has_it


@pytest.mark.parametrize(("threads", "held"), [(1, 1), (3, 3), (4, 4), (16, 4)])
def test_as_many_cores_as_threads(tmp_path, threads, held):
    """All cores if there are fewer. None is held before, after, or after an error."""
    with cores.turn(threads):
        assert taken(tmp_path) == held
    assert taken(tmp_path) == 0
    with pytest.raises(ValueError, match="diverged"), cores.turn(threads):
        raise ValueError("diverged")
    assert taken(tmp_path) == 0


def test_trainings_that_fit_run_at_the_same_time(tmp_path):
    """Two trainings with two threads each have four cores. A third one waits until one of them ends."""
    with cores.turn(2):
        with cores.turn(2):
            assert taken(tmp_path) == 4
            thread, third = asking(2)
            wait_until_queued(tmp_path)
            assert not third.is_set()
        assert third.wait(HANG_SECONDS)
    thread.join(HANG_SECONDS)


def test_a_training_that_needs_all_cores_gets_its_turn(tmp_path):
    """Another training takes turn after turn, with no time between them. It still has to wait for the first one."""
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
    assert done.wait(HANG_SECONDS)
    thread.join(HANG_SECONDS)
    assert order == ["whole", "part", "part", "part"]


def test_a_killed_process_holds_nothing(tmp_path):
    """Its cores are free at once."""
    code = (
        "import sys; from vae.runtime import cores\nwith cores.turn(9): print('held', flush=True); sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        assert taken(tmp_path) > 0
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_SECONDS)
    assert taken(tmp_path) == 0


def test_only_cores_on_which_the_process_may_run_count(tmp_path, monkeypatch):
    """Two processes with two threads each may use the same two of four cores. One of them waits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3}, raising=False)
    with cores.turn(2):
        assert taken(tmp_path) == 2
        thread, second = asking(2)
        wait_until_queued(tmp_path)
        assert not second.is_set()
    assert second.wait(HANG_SECONDS)
    thread.join(HANG_SECONDS)


@pytest.mark.parametrize(
    ("quota", "count"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, quota, count):
    """Threads beyond the quota would stand still for the rest of each period, even if the machine has more cores."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    with cores.turn(16):
        assert taken(tmp_path) == count


def test_experiments_in_copies_share_the_cores(tmp_path, monkeypatch):
    """The locks are in the main repository, also for a stage that runs in a copy of it."""
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    with cores.turn(2):
        assert taken(tmp_path) == 2
    assert not list(copy.iterdir())
