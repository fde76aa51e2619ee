"""Adam agrees with torch. The directions of Muon are orthogonal, for any shapes and any batching."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from vae import optimizers

SHAPES = [(16, 4, 3, 3), (32, 64, 1, 1), (64, 32, 1, 1), (4, 16, 3, 3), (100, 3)]


@pytest.fixture
def updates():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_singular_values_come_near_one(updates):
    for direction in optimizers.directions(updates):
        out, inputs = direction.flatten(1).shape
        values = torch.linalg.svdvals(direction.flatten(1)) / max(1, out / inputs) ** 0.5
        assert 0.5 < values.min() <= values.max() < 1.3


def test_padding_with_zeros_changes_nothing(updates):
    together = optimizers.directions(updates)
    for update, direction in zip(updates, together, strict=True):
        torch.testing.assert_close(optimizers.directions([update])[0], direction, rtol=1e-4, atol=1e-5)


def test_the_direction_is_downhill(updates):
    """The singular vectors stay, so the inner product with the gradient is nearly the sum of its singular values."""
    for update, direction in zip(updates, optimizers.directions(updates), strict=True):
        matrix = update.flatten(1)
        factor = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
        assert (update * direction).sum() > 0.6 * factor * torch.linalg.matrix_norm(matrix, "nuc")


def test_momentum_is_averaged_and_nesterov():
    """The momentum m becomes 0.95 m + 0.05 g. A step takes the direction of 0.95 m + 0.05 g with this new m.
    From the second step on, this direction differs from the directions of m and of g."""
    weight, generator = torch.nn.Parameter(torch.zeros(3, 5)), torch.Generator().manual_seed(1)
    muon, momentum, expected = optimizers.Muon([weight], 0.2), torch.zeros(3, 5), torch.zeros(3, 5)
    for _ in range(2):
        weight.grad = torch.randn(3, 5, generator=generator)
        muon.step(0.5)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        expected -= 0.1 * optimizers.directions([0.95 * momentum + 0.05 * weight.grad])[0]
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_adam_agrees_with_torch():
    """The weights equal the weights by torch.optim.Adam bit for bit, even if the state is saved and loaded."""
    generator = torch.Generator().manual_seed(2)
    start, rates = torch.randn(4, 3, generator=generator), (1.0, 0.5, 0.25, 1.0)
    grads = [torch.randn(4, 3, generator=generator) for _ in rates]
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    reference = torch.optim.Adam([theirs], fused=True)
    adam = optimizers.Adam([ours], 0.1)
    for factor, grad in zip(rates, grads, strict=True):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        state = copy.deepcopy(adam.state_dict())
        adam = optimizers.Adam([ours], 0.1)
        adam.load_state_dict(state)
        adam.step(factor)
        reference.param_groups[0]["lr"] = 0.1 * factor
        reference.step()
        assert torch.equal(ours, theirs)


def test_learning_rate_warms_up():
    """It rises linearly to the configured rate in warmup_steps, then stays."""
    factors = [optimizers.rate_factor("constant", 0.0, step, 4) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-12)


def test_constant_schedule_is_constant():
    """Without a warm-up, every step has the configured rate."""
    assert {optimizers.rate_factor("constant", step / 100, step, 0) for step in range(101)} == {1}


def test_cosine_schedule_is_half_a_cosine():
    """It falls at every step, from the full rate to half of it in the middle, and to zero."""
    factors = [optimizers.rate_factor("cosine", step / 100, step, 0) for step in range(101)]
    assert [factors[0], factors[50], factors[100]] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert factors[25] == pytest.approx(0.5 * (1 + math.sqrt(0.5)), rel=1e-12)
    assert all(later < earlier for earlier, later in pairwise(factors))
