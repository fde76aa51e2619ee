"""Priors p(z): the standard normal, and the learned ones. All give log-densities in nats and samples."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.params import Model

LOG_2PI = math.log(2 * math.pi)


def at_least_float32(x: Tensor) -> Tensor:
    """Leaves bfloat16 behind where autocast has been; float64 stays. Shapes: any -> the same."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StandardNormal(nn.Module):
    """p(z) = N(0, I)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim

    def log_prob(self, z: Tensor) -> Tensor:
        """Shapes: z (..., D) -> (...)."""
        return -0.5 * (z.square() + LOG_2PI).sum(dim=-1)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """KL(N(mu, e^logvar) || N(0, I)) (Kingma & Welling 2014, appendix B). Shapes: (B, D) -> (B,)."""
        return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(dim=-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns (count, D)."""
        return torch.randn(count, self.latent_dim, generator=generator, device=generator.device)


class Mixture(nn.Module):
    """p(z) = sum_c w_c N(z; m_c, diag(v_c)), a mixture of C Gaussians, all of it learned."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        shape = config.mixture_components, config.latent_dim
        self.mean = nn.Parameter(torch.randn(shape))  # (C, D), apart, or the components would stay alike
        self.logvar = nn.Parameter(torch.zeros(shape))  # (C, D)
        self.logits = nn.Parameter(torch.zeros(shape[0]))  # (C,)

    def log_prob(self, z: Tensor) -> Tensor:
        """The squares are multiplied out, so that all components cost two matrix products. (..., D) -> (...)."""
        with torch.autocast(z.device.type, enabled=False):  # differences of large numbers: not in bfloat16
            precision = torch.exp(-self.logvar)  # (C, D)
            constant = (self.logvar + self.mean.square() * precision + LOG_2PI).sum(dim=-1)  # (C,)
            square = z.square() @ precision.T - 2 * z @ (self.mean * precision).T  # (..., C)
            return torch.logsumexp(F.log_softmax(self.logits, dim=0) - 0.5 * (constant + square), dim=-1)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """None: a mixture has no closed form."""
        return None

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns (count, D)."""
        weights = torch.softmax(self.logits, dim=0)
        component = torch.multinomial(weights, count, replacement=True, generator=generator)  # (count,)
        eps = torch.randn(count, self.mean.shape[1], generator=generator, device=generator.device)
        return self.mean[component] + torch.exp(0.5 * self.logvar[component]) * eps


class Flow(nn.Module):
    """p(z) by a real-valued non-volume-preserving flow to N(0, I) (RealNVP, Dinh et al. 2017).

    Each coupling keeps the first D // 2 latents a and maps the others b to b e^s(a) + t(a); then the order of all
    is reversed, so that the next coupling maps what this one kept.
    """

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.kept = config.latent_dim // 2
        mapped, width = config.latent_dim - self.kept, config.flow_width
        self.couplings = nn.ModuleList(
            nn.Sequential(
                nn.Linear(self.kept, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * mapped)
            )
            for _ in range(config.flow_couplings)
        )
        for coupling in self.couplings:  # start at the identity: p(z) = N(0, I)
            for parameter in list(coupling.parameters())[-2:]:  # the last layer's weight and bias
                nn.init.zeros_(parameter)

    def _scale_shift(self, coupling: nn.Module, a: Tensor) -> tuple[Tensor, Tensor]:
        s, t = at_least_float32(coupling(a)).chunk(2, dim=-1)
        return 2 * torch.tanh(0.5 * s), t  # |s| < 2, or one coupling could overflow

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(f(z); 0, I) + sum of all s. Shapes: z (..., D) -> (...)."""
        log_det = torch.zeros(z.shape[:-1], device=z.device)
        for coupling in self.couplings:
            a, b = z[..., : self.kept], z[..., self.kept :]
            s, t = self._scale_shift(coupling, a)
            log_det = log_det + s.sum(dim=-1)
            z = torch.cat([a, b * s.exp() + t], dim=-1).flip(-1)
        return log_det - 0.5 * (z.square() + LOG_2PI).sum(dim=-1)

    def kl(self, mu: Tensor, logvar: Tensor) -> Tensor | None:
        """None: a flow has no closed form."""
        return None

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns (count, D)."""
        z = torch.randn(count, self.latent_dim, generator=generator, device=generator.device)
        for coupling in reversed(self.couplings):
            z = z.flip(-1)
            a, b = z[..., : self.kept], z[..., self.kept :]
            s, t = self._scale_shift(coupling, a)
            z = torch.cat([a, (b - t) * torch.exp(-s)], dim=-1)
        return z


Prior = StandardNormal | Mixture | Flow
PRIORS: dict[str, type[Prior]] = {"standard-normal": StandardNormal, "mixture": Mixture, "flow": Flow}
