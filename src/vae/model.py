"""The VAE: an encoder, a decoder and a prior. Networks return parameters of distributions, never losses."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import weights
from vae.idx import PIXELS, SIDE
from vae.layers import at_least_float32, mlp
from vae.params import Model
from vae.prior import PRIORS, Prior

CHUNK = 1000  # sampled images that are decoded at a time


class MlpEncoder(nn.Module):
    """q(z|x) = N(mu(x), diag(e^logvar(x))), with linear layers of the widths `model.encoder`."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.layers = mlp([PIXELS, *config.encoder, 2 * config.latent_dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: x (B, P) in [0, 1] -> mu (B, D), logvar (B, D), both float32."""
        mu, logvar = at_least_float32(self.layers(x)).chunk(2, dim=-1)
        return mu, logvar


class MlpDecoder(nn.Module):
    """p(x|z) = prod_p Bernoulli(x_p; sigmoid(l_p(z))), with linear layers of the widths `model.decoder`."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.layers = mlp([config.latent_dim, *config.decoder, PIXELS])

    @property
    def bias(self) -> nn.Parameter:
        """The part of each pixel's logit that does not depend on z. (P,)."""
        return self.layers[-1].bias  # type: ignore[return-value]

    def forward(self, z: Tensor) -> Tensor:
        """Shapes: z (..., D) -> logits (..., P)."""
        return self.layers(z)


class Residual(nn.Module):
    """x + conv(relu(x)), with a 3x3 convolution that keeps the size (pre-activation, He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C, H, W)."""
        return self.conv(F.relu(x)).add_(x)  # in place, so that one tensor less passes through the caches


def fold(x: Tensor) -> Tensor:
    """Moves each 2x2 square of pixels into the channels: (B, C, 2H, 2W) -> (B, H, W, 4C).
    Followed by a linear layer this is a convolution of stride 2, in half the time of torch's own on a CPU."""
    x = x.permute(0, 2, 3, 1)  # (B, 2H, 2W, C)
    x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (B, H, 2, W, 2, C)
    return x.transpose(2, 3).flatten(3)


def unfold(x: Tensor) -> Tensor:
    """The inverse of `fold`: (B, H, W, 4C) -> (B, C, 2H, 2W), channels last in memory."""
    x = x.unflatten(3, (2, 2, -1)).transpose(2, 3)  # (B, H, 2, W, 2, C)
    return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class ConvEncoder(nn.Module):
    """q(z|x) by residual blocks at 7x7. Folding 2x2 pixels into channels halves the resolution."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        wide, deep = config.channels
        self.enter = nn.Conv2d(4, wide, 3, padding=1)
        self.down = nn.Linear(4 * wide, deep)
        self.blocks7 = nn.Sequential(*(Residual(deep) for _ in range(config.blocks)))
        self.leave = nn.Linear(49 * deep, 2 * config.latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: x (B, P) in [0, 1] -> mu (B, D), logvar (B, D), both float32."""
        x = fold(x.view(-1, 1, SIDE, SIDE)).permute(0, 3, 1, 2)  # (B, 4, 14, 14), channels last in memory
        x = F.relu_(self.enter(x))  # (B, C, 14, 14)
        x = self.blocks7(self.down(fold(x)).permute(0, 3, 1, 2))  # (B, C', 7, 7)
        x = F.relu_(x).permute(0, 2, 3, 1).flatten(1)  # (B, 49 C')
        mu, logvar = at_least_float32(self.leave(x)).chunk(2, dim=-1)
        return mu, logvar


class ConvDecoder(nn.Module):
    """p(x|z) by residual blocks at 7x7 and 14x14. Unfolding channels into 2x2 pixels doubles the resolution."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        wide, self.deep = config.channels
        self.enter = nn.Linear(config.latent_dim, 49 * self.deep)
        self.blocks7 = nn.Sequential(*(Residual(self.deep) for _ in range(config.blocks)))
        self.up = nn.Linear(self.deep, 4 * wide)
        self.blocks14 = nn.Sequential(*(Residual(wide) for _ in range(config.blocks)))
        self.leave = nn.Linear(wide, 4, bias=False)  # linear: a convolution to 4 channels takes as long as one to 16
        self.bias = nn.Parameter(torch.zeros(PIXELS))  # for each pixel, because a convolution treats all alike

    def forward(self, z: Tensor) -> Tensor:
        """Shapes: z (..., D) -> logits (..., P)."""
        x = self.enter(z).view(-1, 7, 7, self.deep).permute(0, 3, 1, 2)  # (B, C', 7, 7), channels last in memory
        x = F.relu_(self.blocks7(x)).permute(0, 2, 3, 1)  # (B, 7, 7, C')
        x = self.blocks14(unfold(self.up(x)))  # (B, C, 14, 14)
        x = unfold(self.leave(F.relu_(x).permute(0, 2, 3, 1)))  # (B, 1, 28, 28)
        return x.reshape(*z.shape[:-1], PIXELS) + self.bias.to(x.dtype)


ENCODERS: dict[str, type[MlpEncoder | ConvEncoder]] = {"mlp": MlpEncoder, "conv": ConvEncoder}
DECODERS: dict[str, type[MlpDecoder | ConvDecoder]] = {"mlp": MlpDecoder, "conv": ConvDecoder}


class VAE(nn.Module):
    """A variational autoencoder of 28x28 images (Kingma & Welling 2014)."""

    encode: MlpEncoder | ConvEncoder
    decode: MlpDecoder | ConvDecoder
    prior: Prior

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.config = config
        self.encode = ENCODERS[config.architecture](config)
        self.decode = DECODERS[config.architecture](config)
        self.prior = PRIORS[config.prior](config)

    def means(self, z: Tensor) -> Tensor:
        """E[x|z], the probability that each pixel is white. Shapes: z (..., D) -> (..., P), at least float32."""
        return torch.sigmoid(at_least_float32(self.decode(z)))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """The mean images of `count` samples of the prior. Returns (count, P)."""
        return torch.cat([self.means(z) for z in self.prior.sample(count, generator).split(CHUNK)])


save = weights.save


def load(path: Path, device: torch.device | str = "cpu") -> VAE:
    """Reads a model that `save` wrote. Raises InputError like `weights.load`."""
    return weights.load(path, Model, VAE, "train it again with `dvc repro --force train`", str(device))
