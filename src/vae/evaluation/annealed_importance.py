"""Annealed importance sampling: bounds on log p(x) from both sides, to check the importance-weighted bound.

Chains go through f_t(z) = q(z|x)^(1-t) p(x, z)^t from t = 0 to 1 (Neal 2001; Wu et al. 2017) by Hamiltonian Monte
Carlo, and back on images that the model made, whose z is an exact sample of p(z|x) (bidirectional Monte Carlo, Grosse
et al. 2015). Shapes: B images, C chains of each, P pixels, D latents. Nothing is computed in less than float32."""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vae import objective, streams
from vae.evaluation import metrics
from vae.model import VAE
from vae.params import Annealing

MORE = "raise annealing.temperatures or annealing.chains, or lower annealing.step_size"
CHUNK = 512  # chains at a time, so that their activations fit into a cache


class Point(NamedTuple):
    """The state of the chains, z = mu + sigma eps, with the densities there."""

    eps: Tensor  # (B, C, D)
    log_joint: Tensor  # (B, C), log p(x, z)
    log_q: Tensor  # (B, C), log q(z|x)
    slope: Tensor  # (B, C, D), the gradient of log p(x, z) in eps

    def log_f(self, t: float) -> Tensor:
        """log f_t = (1 - t) log q(z|x) + t log p(x, z). (B, C)."""
        return (1 - t) * self.log_q + t * self.log_joint

    def force(self, t: float) -> Tensor:
        """The gradient of log f_t in eps, where the gradient of log q is -eps. (B, C, D)."""
        return t * self.slope - (1 - t) * self.eps


class Path:
    """The densities of a VAE's latents on binary images (B, P), between q(z|x) = N(mu, diag(e^logvar)) and p(x, z), in
    the coordinates eps where q is N(0, I). There one step size suits all latents and all images, if q resembles the
    posterior."""

    def __init__(self, model: VAE, x: Tensor) -> None:
        self.model = model
        self.x = x[:, None]  # (B, 1, P)
        with torch.no_grad():
            self.mu, self.logvar = (part[:, None] for part in model.encode(x))  # (B, 1, D) each

    @torch.enable_grad()
    def at(self, eps: Tensor) -> Point:
        """Shapes: (B, C, D)."""
        eps = eps.detach().requires_grad_()
        z = self.mu + torch.exp(0.5 * self.logvar) * eps
        log_joint = objective.bernoulli_log_prob(self.x, self.model.decode(z)) + self.model.prior.log_prob(z)  # (B, C)
        (slope,) = torch.autograd.grad(log_joint.sum(), eps)
        z, eps = z.detach(), eps.detach()
        return Point(eps, log_joint.detach(), objective.gaussian_log_prob(z, self.mu, self.logvar), slope)

    def coordinates(self, z: Tensor) -> Tensor:
        """eps of z. Shapes: (B, C, D)."""
        return (z - self.mu) * torch.exp(-0.5 * self.logvar)


def leapfrog(path: Path, point: Point, momentum: Tensor, t: float, config: Annealing) -> tuple[Point, Tensor]:
    """Hamiltonian dynamics of -log f_t with unit masses: reversible and volume-preserving (Neal 2011, section 2.3)."""
    for _ in range(config.leapfrog_steps):
        momentum = momentum + 0.5 * config.step_size * point.force(t)
        point = path.at(point.eps + config.step_size * momentum)
        momentum = momentum + 0.5 * config.step_size * point.force(t)
    return point, momentum


def transition(path: Path, point: Point, t: float, config: Annealing, generator: torch.Generator) -> Point:
    """One step of Hamiltonian Monte Carlo, which leaves f_t invariant (Duane et al. 1987)."""
    start = torch.randn(point.eps.shape, generator=generator, device=point.eps.device, dtype=point.eps.dtype)
    proposal, end = leapfrog(path, point, start, t, config)
    gain = proposal.log_f(t) - point.log_f(t) - 0.5 * (end.square() - start.square()).sum(dim=-1)  # (B, C)
    threshold = torch.rand(gain.shape, generator=generator, device=gain.device, dtype=gain.dtype).log()
    accepted = threshold < gain  # False if the dynamics have diverged to NaN
    masks = accepted[..., None], accepted, accepted, accepted[..., None]  # for the shapes of a point
    return Point(*map(torch.where, masks, proposal, point))


