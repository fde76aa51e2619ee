"""Fixtures: the committed params.yaml with small models, a bundled data set, and float64."""

from vae.runtime import command, mirrors

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from vae import data, objective, params
from vae.evaluation import leaderboard
from vae.model import VAE
from vae.prior import StandardNormal

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # an interrupt of the tests is pytest's
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.set_wakeup_fd(-1)
command.ask_local_servers_directly()  # also if the user has a proxy, tests reach the servers that they start
# The user's settings of git change no test. A hook of git, or a shell, may have set variables that lead git elsewhere.
for name in [name for name in os.environ if name.startswith(("GIT_", "TORCHRUN"))]:
    del os.environ[name]
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_COUNT": "1"}
os.environ |= {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}  # the files may be of another owner

ROOT = Path(__file__).parents[1]
SMALL = {
    "model": {
        "architecture": "mlp",
        "encoder": [16],
        "decoder": [16],
        "channels": [2, 3],
        "blocks": 1,
        "latent_dim": 3,
        "prior": "standard-normal",
        "mixture_components": 5,
        "flow_couplings": 4,
        "flow_hidden": [8],
    },
    "train": {
        "seed": 0,
        "initial_bias": "default",
        "epochs": 3,
        "prior_epochs": 0,
        "importance_epochs": 1000.0,
        "refine_epochs": 0,
        "batch_size": 64,
        "learning_rate": 0.005,
        "schedule": "cosine",
        "warmup_steps": 3,
        "kl_warmup_epochs": 1.0,
        "gradient_clip": 0.0,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    },
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def small() -> Callable[..., params.Params]:
    """params.yaml with a small model. Arguments change fields of its sections: `small(train={"seed": 1})`."""
    published = params.load(ROOT / "params.yaml")

    def make(**sections: dict) -> params.Params:
        update = {
            name: getattr(published, name).model_copy(update=SMALL.get(name, {}) | sections.get(name, {}))
            for name in SMALL | sections
        }
        return published.model_copy(update=update)

    return make


@pytest.fixture
def vae(small) -> Callable[..., VAE]:
    """Makes a small model in evaluation mode, from a seed and changed fields of its section."""

    def make(seed: int = 0, **fields: object) -> VAE:
        torch.manual_seed(seed)
        return VAE(small(model=fields).model).eval()

    return make


@pytest.fixture
def perturb() -> Callable[..., torch.nn.Module]:
    """Adds noise to every parameter, because initial zeros and ones hide mistakes."""

    def move(module: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)
        return module

    return move


@pytest.fixture
def float64() -> Iterator[None]:
    """Makes float64 the default dtype of models, samples and constants."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def plane(vae, perturb) -> Callable[[str], VAE]:
    """Makes a float64 model with two latents. Its posterior covers many points of the grid of `integral`."""

    def make(prior: str) -> VAE:
        model = perturb(vae(prior=prior, latent_dim=2, encoder=[8], decoder=[8]), scale=0.05)
        with torch.no_grad():
            model.encode.layers[-1].weight.mul_(0.3)
            model.encode.layers[-1].bias[2:] = torch.tensor([0.2, -0.3])
        return model.double()

    return make


@pytest.fixture
def log_likelihood() -> Callable[[VAE, torch.Tensor], torch.Tensor]:
    """log p(x) of a model that `plane` made, as the log of the integral of p(x|z) p(z): (B, P) -> (B,)."""
    return integral


def integral(model: VAE, x: torch.Tensor) -> torch.Tensor:
    """The midpoint rule on a square of 16 units, with 15 points in each unit."""
    line = (torch.arange(240) + 0.5) / 15 - 8
    z = torch.cartesian_prod(line, line)
    parts = []
    for part in z.split(8000):
        logits = model.decode(part)
        log_p_x = logits @ x.T - torch.logaddexp(logits, torch.zeros(())).sum(dim=1, keepdim=True)  # (Z, B)
        parts.append(torch.logsumexp(log_p_x + model.prior.log_prob(part)[:, None], dim=0))
    return torch.logsumexp(torch.stack(parts), dim=0) - math.log(15**2)


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z + b, s^2 I) with q(z|x) Gaussian (probabilistic PCA, Tipping & Bishop 1999).

    The columns of W are orthogonal, so the posterior is N(m(x), diag(v)), which an encoder can express. q has the mean
    m + shift sqrt(v) and the deviation stretch sqrt(v). `log_p_x` is log p(x) of the images `x` in closed form.
    """

    def __init__(self, shift: float, stretch: float) -> None:
        pixels, latent_dim, images, self.deviation = 12, 4, 5, 0.6
        generator = torch.Generator().manual_seed(3)
        directions = torch.linalg.qr(torch.randn(pixels, latent_dim, generator=generator)).Q
        self.weight = directions * torch.linspace(0.5, 2, latent_dim)  # (P, D)
        self.bias = torch.randn(pixels, generator=generator)
        self.shift, self.stretch = shift, stretch
        self.prior = StandardNormal(params.load(ROOT / "params.yaml").model.model_copy(update={"latent_dim": 4}))
        covariance = self.weight @ self.weight.T + self.deviation**2 * torch.eye(pixels)
        marginal = MultivariateNormal(self.bias, covariance)
        self.x = self.bias + torch.randn(images, pixels, generator=generator) @ torch.linalg.cholesky(covariance).T
        self.log_p_x = marginal.log_prob(self.x)

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of p(z|x). (B, P) -> (B, D), (D,)."""
        variance = 1 / (1 + self.weight.square().sum(dim=0) / self.deviation**2)
        return (x - self.bias) @ self.weight * variance / self.deviation**2, variance

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mu and logvar of q(z|x). (B, P) -> (B, D), (B, D)."""
        mean, variance = self.posterior(x)
        return mean + self.shift * variance.sqrt(), (self.stretch**2 * variance).log().expand_as(mean)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """The means of the pixels. (..., D) -> (..., P)."""
        return z @ self.weight.T + self.bias

    def log_prob(self, x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """log p(x|z). (..., P), (..., P) -> (...)."""
        return Normal(means, self.deviation, validate_args=False).log_prob(x).sum(dim=-1)


@pytest.fixture
def linear_gaussian(monkeypatch, float64) -> Callable[..., LinearGaussian]:
    """Makes a linear-Gaussian model, and replaces the Bernoulli likelihood in the objective by its likelihood."""

    def make(shift: float = 0.0, stretch: float = 1.0) -> LinearGaussian:
        model = LinearGaussian(shift, stretch)
        monkeypatch.setattr(objective, "bernoulli_log_prob", model.log_prob)
        return model

    return make


@pytest.fixture
def evaluation() -> dict[str, float | str]:
    """Figures of metrics/evaluation.json."""
    return {
        "neg_elbo_nats": 90.126,
        "neg_elbo_nats_stderr": 0.25,
        "fitted_neg_elbo_nats": 89.5,
        "nll_iw_nats": 85.0,
        "nll_iw_nats_stderr": 0.21,
        "importance_samples": 50,
        "rate_nats": 25.0,
        "distortion_nats": 65.126,
        "neg_elbo_grey_nats": 91.5,
        "active_units": 20,
        "test_images": 10000,
        "binarization_sha256": "0",
    }


@pytest.fixture
def quality() -> dict[str, float]:
    """Figures of metrics/quality.json."""
    return {
        "frechet_binary": 8.13,
        "frechet_binary_stderr": 0.24,
        "precision_binary": 0.817,
        "recall_binary": 0.83,
        "frechet_binary_train": 1.06,
        "precision_binary_train": 0.855,
        "recall_binary_train": 0.878,
        "frechet_grey": 1.0,
    }


@pytest.fixture
def row(evaluation, quality, small) -> Callable[..., leaderboard.Row]:
    """Makes a row of the leaderboard from a recipe, a seed and changed figures."""

    def make(recipe: str, seed: int = 0, **changes: float | str) -> leaderboard.Row:
        config = small(train={"seed": seed})
        return leaderboard.row(recipe, config, 1234567, 90.0, evaluation | changes, quality)

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, because the order of sums depends on the number of threads, and the last bit on the order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The bundled digits as four IDX files."""
    folder = tmp_path_factory.mktemp("digits")
    mirrors.download("digits", folder, {})
    return folder


@pytest.fixture(scope="session")
def digits(digits_folder) -> data.Split:
    """The training split of the bundled digits."""
    return data.load(digits_folder, "train")
