"""Experiments of one repository take turns on the cores.

The threads of a training meet after each operation, hundreds of times in a step. If two trainings share the cores, a
thread that the others wait for is often not running. Both then take many times longer than one after the other."""

from vae.runtime import repository

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.005  # short compared with an epoch of the smallest data set
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "<microseconds of computing> <period>", or "max <period>"


def usable() -> list[int]:
    """The cores on which this process may run, at most as many as its container may use."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota, period = QUOTA.read_text().split() if QUOTA.is_file() else ("max", "1")
    return found if quota == "max" else found[: math.ceil(int(quota) / int(period))]


@contextmanager
def turn(threads: int) -> Iterator[None]:
    """Holds one core for each thread, or all cores if there are fewer, until the block ends.
    All stages of the main repository share the cores, in whatever copy of it they run. Processes queue for them: one
    at a time collects as many as it needs, and one that has just had a turn goes to the back. A process that dies
    frees its cores."""
    folder = repository.state_folder(repository.main_repository())
    others = [FileLock(folder / f"core-{number}.lock") for number in usable()]
    left = max(0, len(others) - threads)
    with ExitStack() as held:
        with FileLock(folder / "turn.lock", poll_interval=POLL_SECONDS):
            while len(others) > left:
                for core in others:
                    with suppress(Timeout):  # another process has it
                        held.enter_context(core.acquire(blocking=False))
                        others.remove(core)
                        break
                else:
                    time.sleep(POLL_SECONDS)
        yield
