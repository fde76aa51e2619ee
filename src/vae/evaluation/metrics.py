"""The numbers of metrics/evaluation.json: means over a data set, with standard errors.
Images and samples are decoded in chunks, so that memory hardly grows with either."""

import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vae import data, objective
from vae.idx import PIXELS
from vae.model import VAE
from vae.params import Evaluate
from vae.streams import binarization, stream

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2
ERRORS = 3  # standard errors: a figure that is further on the wrong side of its limit is no accident
ROUNDING_NATS = 1e-3  # of sums in float32
CURVE = ("importance_samples", "nll_iw_nats", "lower_nats", "upper_nats")  # one standard error below and above
LEAST_EFFECTIVE = 1.01  # importance samples
CHUNK = 2048  # images decoded at a time: 6 MB of float32 pixels


def means(values: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each tensor (N,) of one value per image, then all standard errors as `<name>_stderr`."""
    doubles = {name: value.double() for name, value in values.items()}
    return {name: value.mean().item() for name, value in doubles.items()} | {
        f"{name}_stderr": value.std().item() / math.sqrt(len(value)) for name, value in doubles.items()
    }


def marks(samples: int) -> list[int]:
    """The numbers of samples for which the bound is kept: 1, 2, 5, 10, 20, ... and `samples`."""
    steps = (step * 10**power for power in range(len(str(samples))) for step in (1, 2, 5))
    return [*(step for step in steps if step < samples), samples]


class Bounds(NamedTuple):
    """Estimates for each image from K samples, float64. In nats, except the effective sample size. (B,) each."""

    rate: Tensor
    distortion: Tensor
    nll: Tensor
    effective_sample_size: Tensor
    curve: Tensor  # nll from the first samples, for each of `marks(K)`. (B, M)


@torch.no_grad()
def bounds(model: VAE, x: Tensor, samples: int, generator: torch.Generator) -> Bounds:
    """Rate, distortion and the importance-weighted bound of each image, from the same K samples.
    nll = -(logsumexp_k log w_k - log K) (Burda et al. 2016, eq. 8). The effective sample size is
    (sum_k w_k)^2 / sum_k w_k^2: K for equal weights, 1 if one outweighs the rest (Kong 1992). The samples of an image
    come in chunks, and two numbers of each are kept.
    Shapes: x (B, P) -> (B,) each, and the curve (B, M)."""
    encoded, size = model.encode(x), max(1, CHUNK // len(x))
    counts = [min(size, samples - start) for start in range(0, samples, size)]
    chunks = [objective.log_weights(model, x, encoded, count, generator)[1:] for count in counts]
    rate, distortion = (torch.cat(parts, dim=1).double() for parts in zip(*chunks, strict=True))  # (B, K) each
    log_w = -(rate + distortion)
    nll = [math.log(mark) - torch.logsumexp(log_w[:, :mark], dim=1) for mark in marks(samples)]  # (B,) each
    effective = torch.exp(2 * torch.logsumexp(log_w, dim=1) - torch.logsumexp(2 * log_w, dim=1))
    return Bounds(rate.mean(dim=1), distortion.mean(dim=1), nll[-1], effective, torch.stack(nll, dim=1))


def over_images(model: VAE, images: Tensor, samples: int, generator: torch.Generator, label: str) -> Bounds:
    """`bounds` for all images, (N,) each, with a progress bar."""
    size = max(1, min(len(images), CHUNK // min(samples, 64)))
    batches = tqdm(images.split(size), desc=label, disable=None, leave=False)
    parts = [bounds(model, batch, samples, generator) for batch in batches]
    return Bounds(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def posterior(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """mu and logvar of q(z|x) for all images. Shapes: (N, P) -> (N, D), (N, D)."""
    parts = [model.encode(batch) for batch in x.split(CHUNK)]
    mu, logvar = (torch.cat(part) for part in zip(*parts, strict=True))
    return mu, logvar


def active_units(mu: Tensor) -> int:
    """The latents with Var_x(E_q[z]) > 0.01 (Burda et al. 2016). Shapes: mu (N, D)."""
    return int((mu.double().var(dim=0) > ACTIVE_VARIANCE).sum())


def latent_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """E_x KL(q(z_d|x) || N(m_d, v_d)) of each latent, with m_d and v_d the moments of the aggregate posterior.
    This is 0.5 (log v_d - E_x logvar_d): the nats in each latent on its own, which needs no prior. Latents overlap, so
    the sum exceeds the rate. Shapes: (N, D), (N, D) -> (D,)."""
    mu, logvar = mu.double(), logvar.double()
    aggregate = mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)  # (D,)
    return 0.5 * (aggregate.log() - logvar.mean(dim=0))


@torch.no_grad()
def traversals(model: VAE, mu: Tensor, latents: Tensor, steps: int) -> Tensor:
    """Images along single latents, from -3 to 3 deviations of `mu` on both sides of the first image.
    Shapes: mu (N, D), latents (L,) indices -> (L, steps, P)."""
    offsets = torch.zeros(len(latents), steps, mu.shape[1], device=mu.device)  # (L, steps, D)
    for row, latent in enumerate(latents):
        offsets[row, :, latent] = torch.linspace(-3, 3, steps, device=mu.device) * mu[:, latent].std()
    return model.means(mu[0] + offsets)


def doubt(values: dict[str, Any]) -> str | None:
    """Why the figures of an evaluation cannot be right, or say nothing, with the way out. None if nothing is wrong."""
    retrain = "train longer, or lower train.learning_rate or train.muon_learning_rate"
    samples, elbo, bound = (values[name] for name in ("importance_samples", "neg_elbo_nats", "nll_iw_nats"))
    errors = [name for name in values if name.endswith("_stderr") and (samples > 1 or not name.startswith("effective"))]
    if wrong := [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]:
        return f"{wrong[0]} is {values[wrong[0]]}; {retrain}, or take more test images than {values['test_images']}"
    if same := [name for name in errors if values[name] == 0]:
        return f"{same[0]} is 0, so all test images have one score; check that they differ"
    if (rate := values["rate_nats"]) < -ERRORS * values["rate_nats_stderr"]:
        return f"the mean rate is {rate:.2f} nats, and it cannot be negative; {retrain}, or change evaluate.seed"
    if bound > elbo + ROUNDING_NATS:
        return f"the importance-weighted bound, {bound:.3f}, is above the neg-ELBO, {elbo:.3f}; use precision fp32"
    if values["active_units"] == 0:
        return f"no latent is active, so the model decodes all images alike; {retrain}"
    if samples > 1 and (size := values["effective_sample_size"]) < LEAST_EFFECTIVE:
        return f"of {samples} importance samples only {size:.2f} count, so the bound is mostly noise; {retrain}"
    return None


def evaluate(
    model: VAE, grey: Tensor, train: Tensor, config: Evaluate
) -> tuple[dict[str, Any], list[tuple[float, float, float, float]]]:
    """All of metrics/evaluation.json and plots/bound.csv: means over the images of the test split, in nats.

    The binarization is drawn once, from the seed alone, so that every model is scored on the same binary images. ELBO,
    rate and distortion are means over the samples of the importance-weighted bound. Training images show overfitting.
    Shapes: grey (N, P) uint8, train (M, P) uint8."""
    seed, samples, where = config.seed, config.importance_samples, grey.device
    x = data.binarize(grey.cpu(), binarization(seed)).to(where)  # (N, P), the same pixels on every device
    noise = stream(seed, "test posterior", where)
    binary = over_images(model, x, samples, noise, f"importance-weighted bound, K={samples}")
    noise = stream(seed, "grey posterior", where)
    score = over_images(model, data.unit(grey), config.grey_samples, noise, "grey values")
    seen, noise = data.binarize(train, stream(seed, "fitted pixels", where)), stream(seed, "fitted posterior", where)
    fitted = over_images(model, seen, 1, noise, "training images")
    mu, _ = posterior(model, x)
    values = means(
        {
            "neg_elbo_nats": binary.rate + binary.distortion,
            "fitted_neg_elbo_nats": fitted.rate + fitted.distortion,
            "nll_iw_nats": binary.nll,
            "rate_nats": binary.rate,
            "distortion_nats": binary.distortion,
            "neg_elbo_grey_nats": score.rate + score.distortion,
            "effective_sample_size": binary.effective_sample_size,
        }
    )
    packed = x.bool().cpu().numpy().tobytes()
    points = [(count, *means({"nll": nll}).values()) for count, nll in zip(marks(samples), binary.curve.T, strict=True)]
    curve = [(count, nll, nll - error, nll + error) for count, nll, error in points]
    figures: dict[str, Any] = {
        **values,
        "importance_samples": samples,
        "active_units": active_units(mu),
        "bits_per_dim": values["nll_iw_nats"] / (PIXELS * math.log(2)),
        "test_images": len(x),
        "binarization_sha256": hashlib.sha256(packed).hexdigest(),
    }
    return figures, curve
