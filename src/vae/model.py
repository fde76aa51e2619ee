"""The VAE: an encoder, a decoder and a prior. Networks return distribution parameters, never losses."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vae.data import PIXELS
from vae.errors import InputError
from vae.params import Model
from vae.prior import PRIORS


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths, with a ReLU between two."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """q(z|x) = N(mu(x), diag(e^logvar(x)))."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.layers = mlp([PIXELS, *config.encoder, 2 * config.latent_dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: x (B, P) in [0, 1] -> mu (B, D), logvar (B, D), both float32."""
        mu, logvar = self.layers(x).float().chunk(2, dim=-1)
        return mu, logvar


class Decoder(nn.Module):
    """p(x|z) = prod_p Bernoulli(x_p; sigmoid(l_p(z)))."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.layers = mlp([config.latent_dim, *config.decoder, PIXELS])

    def forward(self, z: Tensor) -> Tensor:
        """Shapes: z (..., D) -> logits (..., P)."""
        return self.layers(z)


class VAE(nn.Module):
    """A variational autoencoder of 28x28 images (Kingma & Welling 2014)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.encode = Encoder(config)
        self.decode = Decoder(config)
        self.prior = PRIORS[config.prior](config)


def save(model: VAE, path: Path) -> None:
    """Writes the weights with the model's configuration: the same weights give the same bytes."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"model": model.config.model_dump_json()})  # one key: two have no fixed order


def load(path: Path, device: torch.device | str = "cpu") -> VAE:
    """Reads a model that `save` wrote; no code in the file is executed.

    Raises:
        InputError: the file is missing, damaged, or not a model of this project.
    """
    remedy = "train it again with `dvc repro --force train`"
    if not path.is_file():
        raise InputError(f"{path}: no such model; {remedy}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            config = Model.model_validate_json((file.metadata() or {})["model"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118: no mapping
        model = VAE(config).to(device)
        model.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: not a model of this project ({' '.join(str(error).split())[:200]}); {remedy}") from error
    return model.eval()
