"""The memory of the machine: how much is free, and whether a process was killed because it was short."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container: bytes, or "max"
COUNTERS = Path("/proc/vmstat")  # of Linux
SHORT = re.compile("can't allocate memory|out of memory|calculation overflow|ALLOC_FAILED", re.IGNORECASE)


def free_bytes(device: str) -> int:
    """The free memory of this machine, or of its container, or of the GPU if `device` is cuda."""
    import psutil  # imported here, because the kernel's counters need neither
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    limit, free = LIMIT.read_text().strip() if LIMIT.is_file() else "max", int(psutil.virtual_memory().available)
    return free if limit == "max" else min(free, int(limit))


def is_short(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch says that memory could not be had."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(SHORT.search(str(error))))


def kills() -> int:
    """The number of processes that the kernel has killed because memory was short. 0 if it does not count them."""
    found = re.search(r"^oom_kill (\d+)$", COUNTERS.read_text(), re.MULTILINE) if COUNTERS.is_file() else None
    return int(found[1]) if found else 0


@contextmanager
def noted(note: Path) -> Iterator[None]:
    """Writes the number of kills into a note, which stays only if this process is killed. The next start compares."""
    before = note.read_text() if note.is_file() else ""
    if before.isdigit() and kills() > int(before):
        what = "the last attempt was killed, and the kernel has killed a process because memory was short"
        print(f"{what}; if it happens again, lower train.batch_size or the sizes in model", file=sys.stderr)
    note.write_text(str(kills()))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)
