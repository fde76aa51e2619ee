"""Experiments of one repository take turns on the cores.

The threads of a training meet after each operation, hundreds of times in a step. Where two trainings share the cores,
one that the others wait for is often not running, and both take many times longer than one after the other.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vae import checkpoint

POLL_SECONDS = 0.005  # short beside an epoch of the smallest data set
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of computing in how many, or `max`


def usable() -> list[int]:
    """The cores that this process may run on, and no more of them than its container may use."""
    found = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota, period = QUOTA.read_text().split() if QUOTA.is_file() else ("max", "1")
    return found if quota == "max" else found[: math.ceil(int(quota) / int(period))]


@contextmanager
def turn(threads: int) -> Iterator[None]:
    """Holds as many cores as there are threads, or all that there are, until the block ends.

    They are shared by all stages of the main repository, in whatever copy of it they run. One process at a time takes
    cores, until it has enough: whoever asks again at once comes after one that waits. The dead hold nothing.
    """
    folder = checkpoint.repository() / checkpoint.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    others = [FileLock(folder / f"core-{number}.lock") for number in usable()]
    left = max(0, len(others) - threads)
    with ExitStack() as held:
        with FileLock(folder / "turn.lock", poll_interval=POLL_SECONDS):
            while len(others) > left:
                for core in others:
                    if _take(core, held):
                        others.remove(core)
                        break
                else:
                    time.sleep(POLL_SECONDS)
        yield


def _take(core: FileLock, held: ExitStack) -> bool:
    """Takes a core until `held` ends, if no process has it."""
    try:
        held.enter_context(core.acquire(blocking=False))
    except Timeout:
        return False
    return True
