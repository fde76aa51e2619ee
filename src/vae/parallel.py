"""Processes that train one model together, under PyTorch's torchrun: each computes its rows of every batch.
All draw the same random numbers, for the whole batch. So they compute the sums of one process, in another order.
A process without torchrun is alone, and nothing here changes what it computes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vae.errors import InputError

PATIENCE = timedelta(hours=1)  # with a process that waits for cores


def local() -> tuple[int, int]:
    """The number of this process among the processes on its machine, and how many they are."""
    names = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return tuple(int(os.environ[name]) for name in names) if dist.is_torchelastic_launched() else (0, 1)  # type: ignore


def rank() -> int:
    """The number of this process among all. Process 0 alone writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: torch.device, batch_size: int) -> Iterator[None]:
    """Connects the processes: by NCCL on GPUs, by gloo on CPUs.
    Raises InputError if they are more than the images of a batch, or if another process ends."""
    if dist.is_torchelastic_launched():
        if (processes := int(os.environ["WORLD_SIZE"])) > batch_size:
            raise InputError(f"TORCHRUN: {processes} processes, but train.batch_size is {batch_size}; start fewer")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError("another process of this training has ended; run the same command to go on") from error


def of_first(item: Any) -> Any:
    """The item of process 0."""
    items = [item]
    if count() > 1:
        dist.broadcast_object_list(items)
    return items[0]


def share(rows: Tensor) -> Tensor:
    """The rows of a batch that this process computes."""
    return rows.tensor_split(count())[rank()]


def total(value: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count() > 1:
        dist.all_reduce(value)
    return value


def together(module: nn.Module) -> nn.Module:
    """The module, whose gradients become the mean over all processes in each backward pass."""
    if count() == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)  # the prior may be trained alone


def collecting(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """The context of one of several passes whose gradients are added: only after the last do the processes meet."""
    return nullcontext() if last or count() == 1 else module.no_sync()  # type: ignore[operator]
