"""Fixtures: the repository's own params.yaml with small models, a bundled data set, and float64."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vae import data, mirrors, params
from vae.model import VAE

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
        "flow_width": 8,
    },
    "train": {
        "seed": 0,
        "initial_bias": "default",
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 0.005,
        "schedule": "cosine",
        "warmup_steps": 3,
        "kl_warmup_epochs": 1.0,
        "gradient_clip": 0.0,
        "ema_decay": 0.0,
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
    """params.yaml with a small model, and with the fields of sections that are given: `small(train={"seed": 1})`."""
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
    """A small model in evaluation mode, from a seed and the fields of its section that are given."""

    def make(seed: int = 0, **fields: object) -> VAE:
        torch.manual_seed(seed)
        return VAE(small(model=fields).model).eval()

    return make


@pytest.fixture
def perturb() -> Callable[..., torch.nn.Module]:
    """Moves every parameter away from where it starts: zeros and ones hide mistakes."""

    def move(module: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)
        return module

    return move


@pytest.fixture
def float64() -> Iterator[None]:
    """All that is made without a dtype is float64: models, samples and constants."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums, and with it the last bit, depends on the number of threads."""
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
