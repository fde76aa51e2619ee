"""What the networks and the priors are built of."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Leaves bfloat16 behind where autocast has been; float64 stays. Shapes: any -> the same."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, with a ReLU between two."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
