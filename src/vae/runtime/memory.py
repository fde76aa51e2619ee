"""The memory of the machine: how much is free, and whether a process was killed because it was short."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container: bytes, or "max"
COUNTERS = Path("/proc/vmstat")  # of Linux
SHORT = re.compile(r"can't allocate memory|out of memory|unable to allocate|size calculation overflow|ALLOC_FAILED", re.I)


def free_bytes(device: str) -> int:
    """The free memory of this machine, or of its container, or of the GPU if `device` is one."""
    import psutil  # imported here, because the kernel's counters need neither
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    free = int(psutil.virtual_memory().available)
    return free if limit == "max" else min(free, int(limit))


def is_short(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch says that memory could not be had."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(SHORT.search(str(error))))


def kills() -> int:
    """The number of processes that the kernel has killed because memory was short, since it started."""
    found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(), re.MULTILINE) if COUNTERS.is_file() else None
    return int(found[1]) if found else 0


@contextmanager
def noted(note: Path) -> Iterator[None]:
    """Keeps a note while the block runs, which stays only if the process is killed. The next start then says if the
    kernel has killed a process for its memory since."""
    before = note.read_text() if note.is_file() else ""
    if before.isdigit() and kills() > int(before):
        print(
            "the last attempt was killed, and the kernel has killed a process because memory was short; if it happens "
            "again, lower train.batch_size or the sizes in model, or end other programs",
            file=sys.stderr,
        )
    note.write_text(str(kills()))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)
