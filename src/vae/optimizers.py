"""Adam, and Muon for the matrices and convolutions of a network.
Both are plain classes, because the first `torch.optim.Optimizer` imports torch's whole compiler, which takes 1.5 s."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adam import adam

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024)
STEPS = 5
MOMENTUM = 0.95
DECAY_SHARE = 0.85  # of a training with the schedule `stable-decay`
EPSILON = 1e-14
fused_adam = partial(
    adam, fused=True, amsgrad=False, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, maximize=False
)


def rate_factor(schedule: str, progress: float, step: int, warmup_steps: int) -> float:
    """The factor of the learning rates at `step`: a linear warm-up, then as `progress` goes from 0 to 1 constant, a
    half cosine to zero (Loshchilov & Hutter 2017), or constant and in the last part a line to zero (Zhai et al. 2022).
    Raises KeyError for another schedule."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "stable-decay": min(1.0, (1 - progress) / DECAY_SHARE),
    }
    return warmup * decay[schedule]


def orthogonalizer(grams: Tensor) -> Tensor:
    """The matrix A that brings every singular value of A X near 1, from G = X X^T.
    X <- p(X X^T) X with p(G) = a + b G + c G^2, five times (Jordan et al. 2024). All p(G) are polynomials in the first
    G, so their product and the G of each step need only products of the small side of X. Padding with rows and columns
    of zeros does no harm. Shapes: (N, R, R) -> (N, R, R)."""
    a, b, c = COEFFICIENTS
    scale = grams.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None] + EPSILON  # |X|^2, of the Frobenius norm
    grams, identity = grams / scale, torch.eye(grams.shape[-1], device=grams.device)
    product = identity / scale.sqrt()
    for _ in range(STEPS):
        step = torch.baddbmm(a * identity + b * grams, grams, grams, alpha=c)
        product = step @ product
        grams = step @ grams @ step
    return product


class Optimizer:
    """Parameters, a learning rate, and buffers of the parameters' shapes by name."""

    def __init__(self, params: Iterable[nn.Parameter], learning_rate: float, *buffers: str) -> None:
        self.params: list[Tensor] = list(params)
        self.learning_rate = learning_rate
        self.buffers = {name: [p.new_zeros(p.shape) for p in self.params] for name in buffers}

    def step(self, factor: float) -> None:
        """One update with `factor` times the learning rate."""
        raise NotImplementedError

    def gradients(self) -> list[Tensor]:
        """The gradients of all parameters. Each has one after `backward`."""
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
        mean, square, steps = (self.buffers[name] for name in ("mean", "square", "steps"))
        fused_adam(self.params, self.gradients(), mean, square, [], steps, lr=factor * self.learning_rate)


class Muon(Optimizer):
    """w <- w - lr sqrt(max(1, rows / columns)) orthogonalize(momentum) (Jordan et al. 2024).
    A convolution is the matrix (out, in * height * width). The Gram matrices are padded with zeros to a few common
    sizes, so that a step takes a few batched products instead of hundreds of small ones."""

    def __init__(self, params: Iterable[nn.Parameter], learning_rate: float) -> None:
        super().__init__(params, learning_rate, "momentum")

    @torch.no_grad()
    def step(self, factor: float) -> None:
        momenta, grads = self.buffers["momentum"], self.gradients()
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        updates = list(torch._foreach_lerp(grads, momenta, MOMENTUM))  # Nesterov
        torch._foreach_add_(self.params, directions(updates), alpha=-factor * self.learning_rate)


def directions(updates: list[Tensor]) -> list[Tensor]:
    """Orthogonalizes tensors of two or more dimensions, and multiplies each by sqrt(max(1, rows / columns))."""
    matrices = [update.flatten(1) for update in updates]
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T for matrix in matrices]
    sizes: dict[int, list[int]] = {}  # by the power of 4 of the small side: matrices that are padded together
    for index, matrix in enumerate(wide):
        sizes.setdefault(len(matrix).bit_length() // 2, []).append(index)
    result = list(updates)
    for indices in sizes.values():
        most = max(len(wide[index]) for index in indices)
        grams = [F.pad(wide[i] @ wide[i].T, 2 * (0, most - len(wide[i]))) for i in indices]
        for index, left in zip(indices, orthogonalizer(torch.stack(grams)), strict=True):
            size = len(wide[index])
            matrix = left[:size, :size] @ wide[index]
            rows, columns = matrices[index].shape
            matrix = (matrix if rows <= columns else matrix.T) * max(1, rows / columns) ** 0.5
            result[index] = matrix.reshape(updates[index].shape)
    return result
