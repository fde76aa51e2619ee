"""Log-densities and bounds, per image and in nats. Shapes: B images or samples, P pixels, D latents."""

import math
from typing import Any

import torch
from torch import Tensor

from vae.model import VAE
from vae.prior import LOG_2PI

Noise = torch.Generator | Tensor  # where standard normal numbers come from, or the numbers
GROUP = 16  # pixels whose sigmoids are multiplied before the logarithm is taken


class _BernoulliLogProb(torch.autograd.Function):
    """sum_p x l - log(1 + e^l), written as sum_p (x - 1/2) l - |l| / 2 + log sigmoid(|l|).
    The logarithm is the slowest pass on a CPU (`log1p` is ten times slower still). So it is taken of products of 16
    sigmoids, each in [1/2, 1]. The gradient in l is x - sigmoid(l): one backward pass instead of autograd's six."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, logits)
        values = logits.to(x.dtype, copy=True)  # (..., P), overwritten below
        linear = ((x - 0.5) * values).sum(dim=-1)
        size = values.abs_()
        linear -= 0.5 * size.sum(dim=-1)
        products = size.sigmoid_().unflatten(-1, (math.gcd(GROUP, size.shape[-1]), -1)).prod(dim=-2)  # (..., P / 16)
        return linear + products.log_().sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        x, logits = ctx.saved_tensors
        return None, (x - torch.sigmoid(logits.to(x.dtype))).mul_(grad[..., None]).to(logits.dtype)


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """log p(x|z) = sum over pixels of x l - log(1 + e^l). For grey x this is the negative cross-entropy.
    Shapes: x (B, P) in [0, 1], logits (B, P) -> (B,)."""
    return _BernoulliLogProb.apply(x, logits)


def gaussian_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, diag(e^logvar)), summed over the D latents. Shapes: (B, D) -> (B,)."""
    return -0.5 * (LOG_2PI + logvar + (z - mu).square() * torch.exp(-logvar)).sum(dim=-1)


def sample_posterior(mu: Tensor, logvar: Tensor, noise: Noise) -> Tensor:
    """z = mu + e^(logvar / 2) eps, the reparameterized sample of q(z|x) (Kingma & Welling 2014). (B, D) -> (B, D)."""
    if isinstance(noise, torch.Generator):
        noise = torch.randn(mu.shape, generator=noise, device=mu.device, dtype=mu.dtype)  # (B, D)
    return mu + torch.exp(0.5 * logvar) * noise


def elbo_terms(model: VAE, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """The two parts of ELBO(x) = -(rate + distortion) from one sample z ~ q(z|x) (Kingma & Welling 2014, eq. 3).
    rate = log q(z|x) - log p(z), distortion = -log p(x|z). If the prior is the standard normal, the rate is the closed
    form KL(q(z|x) || p(z)), which has the same mean and less noise.
    Shapes: x (B, P) -> (B,), (B,)."""
    mu, logvar = model.encode(x)  # (B, D), (B, D)
    z = sample_posterior(mu, logvar, noise)  # (B, D)
    distortion = -bernoulli_log_prob(x, model.decode(z))  # (B,)
    rate = model.prior.kl(mu, logvar)  # (B,), or None if there is no closed form
    if rate is None:
        rate = sampled_rate(model, z, mu, logvar)
    return rate, distortion


def sampled_rate(model: VAE, z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log q(z|x) - log p(z) of a sample z. The density q(z|x) has no gradient in its parameters, only in z: the rest of
    its gradient has the mean 0, and is noise (Roeder et al. 2017). Shapes: (..., D) -> (...)."""
    return gaussian_log_prob(z, mu.detach(), logvar.detach()) - model.prior.log_prob(z)


def importance_weighted_loss(
    model: VAE, x: Tensor, samples: int, beta: float, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss with the gradient of -log (1/K) sum_k w_k, doubly reparameterized (Tucker et al. 2019, eq. 8).
    Let v_k = w_k / sum_j w_j. The decoder and the prior get sum_k v_k d log w_k. The encoder gets, through z alone,
    sum_k v_k^2 d log w_k, so its noise does not grow with K. Here log w = -(beta * rate + distortion). The encoder gets
    the factor v_k^2 for any beta: this is its gradient if beta is 1, and a shorter step while beta rises.
    Returns the loss, and the mean rate and distortion of the same samples, which are the parts of the ELBO.
    Shapes: x (B, P) -> (B,), (B,), (B,)."""
    z, rate, distortion = log_weights(model, x, model.encode(x), samples, noise)
    log_w = -(beta * rate + distortion)
    share = torch.softmax(log_w.detach(), dim=1)  # (B, K)
    z.register_hook(lambda gradient: share[..., None] * gradient)
    return -(share * log_w).sum(dim=1), rate.mean(dim=1), distortion.mean(dim=1)


def prior_rate(model: VAE, x: Tensor, samples: int, noise: Noise) -> Tensor:
    """log q(z|x) - log p(z), the mean over K samples, with a gradient in the prior alone.
    Its optimum is the aggregate posterior E_x q(z|x) (Tomczak & Welling 2018, eq. 5).
    Shapes: x (B, P) -> (B,)."""
    with torch.no_grad():
        mu, logvar = (part[:, None].expand(-1, samples, -1) for part in model.encode(x))  # (B, K, D)
        z = sample_posterior(mu, logvar, noise)  # (B, K, D)
    return sampled_rate(model, z, mu, logvar).mean(dim=1)


def log_weights(
    model: VAE, x: Tensor, posterior: tuple[Tensor, Tensor], samples: int, noise: Noise
) -> tuple[Tensor, Tensor, Tensor]:
    """K samples z of each image, and the parts of log w = log p(x|z) + log p(z) - log q(z|x) (Burda et al. 2016).
    `posterior` is `model.encode(x)`, so that a caller that takes the samples in parts encodes the images once. The
    density q(z|x) has no gradient in its parameters, as the loss above demands.
    Returns z, rate and distortion, with log w = -(rate + distortion).
    Shapes: x (B, P), posterior (B, D), (B, D) -> (B, K, D), (B, K), (B, K)."""
    mu, logvar = (part[:, None].expand(-1, samples, -1) for part in posterior)  # (B, K, D)
    z = sample_posterior(mu, logvar, noise)  # (B, K, D)
    distortion = -bernoulli_log_prob(x[:, None], model.decode(z))  # (B, K)
    rate = sampled_rate(model, z, mu, logvar)  # (B, K)
    return z, rate, distortion
