"""Parts that the networks and the priors share."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Converts bfloat16, the output of autocast, to float32, and leaves float64 as it is. Any shape."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, with ReLUs between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
