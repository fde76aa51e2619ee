"""The device that computes, and its precision."""

import torch

from vae.errors import InputError


def choose(name: str) -> torch.device:
    """`auto` is CUDA if there is a CUDA device, else the CPU.
    Raises InputError if the named device is not on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("params.yaml: train.device: no cuda device on this machine; use auto or cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """`bf16`: matrix products in bfloat16, sums and losses in float32. `fp32`: everything in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
