"""Networks as safetensors files: the weights, and the configuration to build the network from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import nn

from vae.errors import InputError

TRAINED = "trained"  # the key of the device and the precision
Config = TypeVar("Config", bound=BaseModel)
Network = TypeVar("Network", bound=nn.Module)


def save(network: nn.Module, path: Path, **trained: str) -> None:
    """Writes the weights of a network, its `config`, and how it was `trained`. Equal arguments give equal bytes."""
    config: BaseModel = network.config  # type: ignore[assignment]
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = type(config).__name__.lower()
    described = config.model_dump() | ({TRAINED: trained} if trained else {})
    # One key, because two have no fixed order. Python writes the file, because its errors name the file.
    path.write_bytes(serialized(weights, metadata={kind: json.dumps(described)}))


def load(path: Path, schema: type[Config], build: Callable[[Config], Network], remedy: str, device: str) -> Network:
    """Reads a network that `save` wrote with a configuration of this schema. No code in the file is executed.
    Raises InputError if the file is missing, damaged, or of another kind. The message ends with `remedy`."""
    kind = schema.__name__.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such {kind}; {remedy}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            described = dict(json.loads((file.metadata() or {})[kind]))
            described.pop(TRAINED, None)
            config = schema.model_validate(described)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        with torch.device("meta"):  # which has no values: refuses other shapes before memory is taken for them
            build(config).load_state_dict(weights, assign=True)
        if wrong := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{wrong[0]} has values that are not finite")
        network = build(config).to(device)
        network.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a {kind} of this project ({reason}); {remedy}") from error
    return network.eval()