def anneal(path: Path, z: Tensor, schedule: list[float], config: Annealing, generator: torch.Generator) -> Tensor:
    """log w of chains that start as exact samples of the schedule's first density (Neal 2001).
    From t = 0 to 1, E[w] = p(x); from 1 to 0, with z a sample of p(z|x), E[w] = 1 / p(x).
    Shapes: z (B, C, D) -> (B, C), in nats, float64."""
    point = path.at(path.coordinates(z))
    log_w = torch.zeros(z.shape[:-1], dtype=torch.float64, device=z.device)
    for before, after in pairwise(schedule):
        log_w += (after - before) * (point.log_joint - point.log_q)
        if after != schedule[-1]:
            point = transition(path, point, after, config, generator)
    return log_w


def schedule(temperatures: int) -> list[float]:
    """Equal steps of t from 0 to 1."""
    return torch.linspace(0, 1, temperatures, dtype=torch.float64).tolist()


def bound(model: VAE, x: Tensor, config: Annealing, generator: torch.Generator, exact: Tensor | None = None) -> Tensor:
    """A bound on -log p(x) for each image, in expectation over its chains, with a progress bar.
    Chains from samples of q(z|x) give an upper bound. Chains back from `exact`, one sample of p(z|x) for each image,
    give a lower bound. Shapes: x (N, P), exact (N, D) -> (N,)."""
    size, shape = max(1, CHUNK // config.chains), (-1, config.chains, -1)
    steps = schedule(config.temperatures)[:: 1 if exact is None else -1]
    parts = []
    for start in tqdm(range(0, len(x), size), desc="annealing", disable=None, leave=False):
        path = Path(model, x[start : start + size])
        if exact is None:
            z = objective.sample_posterior(path.mu.expand(shape), path.logvar.expand(shape), generator)  # (B, C, D)
        else:
            z = exact[start : start + size, None].expand(shape)  # (B, C, D)
        log_w = anneal(path, z, steps, config, generator)  # (B, C)
        nll = math.log(config.chains) - torch.logsumexp(log_w, dim=1)  # the mean weight is p(x), or back 1 / p(x)
        parts.append(nll if exact is None else -nll)
    return torch.cat(parts)


@torch.no_grad()
def simulate(model: VAE, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws z ~ p(z) and x ~ p(x|z), so that z is also an exact sample of p(z|x). Returns x (N, P), z (N, D)."""
    z = model.prior.sample(count, generator)
    return torch.bernoulli(model.means(z), generator=generator), z


def doubt(values: dict[str, Any]) -> str | None:
    """Why the figures of metrics/annealing.json cannot be right, with the way out. None if nothing is wrong.
    Beyond their joint error, the annealed bound must not be above an importance-weighted bound, and the bounds from
    both sides must not cross."""
    rows = values["importance_weighted"]
    listed = [(name, value) for part in (values, *rows) for name, value in part.items() if isinstance(value, float)]
    if wrong := [name for name, value in listed if not math.isfinite(value)]:
        return f"{wrong[0]} is not finite; lower annealing.step_size"
    limit, gap = -metrics.ERRORS, values["simulated_gap_nats"]
    for row in rows:
        if row["iw_minus_ais_nats"] < limit * row["iw_minus_ais_nats_stderr"] - metrics.ROUNDING_NATS:
            weighted = f"the bound with K={row['importance_samples']}, {row['nll_iw_nats']:.2f},"
            return f"{weighted} is below the annealed one, {values['nll_ais_nats']:.2f}, which is tighter; {MORE}"
    if gap < limit * values["simulated_gap_nats_stderr"] - metrics.ROUNDING_NATS:
        return f"on images that the model made, the upper bound is {-gap:.2f} below the lower bound; {MORE}"
    return None


def evaluate(model: VAE, x: Tensor, config: Annealing) -> dict[str, Any]:
    """All of metrics/annealing.json: means over images, in nats, with one standard error.
    Each of `annealing.importance_samples` is measured on the binary test images x (N, P)."""
    generator = streams.stream(config.seed, "annealing", x.device)
    annealed = bound(model, x, config, generator)  # (N,)
    weighted: list[dict[str, float]] = []
    for samples in config.importance_samples:
        found = metrics.over_images(model, x, samples, generator, f"importance-weighted bound, K={samples}")
        values = {
            "nll_iw_nats": found.nll,
            "iw_minus_ais_nats": found.nll - annealed,  # image by image, because most of the noise is common
            "effective_sample_size": found.effective_sample_size,
        }
        weighted.append({"importance_samples": samples} | metrics.means(values))
    made, z = simulate(model, config.images, generator)
    upper, lower = bound(model, made, config, generator), bound(model, made, config, generator, exact=z)
    values = {
        "nll_ais_nats": annealed,
        "simulated_upper_nats": upper,
        "simulated_lower_nats": lower,
        "simulated_gap_nats": upper - lower,
    }
    settings = config.model_dump(exclude={"seed", "importance_samples"})
    return metrics.means(values) | {"importance_weighted": weighted} | settings
