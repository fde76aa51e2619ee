"""Adam, and Muon for the matrices and convolutions of a network.

Both are plain classes: `torch.optim.Optimizer` imports all of torch's compiler when the first one is built, 1.5 s.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adam import adam

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)
STEPS = 5
MOMENTUM = 0.95


def orthogonalize(matrices: Tensor) -> Tensor:
    """Brings every singular value near 1: X <- a X + b (X X^T) X + c (X X^T)^2 X, five times (Jordan et al. 2024).

    Rows and columns of zeros stay zero. Shapes: (N, R, C) with R <= C -> (N, R, C).
    """
    a, b, c = COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)  # (N, R, C)
    for _ in range(STEPS):
        gram = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimizer:
    """Parameters, a learning rate, and buffers of the parameters' shapes by name."""

    def __init__(self, params: Iterable[nn.Parameter], learning_rate: float, *buffers: str) -> None:
        self.params: list[Tensor] = list(params)
        self.learning_rate = learning_rate
        self.buffers = {name: [torch.zeros_like(p) for p in self.params] for name in buffers}

    def step(self, factor: float) -> None:
        """One update at this share of the learning rate."""
        raise NotImplementedError

    def gradients(self) -> list[Tensor]:
        """The gradient of every parameter; where one has none, backward did not reach it."""
        return [cast(Tensor, p.grad) for p in self.params]

    def state_dict(self) -> dict[str, Any]:
        return dict(self.buffers)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensors in self.buffers.items():
            torch._foreach_copy_(tensors, state[name])


class Adam(Optimizer):
    """Kingma & Ba 2015, by torch's fused kernel."""

    def __init__(self, params: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(params, learning_rate, "mean", "square")
        self.buffers["steps"] = [torch.zeros((), device=p.device) for p in self.params]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        adam(
            self.params,
            self.gradients(),
            self.buffers["mean"],
            self.buffers["square"],
            [],
            self.buffers["steps"],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=factor * self.learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


class Muon(Optimizer):
    """w <- w - lr sqrt(max(1, rows / columns)) orthogonalize(momentum) (Jordan et al. 2024).

    A convolution is the matrix (out, in * height * width). Matrices are padded with zeros to a few common sizes, so
    that a network of small ones costs a few batched products a step and not hundreds of small ones.
    """

    def __init__(self, params: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(params, learning_rate, "momentum")

    @torch.no_grad()
    def step(self, factor: float) -> None:
        momenta, grads = self.buffers["momentum"], self.gradients()
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        updates = list(torch._foreach_lerp(grads, momenta, MOMENTUM))  # Nesterov
        torch._foreach_add_(self.params, directions(updates), alpha=-factor * self.learning_rate)


def directions(updates: list[Tensor]) -> list[Tensor]:
    """Orthogonalizes tensors of any shapes of two or more dimensions, those of like sizes together."""
    wide: list[Tensor] = []
    sizes: dict[int, list[int]] = {}  # which tensors go together, by a power of 4 of their columns
    for index, update in enumerate(updates):
        matrix = update.flatten(1)
        wide.append(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
        sizes.setdefault(wide[-1].shape[1].bit_length() // 2, []).append(index)
    result = list(updates)
    for indices in sizes.values():
        rows, columns = (max(wide[index].shape[side] for index in indices) for side in (0, 1))
        padded = torch.stack(
            [F.pad(wide[i], (0, columns - wide[i].shape[1], 0, rows - wide[i].shape[0])) for i in indices]
        )
        for index, matrix in zip(indices, orthogonalize(padded), strict=True):
            matrix = matrix[: wide[index].shape[0], : wide[index].shape[1]]
            out, inputs = updates[index].flatten(1).shape
            matrix = (matrix if out <= inputs else matrix.T) * max(1, out / inputs) ** 0.5
            result[index] = matrix.reshape(updates[index].shape)
    return result
