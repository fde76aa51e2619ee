"""What kind of machine computes: named in the record of a run, because other kinds may give other bits."""

from vae.runtime import command, cores

import os
import platform
from importlib.metadata import version
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")  # of Linux
PACKAGES = ("torch", "mlflow", "dvc")


def describe(threads: int, device: str) -> dict[str, str]:
    """The tags of a record, by name. `device` is the type of torch's device."""
    import torch  # imported here, so that readers of a record do not load torch

    features = torch.cpu.get_capabilities()
    tags = {
        "machine.cpu": f"{model_name()} ({features['architecture']})",
        "machine.instructions": torch.backends.cpu.get_cpu_capability(),  # as limited by the environment
        "machine.bf16": str(any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))).lower(),
        "machine.cores": str(len(cores.usable())),
        "machine.threads": str(threads),
        "machine.device": torch.cuda.get_device_name() if device == "cuda" else device,
        "machine.os": f"{platform.system()} {platform.release()}",
        "version.python": platform.python_version(),
    }
    if limited := [f"{name}={os.environ[name]}" for name in command.AVX2_ALONE if name in os.environ]:
        tags["machine.limits"] = " ".join(limited)
    return tags | {f"version.{name}": version(name) for name in PACKAGES}


def model_name() -> str:
    """The name of the CPU, as its maker or its hypervisor gives it, with its family and model on Linux."""
    if not CPU_INFO.is_file():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in CPU_INFO.read_text(errors="replace").splitlines())
    found = {name.strip(): value.strip() for name, _, value in reversed(list(lines))}
    numbers = "".join(f", {name} {found[name]}" for name in ("cpu family", "model") if name in found)
    return f"{found.get('model name', platform.machine())}{numbers}"


def differences(recorded: dict[str, str], present: dict[str, str]) -> list[str]:
    """Recorded and present machine side by side, one line for each tag that differs."""
    return [
        f"{name}: {recorded[name]} when it was recorded, {present.get(name, 'nothing')} here"
        for name in sorted(recorded)
        if name.startswith(("machine.", "version.")) and recorded[name] != present.get(name)
    ]
