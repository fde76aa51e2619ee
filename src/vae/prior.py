"""Priors p(z): the standard normal, and learned ones. Each has log-densities in nats and samples."""

import math
from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.layers import mlp
from vae.params import Model

LOG_2PI = math.log(2 * math.pi)
LN_2 = math.log(2)


class Prior(nn.Module):
    """A density p(z) with samples. Subclasses are built from the section `model` of params.yaml."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats. Shapes: z (..., D) -> (...)."""
        raise NotImplementedError

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns (count, D)."""
        raise NotImplementedError

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """KL(N(mu, e^logvar) || p) in closed form, or None if there is none. Shapes: (B, D) -> (B,)."""
        return None


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(dim=-1)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """The formula of Kingma & Welling 2014, appendix B."""
        return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.latent_dim, generator=generator, device=generator.device)


class Mixture(Prior):
    """p(z) = sum_c w_c N(z; m_c, diag(v_c)), a learned mixture of C Gaussians."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        shape = config.mixture_components, config.latent_dim
        # (C, D), random, because equal components would get equal gradients; `randn` on `meta` imports torch's compiler
        self.mean = nn.Parameter(torch.randn(shape, device="cpu"))
        self.logvar = nn.Parameter(torch.zeros(shape))  # (C, D)
        self.logits = nn.Parameter(torch.zeros(shape[0]))  # (C,)

    def log_prob(self, z: Tensor) -> Tensor:
        """The squares are multiplied out, so that all components take one matrix product. (..., D) -> (...).
        Computed in bits: for distant components 2^x underflows at full speed, and torch's e^x at a tenth of it."""
        with torch.autocast(z.device.type, enabled=False):  # differences of large numbers: not in bfloat16
            precision = torch.exp(-self.logvar)  # (C, D)
            constant = -0.5 * (self.logvar + self.mean.square() * precision + LOG_2PI).sum(dim=-1)  # (C,)
            constant = constant + F.log_softmax(self.logits, dim=0)
            weight = torch.cat([self.mean * precision, -0.5 * precision], dim=-1)  # (C, 2D)
            joint = F.linear(torch.cat([z, z.square()], dim=-1), weight / LN_2, constant / LN_2)  # (..., C), in bits
            most = joint.amax(dim=-1, keepdim=True).detach()
            return LN_2 * (most[..., 0] + torch.log2(torch.exp2(joint - most).sum(dim=-1)))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        weights = torch.softmax(self.logits, dim=0)
        component = torch.multinomial(weights, count, replacement=True, generator=generator)  # (count,)
        eps = torch.randn(count, self.mean.shape[1], generator=generator, device=generator.device)
        return self.mean[component] + torch.exp(0.5 * self.logvar[component]) * eps


class Flow(Prior):
    """p(z) by a real-valued non-volume-preserving flow (RealNVP, Dinh et al. 2017) to a mixture of Gaussians.
    Each coupling maps two halves a, b of the latents to (b e^s(a) + t(a), a), and the next one maps the other half.
    A mixture of one component is a Gaussian."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.halves = config.latent_dim // 2, config.latent_dim - config.latent_dim // 2
        self.couplings = nn.ModuleList(
            mlp([kept, *config.flow_hidden, 2 * mapped])
            for kept, mapped in islice(cycle([self.halves, self.halves[::-1]]), config.flow_couplings)
        )
        for coupling in self.couplings:  # start at the identity
            for parameter in list(coupling.parameters())[-2:]:  # the last layer's weight and bias
                nn.init.zeros_(parameter)
        self.base = Mixture(config)

    def _scale_shift(self, coupling: nn.Module, a: Tensor) -> tuple[Tensor, Tensor]:
        s, t = coupling(a).chunk(2, dim=-1)
        return 2 * torch.tanh(0.5 * s), t  # |s| < 2, or one coupling could overflow

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z), in the space of the mixture, and log |det df/dz|, the sum of all s. (..., D) -> (..., D), (...)."""
        log_det = torch.zeros(z.shape[:-1], device=z.device)
        a, b = z.split(self.halves, dim=-1)
        for coupling in self.couplings:
            s, t = self._scale_shift(coupling, a)
            log_det = log_det + s.sum(dim=-1)
            a, b = torch.addcmul(t, b, s.exp()), a
        return torch.cat([a, b], dim=-1), log_det

    def from_base(self, u: Tensor) -> Tensor:
        """The z with f(z) = u. (..., D) -> (..., D)."""
        halves = self.halves if len(self.couplings) % 2 == 0 else self.halves[::-1]
        a, b = u.split(halves, dim=-1)
        for coupling in reversed(self.couplings):
            s, t = self._scale_shift(coupling, b)
            a, b = b, (a - t) * torch.exp(-s)
        return torch.cat([a, b], dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p_base(f(z)) + log |det df/dz|."""
        with torch.autocast(z.device.type, enabled=False):  # its products are so small that casts would take longer
            u, log_det = self.to_base(z)
            return log_det + self.base.log_prob(u)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        return self.from_base(self.base.sample(count, generator))


PRIORS: dict[str, Callable[[Model], Prior]] = {"standard-normal": StandardNormal, "mixture": Mixture, "flow": Flow}


def path(prior: Prior, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Points on a line from `start` to `end`, both included. A flow draws the line in the space of its mixture.
    There it passes through likelier latents than a straight line in the space of z, so its middle is more often a
    digit and less often a blend of two. Shapes: (..., D), (..., D) -> (steps, ..., D)."""
    weights = torch.linspace(0, 1, steps, device=start.device).view(-1, *[1] * start.ndim)
    if not isinstance(prior, Flow):
        return torch.lerp(start, end, weights)
    return prior.from_base(torch.lerp(prior.to_base(start)[0], prior.to_base(end)[0], weights))
