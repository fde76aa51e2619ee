"""Densities and bounds, compared with torch.distributions, closed forms and Monte Carlo estimates."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from vae import objective
from vae.idx import PIXELS

pytestmark = pytest.mark.usefixtures("float64")
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded standard normal numbers."""
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture
def binary():
    """Five binary images."""
    return torch.bernoulli(torch.full((5, PIXELS), 0.3), generator=generator(7))


def test_bernoulli_against_distributions():
    """log p(x|z) of binary pixels, summed over the last axis."""
    logits = normal(6, 20) * 5
    x = torch.bernoulli(torch.full((6, 20), 0.5), generator=generator())
    expected = Independent(Bernoulli(logits=logits), 1).log_prob(x)
    torch.testing.assert_close(objective.bernoulli_log_prob(x, logits), expected, **TIGHT)


def test_bernoulli_of_grey_is_minus_the_cross_entropy():
    """For grey x, tutorials call this the reconstruction loss."""
    logits, x = normal(6, 20) * 5, torch.rand(6, 20, generator=generator())
    expected = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=-1)
    torch.testing.assert_close(objective.bernoulli_log_prob(x, logits), expected, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_of_extreme_logits(dtype):
    """Logits of +-1e4 give 0 and a gradient of 0 if they are right, and -1e4 and a gradient of +-1 if not."""
    logits = torch.tensor([[1e4], [-1e4], [1e4], [-1e4]], dtype=dtype, requires_grad=True)
    x = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=dtype)
    log_p = objective.bernoulli_log_prob(x, logits)
    assert log_p.tolist() == [0, 0, -1e4, -1e4]
    log_p.sum().backward()
    assert logits.grad.flatten().tolist() == [0, 0, -1, 1]


def test_bernoulli_over_the_whole_range():
    """-log(1 + e^l) of black pixels has a relative error of at most 1e-14, even if e^l overflows."""
    logits = torch.cat([torch.linspace(-800, 800, 10001), torch.linspace(-1, 1, 1001)])[:, None].expand(-1, PIXELS)
    expected = -PIXELS * torch.logaddexp(logits[:, 0], torch.zeros(()))
    torch.testing.assert_close(
        objective.bernoulli_log_prob(torch.zeros(PIXELS), logits), expected, rtol=1e-14, atol=1e-12
    )


def test_bernoulli_does_not_change_its_arguments():
    """The arguments are not overwritten."""
    logits, x = normal(3, 4), torch.rand(3, 4, generator=generator())
    before = logits.clone(), x.clone()
    objective.bernoulli_log_prob(x, logits)
    assert torch.equal(logits, before[0])
    assert torch.equal(x, before[1])


def test_bernoulli_gradient():
    """The handwritten gradient is the derivative of the value, even if several samples share x."""
    x = torch.rand(3, 1, 7, generator=generator())
    logits = (normal(3, 4, 7) * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: objective.bernoulli_log_prob(x, logits), logits)


def test_bernoulli_of_bfloat16_logits():
    """Mixed precision rounds only the logits. The sum is float32, and the gradient has the type of the logits."""
    logits = (normal(3, PIXELS) * 3).bfloat16().requires_grad_()
    x = torch.rand(3, PIXELS, generator=generator()).float()
    log_p = objective.bernoulli_log_prob(x, logits)
    assert log_p.dtype == torch.float32
    expected = objective.bernoulli_log_prob(x.double(), logits.detach().double())
    torch.testing.assert_close(log_p.double(), expected, rtol=1e-5, atol=0)
    log_p.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_gaussian_against_distributions():
    """log N(z; mu, diag(e^logvar)), summed over latents, for any leading shape."""
    z, mu, logvar = (normal(4, 5, 3, seed=seed) * 2 for seed in range(3))
    expected = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(objective.gaussian_log_prob(z, mu, logvar), expected, **TIGHT)


