"""The device that computes, its precision and its instruction set."""

import os
import sys
from typing import Literal

import torch

from vae import parallel
from vae.errors import InputError
from vae.params import Train

Precision = Literal["bf16", "fp32"]
CUDA_BF16 = 8  # the first major compute capability with bf16 (NVIDIA Ampere)


def setup(config: Train) -> torch.device:
    """Sets the threads, and makes a GPU repeat its bits. Returns the device: `auto` is CUDA if there is one, else CPU.
    Processes that train together share the threads of their machine out, and each has a GPU of its own.
    Raises InputError if the named device, the instruction set or enough GPUs are not on this machine."""
    number, processes = parallel.local()
    torch.set_num_threads(max(1, config.threads // processes))
    if config.instructions == "avx2" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise InputError("params.yaml: train.instructions: this CPU has no AVX2; use native")
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("params.yaml: train.device: no cuda device on this machine; use auto or cpu")
    if name == "cpu":
        return torch.device(name)
    if processes > (gpus := torch.cuda.device_count()):
        raise InputError(f"TORCHRUN: {processes} processes, but this machine has {gpus} GPUs; start one for each GPU")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 is float32, in convolutions too
    torch.cuda.set_device(number)
    return torch.device(name, number)


def native_bf16(device: torch.device) -> str:
    """The hardware's name for its bf16 products, or an empty text if it has none.
    Depends on the hardware and on the limits that the user sets for torch and oneDNN, never on a measurement."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= CUDA_BF16 else ""
    features = torch.cpu.get_capabilities()
    if features["architecture"].startswith(("arm", "aarch")):
        return "arm bf16" if features.get("bf16") and sys.platform == "linux" else ""  # oneDNN has kernels on Linux
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    allowed = not isa or isa in {"ALL", "DEFAULT"} or isa.endswith("BF16") or "AMX" in isa or isa.startswith("AVX10")
    if not allowed or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return ""
    return next((name for name in ("amx_bf16", "avx512_bf16") if features.get(name)), "")


def precision(name: str, device: torch.device) -> Precision:
    """The precision of matrix products. `auto` is bf16 where the hardware computes it natively, else fp32."""
    return "bf16" if name == "bf16" or (name == "auto" and native_bf16(device)) else "fp32"


def explain(name: str, device: torch.device) -> str:
    """One line on the precision that `precision` chooses, and why."""
    native, chosen = native_bf16(device), precision(name, device)
    found = f"this {device.type} computes bf16 natively ({native})" if native else f"this {device.type} has no bf16"
    if chosen == "bf16" and not native:
        return f"precision: bf16 as asked, but {found}: it is emulated, 10 to 30 times slower than fp32 or auto"
    return f"precision: {chosen}{'' if name == 'auto' else ' as asked'}; {found}"


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """`bf16`: matrix products in bfloat16, sums and losses in float32. `fp32`: everything in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
