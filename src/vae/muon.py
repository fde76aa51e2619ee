"""Muon: momentum, orthogonalized. For the weight matrices and convolutions of a network; Adam keeps the rest."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


class Muon(torch.optim.Optimizer):
    """w <- w - lr sqrt(max(1, rows / columns)) orthogonalize(momentum) (Jordan et al. 2024).

    A convolution is the matrix (out, in * height * width). Matrices are padded with zeros to a few common sizes, so
    that a network of small ones costs a few batched products a step and not hundreds of small ones.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in params]
            grads = [p.grad for p in params]
            torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
            updates = list(torch._foreach_lerp(grads, momenta, MOMENTUM))  # Nesterov
            for p, update in zip(params, directions(updates), strict=True):
                p.add_(update, alpha=-group["lr"])


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
