"""Priors: each density integrates to one, and samples follow it."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vae.prior import PRIORS, Prior, path

pytestmark = pytest.mark.usefixtures("float64")
NAMES = ["standard-normal", "mixture", "flow"]
REACH, STEPS = 20, 20  # distance of the edges of a square grid from the origin, and points in each unit of length


@pytest.fixture
def prior(vae, perturb):
    """Makes a prior with noise added to all its parameters."""

    def make(name: str, latent_dim: int = 2, seed: int = 0, **fields: object):
        scale = 0.8 if name == "mixture" else 0.25
        return perturb(vae(seed, prior=name, latent_dim=latent_dim, **fields).prior, scale, seed)

    return make


def grid() -> tuple[torch.Tensor, float]:
    """The centres of the squares of a grid (points, 2), and the area of a square."""
    line = (torch.arange(2 * REACH * STEPS) + 0.5) / STEPS - REACH
    return torch.cartesian_prod(line, line), 1 / STEPS**2


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(prior, name, seed):
    """The sum over a grid is one within 1e-9, or within 1e-3 for a flow, whose ReLUs make kinks in the density."""
    z, area = grid()
    total = prior(name, seed=seed).log_prob(z).exp().sum().item() * area
    assert total == pytest.approx(1, abs=1e-3 if name == "flow" else 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "flow"])
def test_learned_density_is_no_standard_normal(prior, name):
    """The parameters have an effect in the tests of this file."""
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    reference = Normal(0.0, 1.0).log_prob(z).sum(dim=-1)
    assert (prior(name).log_prob(z) - reference).abs().mean() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(prior, name):
    """Compares counts in cells with integrals over them, by chi-squared, and the mean of log p with quadrature.
    The tolerance is 5 standard errors. A chi-squared of n degrees of freedom has the mean n and the variance 2 n."""
    model, count = prior(name), 20000
    z, area = grid()
    log_p = model.log_prob(z)
    samples = model.sample(count, torch.Generator().manual_seed(0))
    assert samples.shape == (count, 2)

    sampled = model.log_prob(samples)
    entropy = (log_p.exp() * log_p).sum().item() * area
    assert abs(sampled.mean().item() - entropy) < 5 * sampled.std().item() / math.sqrt(count)

    def cells(points: torch.Tensor) -> torch.Tensor:
        """The number of the unit square around each point."""
        column, row = points.clamp(-REACH + 0.01, REACH - 0.01).sub(0.02).floor().long().T + int(REACH)
        return column * 2 * int(REACH) + row

    size = (2 * int(REACH)) ** 2
    mass = torch.zeros(size).index_add_(0, cells(z), log_p.exp() * area) * count
    counts = torch.bincount(cells(samples), minlength=size).double()
    many = mass > 10
    statistic = ((counts - mass).square() / mass)[many].sum().item()
    freedom = int(many.sum())
    assert freedom > 10
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_shapes(prior, name):
    """log_prob takes any leading shape. A point alone has the same density."""
    model = prior(name, latent_dim=5)
    z = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    log_p = model.log_prob(z)
    assert log_p.shape == (4, 6)
    torch.testing.assert_close(log_p[2, 3], model.log_prob(z[2, 3]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_generator_decides_the_samples(prior, name):
    """Equal seeds give equal samples, for any state of the global generator. Another seed gives others."""
    model = prior(name)
    first = model.sample(7, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    assert torch.equal(first, model.sample(7, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, model.sample(7, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(prior, name):
    """log p(z) depends on every tensor of the prior, and on z."""
    model = prior(name, latent_dim=5)
    z = torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model.log_prob(z).sum().backward()
    assert z.grad.abs().max() > 0
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def test_a_prior_needs_a_density_and_samples():
    """Only the closed form of the KL divergence is optional."""
    assert all(issubclass(kind, Prior) for kind in PRIORS.values())
    with pytest.raises(NotImplementedError):
        Prior().log_prob(torch.zeros(1, 2))
    with pytest.raises(NotImplementedError):
        Prior().sample(1, torch.Generator())
    assert Prior().kl(torch.zeros(1, 2), torch.zeros(1, 2)) is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture", "flow"])
def test_no_closed_form(prior, name):
    """A prior without a closed form of the KL divergence returns None."""
    assert prior(name).kl(torch.zeros(1, 2), torch.zeros(1, 2)) is None


@torch.no_grad()
@pytest.mark.parametrize("latent_dim", [2, 3, 20])
def test_mixture_against_distributions(prior, latent_dim):
    """Multiplying out the squares gives the density of torch.distributions."""
    model = prior("mixture", latent_dim)
    components = Independent(Normal(model.mean, (0.5 * model.logvar).exp()), 1)
    reference = MixtureSameFamily(Categorical(logits=model.logits), components)
    z = torch.randn(50, latent_dim, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(model.log_prob(z), reference.log_prob(z), rtol=1e-11, atol=1e-11)


def test_mixture_far_away(prior):
    """The log-density and its gradient are exact even if the densities of all components underflow."""
    model = prior("mixture", 4).float()
    z = torch.full((1, 4), 300.0, dtype=torch.float32, requires_grad=True)
    model.log_prob(z).sum().backward()
    exact = torch.full((1, 4), 300.0, dtype=torch.float64, requires_grad=True)
    doubled = model.double()
    doubled.log_prob(exact).sum().backward()
    assert doubled.log_prob(exact).item() < -10000
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-4, atol=0)


@torch.no_grad()
def test_mixture_under_mixed_precision(prior):
    """Autocast does not round the differences of large numbers."""
    model = prior("mixture", 20).float()
    z = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.log_prob(z)
    assert torch.equal(mixed, model.log_prob(z))
    torch.testing.assert_close(model.log_prob(z).double(), model.double().log_prob(z.double()), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_mixture_samples_its_weights(prior):
    """Each component has its weight as its share of the samples, within 5 standard errors."""
    model, count = prior("mixture"), 20000
    model.mean.copy_(torch.arange(5.0)[:, None] * 100)
    samples = model.sample(count, torch.Generator().manual_seed(0))
    shares = torch.bincount((samples[:, 0] / 100).round().long(), minlength=5) / count
    weights = torch.softmax(model.logits, dim=0)
    assert weights.std() > 0.01
    assert ((shares - weights).abs() < 5 * (weights * (1 - weights) / count).sqrt()).all()


@pytest.mark.parametrize("couplings", [3, 4])
@pytest.mark.parametrize("latent_dim", [2, 3, 5])
def test_flow_against_the_jacobian(prior, latent_dim, couplings):
    """log p(z) = log p_base(f(z)) + log |det df/dz|, with the Jacobian of the inverse by autograd."""
    model = prior("flow", latent_dim, flow_couplings=couplings)
    points = torch.randn(6, latent_dim, generator=torch.Generator().manual_seed(8))
    for point in points:
        z = model.from_base(point)
        log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(model.from_base, point)).logabsdet
        assert abs(log_det) > 1e-3
        torch.testing.assert_close(model.log_prob(z), model.base.log_prob(point) - log_det, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("couplings", [3, 4])
@pytest.mark.parametrize("latent_dim", [2, 5])
def test_flow_is_invertible(prior, latent_dim, couplings):
    """z -> f(z) -> z returns to z, and f is not the identity."""
    model = prior("flow", latent_dim, flow_couplings=couplings)
    z = torch.randn(20, latent_dim, generator=torch.Generator().manual_seed(0))
    u, log_det = model.to_base(z)
    assert (u - z).abs().mean() > 0.1
    assert log_det.shape == (20,)
    torch.testing.assert_close(model.from_base(u), z, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_path(prior, name):
    """A path has both its ends. Its steps are equal in the space of z, or in the base of a flow."""
    model = prior(name, 4)
    start, end = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    points = path(model, start, end, 7)  # (7, 3, 4)
    torch.testing.assert_close(points[[0, -1]], torch.stack([start, end]), rtol=1e-10, atol=1e-10)
    steps = (model.to_base(points)[0] if name == "flow" else points).diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-9, atol=1e-9)
    if name == "flow":
        assert (points.diff(dim=0).diff(dim=0)).abs().max() > 1e-3


@torch.no_grad()
def test_flow_starts_as_its_mixture(vae):
    """The last layers start at zero, so every coupling is the identity. An even number of swaps cancels out."""
    model = vae(prior="flow", latent_dim=5).prior
    z = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.log_prob(z), model.base.log_prob(z), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_flow_under_mixed_precision(prior):
    """Autocast does not change a flow."""
    model = prior("flow", 20).float()
    z = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.log_prob(z)
    assert torch.equal(mixed, model.log_prob(z))


@torch.no_grad()
def test_flow_stays_finite(prior):
    """No scale overflows, even if the layers are large."""
    model = prior("flow", 4)
    for parameter in model.parameters():
        parameter.mul_(1e3)
    z = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    assert model.log_prob(z).isfinite().all()


@torch.no_grad()
def test_flow_maps_every_latent(prior):
    """The distribution of every latent differs from the standard normal base."""
    model = prior("flow", 5)
    for parameter in model.base.parameters():
        parameter.zero_()
    samples = model.sample(20000, torch.Generator().manual_seed(0))
    shift = samples.mean(dim=0).abs() + (samples.var(dim=0) - 1).abs()
    assert (shift > 0.02).all()  # standard errors of the mean and of the variance are about 0.01