def test_gaussian_gradient():
    """It is differentiable in z, mu and logvar."""
    arguments = [normal(2, 3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(objective.gaussian_log_prob, arguments)


def test_posterior_samples_have_their_moments():
    """The means, variances and correlations of the latents are right within 5 standard errors."""
    mu, logvar, count = torch.tensor([-3.0, 0.0, 2.0]), torch.tensor([-2.0, 0.0, 3.0]), 40000
    z = objective.sample_posterior(mu.expand(count, 3), logvar.expand(count, 3), generator())
    scaled = (z - mu) / (0.5 * logvar).exp()
    assert (scaled.mean(dim=0).abs() < 5 / math.sqrt(count)).all()
    assert ((scaled.var(dim=0) - 1).abs() < 5 * math.sqrt(2 / count)).all()
    correlation = torch.corrcoef(scaled.T) - torch.eye(3)
    assert (correlation.abs() < 5 / math.sqrt(count)).all()


def test_posterior_samples_carry_gradients():
    """dz/dmu = 1 and dz/dlogvar = (z - mu) / 2."""
    mu, logvar = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    z = objective.sample_posterior(mu, logvar, generator())
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(4, 3), **TIGHT)
    torch.testing.assert_close(logvar.grad, ((z - mu) / 2).detach(), **TIGHT)


def test_kl_against_distributions(vae):
    """KL(q(z|x) || N(0, I)) in closed form."""
    mu, logvar = normal(6, 3) * 2, normal(6, 3, seed=1) * 2
    q = Normal(mu, (0.5 * logvar).exp())
    expected = kl_divergence(q, Normal(torch.zeros(3), torch.ones(3))).sum(dim=-1)
    torch.testing.assert_close(vae().prior.kl(mu, logvar), expected, **TIGHT)


@torch.no_grad()
def test_elbo_terms_are_their_definitions(vae, binary, perturb):
    """distortion = -log p(x|z) at the sampled z, and rate = KL, both compared with torch.distributions."""
    model = perturb(vae())
    rate, distortion = objective.elbo_terms(model, binary, generator(1))
    mu, logvar = model.encode(binary)
    q = Normal(mu, (0.5 * logvar).exp())
    z = mu + q.stddev * torch.randn(5, 3, generator=generator(1))
    log_p_x = Bernoulli(logits=model.decode(z)).log_prob(binary).sum(dim=-1)
    torch.testing.assert_close(distortion, -log_p_x, rtol=1e-10, atol=0)
    torch.testing.assert_close(rate, kl_divergence(q, Normal(0.0, 1.0)).sum(dim=-1), rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_elbo_terms_without_a_closed_form(vae, binary, perturb, prior):
    """rate = log q(z|x) - log p(z) at the same z as the distortion."""
    model = perturb(vae(prior=prior))
    rate, _ = objective.elbo_terms(model, binary, generator(1))
    mu, logvar = model.encode(binary)
    z = mu + (0.5 * logvar).exp() * torch.randn(5, 3, generator=generator(1))
    log_q = Normal(mu, (0.5 * logvar).exp()).log_prob(z).sum(dim=-1)
    torch.testing.assert_close(rate, log_q - model.prior.log_prob(z), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_the_gradient_without_a_closed_form_has_the_same_mean(vae, binary, perturb, prior):
    """It lacks the gradient of log q(z|x) in mu and log variance, whose mean over q is zero."""
    model = perturb(vae(prior=prior))
    mu, logvar = (part.detach().requires_grad_() for part in model.encode(binary))
    model.encode.forward = lambda _: (mu, logvar)
    found, whole = [], []
    for seed in range(500):
        rate, distortion = objective.elbo_terms(model, binary, generator(seed))
        found.append(torch.cat(torch.autograd.grad((rate + distortion).sum(), (mu, logvar)), dim=1))
        z = objective.sample_posterior(mu, logvar, generator(seed))
        rate = objective.gaussian_log_prob(z, mu, logvar) - model.prior.log_prob(z)
        loss = rate - objective.bernoulli_log_prob(binary, model.decode(z))
        whole.append(torch.cat(torch.autograd.grad(loss.sum(), (mu, logvar)), dim=1))
    difference = torch.stack(found) - torch.stack(whole)
    assert (difference.std(dim=0) > 0).all()
    assert (difference.mean(dim=0).abs() < 5 * difference.std(dim=0) / math.sqrt(len(found))).all()


@torch.no_grad()
def test_closed_form_agrees_with_monte_carlo(vae, binary, perturb):
    """For each image, the mean of log q(z|x) - log p(z) is the closed form within 5 standard errors.
    The mean distortion of the same samples is the distortion of the ELBO."""
    model, count = perturb(vae()), 3000
    closed = model.prior.kl(*model.encode(binary))
    _, sampled, distortion = objective.log_weights(model, binary, model.encode(binary), count, generator())
    assert (sampled.std(dim=1) > 0.1).all()
    assert ((sampled.mean(dim=1) - closed).abs() < 5 * sampled.std(dim=1) / math.sqrt(count)).all()
    one = torch.stack([objective.elbo_terms(model, binary, generator(seed))[1] for seed in range(200)])
    error = (distortion.var(dim=1) / count + one.var(dim=0) / len(one)).sqrt()
    assert ((distortion.mean(dim=1) - one.mean(dim=0)).abs() < 5 * error).all()


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_log_weights_are_their_definition(vae, binary, perturb, prior, architecture):
    """log w = log p(x|z) + log p(z) - log q(z|x), for each sample z that is returned."""
    model = perturb(vae(prior=prior, architecture=architecture))
    sampled, rate, distortion = objective.log_weights(model, binary, model.encode(binary), 4, generator(2))
    assert rate.shape == distortion.shape == (5, 4)
    mu, logvar = (part[:, None] for part in model.encode(binary))
    z = mu + (0.5 * logvar).exp() * torch.randn(5, 4, 3, generator=generator(2))
    torch.testing.assert_close(sampled, z, **TIGHT)
    q = Normal(mu, (0.5 * logvar).exp())
    log_p_x = Bernoulli(logits=model.decode(z)).log_prob(binary[:, None]).sum(dim=-1)
    log_w = log_p_x + model.prior.log_prob(z) - q.log_prob(z).sum(dim=-1)
    torch.testing.assert_close(-(rate + distortion), log_w, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 2, 7, 50])
def test_a_decoder_of_zero_logits(vae, binary, samples):
    """With q = p and p(x|z) = 2^-784, every weight is 2^-784, so log p(x) = -784 ln 2 for every K."""
    model = vae()
    for layer in (model.encode.layers[-1], model.decode.layers[-1]):
        layer.weight.zero_()
        layer.bias.zero_()
    _, rate, distortion = objective.log_weights(model, binary, model.encode(binary), samples, generator())
    torch.testing.assert_close(-(rate + distortion), torch.full((5, samples), -784 * math.log(2)), rtol=1e-13, atol=0)
    rate, distortion = objective.elbo_terms(model, binary, generator())
    assert rate.tolist() == [0] * 5
    torch.testing.assert_close(distortion, torch.full((5,), 784 * math.log(2)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
@pytest.mark.parametrize("prior", ["standard-normal", "mixture", "flow"])
def test_every_parameter_gets_a_gradient(vae, binary, perturb, prior, architecture):
    """The loss reaches every tensor of encoder, decoder and prior."""
    model = perturb(vae(prior=prior, architecture=architecture))
    rate, distortion = objective.elbo_terms(model, binary, generator())
    (rate + distortion).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_of_the_loss_against_autograd(vae, binary, perturb):
    """The handwritten step of the backward pass gives every parameter the gradient of autograd. The density q(z|x) has
    no gradient in its parameters."""
    ours, theirs = perturb(vae(prior="flow")), perturb(vae(prior="flow"))
    rate, distortion = objective.elbo_terms(ours, binary, generator(3))
    (rate + distortion).mean().backward()

    mu, logvar = theirs.encode(binary)
    z = mu + (0.5 * logvar).exp() * torch.randn(mu.shape, generator=generator(3))
    log_p_x = Bernoulli(logits=theirs.decode(z)).log_prob(binary).sum(dim=-1)
    log_q = Normal(mu.detach(), (0.5 * logvar.detach()).exp()).log_prob(z).sum(dim=-1)
    (log_q - theirs.prior.log_prob(z) - log_p_x).mean().backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_prior_rate(vae, binary, perturb, prior):
    """It is the mean rate of the same samples, with the same gradient in the prior. The networks get no gradient."""
    model = perturb(vae(prior=prior))
    ours = objective.prior_rate(model, binary, 7, generator(3))
    theirs = objective.log_weights(model, binary, model.encode(binary), 7, generator(3))[1].mean(dim=1)
    torch.testing.assert_close(ours, theirs)
    parameters = list(model.prior.parameters())
    expected = torch.autograd.grad(theirs.sum(), parameters)
    ours.sum().backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected))
    assert all(p.grad is None for p in [*model.encode.parameters(), *model.decode.parameters()])


def importance_weighted_bound(model, x, samples: int, seed: int) -> torch.Tensor:
    """-log (1/K) sum_k w_k by its definition, summed over the images, with its whole gradient."""
    mu, logvar = (part[:, None].expand(-1, samples, -1) for part in model.encode(x))  # (B, K, D)
    z = objective.sample_posterior(mu, logvar, generator(seed))
    log_w = objective.bernoulli_log_prob(x[:, None], model.decode(z)) + model.prior.log_prob(z)
    log_w = log_w - objective.gaussian_log_prob(z, mu, logvar)
    return (math.log(samples) - torch.logsumexp(log_w, dim=1)).sum()


@pytest.mark.parametrize("prior", ["standard-normal", "mixture"])
def test_importance_weighted_loss_trains_decoder_and_prior_on_the_bound(vae, prior):
    """Their gradients equal the gradients of the bound on the same samples. The terms are the parts of the ELBO."""
    model, x = vae(prior=prior), (torch.rand(6, PIXELS, generator=generator()) < 0.3).double()
    loss, rate, distortion = objective.importance_weighted_loss(model, x, 5, 1.0, generator(3))
    loss.sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    importance_weighted_bound(model, x, 5, 3).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("encode"):
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-12)
    _, *terms = objective.log_weights(model, x, model.encode(x), 5, generator(3))
    torch.testing.assert_close(torch.stack([rate, distortion]), torch.stack(terms).mean(dim=-1))


def test_importance_weighted_loss_weighs_the_rate(vae, binary, perturb):
    """The loss is sum_k v_k t_k, with t_k = beta rate_k + distortion_k and v the softmax of -t."""
    model = perturb(vae(prior="mixture"))
    loss, _, _ = objective.importance_weighted_loss(model, binary, 5, 0.3, generator(3))
    _, rate, distortion = objective.log_weights(model, binary, model.encode(binary), 5, generator(3))
    terms = 0.3 * rate + distortion
    torch.testing.assert_close(loss, (torch.softmax(-terms, dim=1) * terms).sum(dim=1), rtol=1e-12, atol=0)


def test_importance_weighted_loss_trains_the_encoder_on_the_bound(vae):
    """The mean of its gradient over many draws is the gradient of the bound, within 4 standard errors.
    Its variance is smaller."""
    model, x = vae(), (torch.rand(2, PIXELS, generator=generator()) < 0.3).double()
    bias = list(model.encode.parameters())[-1]

    def gradients(loss) -> torch.Tensor:
        return torch.stack([torch.autograd.grad(loss(seed), bias)[0] for seed in range(400)])  # (draws, 2 D)

    ours = gradients(lambda seed: objective.importance_weighted_loss(model, x, 8, 1.0, generator(seed))[0].sum())
    plain = gradients(lambda seed: importance_weighted_bound(model, x, 8, seed))
    error = torch.sqrt((ours.var(dim=0) + plain.var(dim=0)) / len(ours))
    assert ((ours.mean(dim=0) - plain.mean(dim=0)).abs() < 4 * error).all()
    assert ours.var(dim=0).sum() < plain.var(dim=0).sum()
