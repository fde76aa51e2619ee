"""An evaluator from outside: written from the formulas, it shares no code with the library and checks its figures.

It reads a model file and an IDX file by itself. It computes in float64, with distributions of torch.distributions and
with the Jacobian of the flow by autograd. Its pixels and its noise are its own, from another kind of generator.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MixtureSameFamily, Normal

CHUNK = 2000  # samples of z at a time
JACOBIANS = 400  # samples of z at a time


class Estimate(NamedTuple):
    """For each image, in nats, from K samples of z: means over the samples, and the importance-weighted bound. (N,)."""

    neg_elbo: Tensor
    rate: Tensor
    distortion: Tensor
    nll: Tensor


def images(path: Path) -> np.ndarray:
    """The grey bytes of an IDX file. (N, 784)."""
    content = path.read_bytes()
    return np.frombuffer(content, np.uint8, offset=16).reshape(int.from_bytes(content[4:8], "big"), 784)


class Model:
    """The densities of a model file."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.config = json.loads(file.metadata()["model"])
            self.weights = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
        self.halves = self.config["latent_dim"] // 2, -(-self.config["latent_dim"] // 2)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def perceptron(self, x: Tensor, name: str) -> Tensor:
        """Linear layers with ReLUs between them. Only the linear layers have weights, at even places."""
        last = max(int(key.split(".")[-2]) for key in self.weights if key.startswith(f"{name}."))
        for layer in range(0, last, 2):
            x = F.relu(self.linear(x, f"{name}.{layer}"))
        return self.linear(x, f"{name}.{last}")

    def residual(self, x: Tensor, name: str) -> Tensor:
        for block in range(self.config["blocks"]):
            weight, bias = (self.weights[f"{name}.{block}.conv.{kind}"] for kind in ("weight", "bias"))
            x = x + F.conv2d(F.relu(x), weight, bias, padding=1)
        return x

    def halved(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A convolution of stride 2, whose kernel is stored as (out, row, column, in)."""
        kernel = weight.view(len(weight), 2, 2, -1).permute(0, 3, 1, 2)
        return F.conv2d(x, kernel, bias, stride=2)

    def doubled(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A transposed convolution of stride 2, whose kernel is stored as (row, column, out, in), with a bias for each
        row and column of the kernel."""
        y = F.conv_transpose2d(x, weight.view(2, 2, -1, x.shape[1]).permute(3, 2, 0, 1), stride=2)
        return y + bias.view(2, 2, -1).permute(2, 0, 1).tile(1, *x.shape[2:])

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x). Shapes: (B, 784) -> a batch of B distributions of (D,)."""
        w = self.weights
        if self.config["architecture"] == "mlp":
            h = self.perceptron(x, "encode.layers")
        else:
            h = F.pixel_unshuffle(x.view(-1, 1, 28, 28), 2)
            h = F.relu(F.conv2d(h, w["encode.enter.weight"], w["encode.enter.bias"], padding=1))
            h = self.residual(self.halved(h, w["encode.down.weight"], w["encode.down.bias"]), "encode.blocks7")
            h = self.linear(F.relu(h).permute(0, 2, 3, 1).flatten(1), "encode.leave")
        mean, log_variance = h.chunk(2, dim=1)
        return Independent(Normal(mean, log_variance.exp().sqrt()), 1)

    def likelihood(self, z: Tensor) -> Distribution:
        """p(x|z). Shapes: (B, D) -> a batch of B distributions of (784,)."""
        w = self.weights
        if self.config["architecture"] == "mlp":
            return Independent(Bernoulli(logits=self.perceptron(z, "decode.layers")), 1)
        h = self.linear(z, "decode.enter").view(len(z), 7, 7, -1).permute(0, 3, 1, 2)
        h = F.relu(self.residual(h, "decode.blocks7"))
        h = F.relu(self.residual(self.doubled(h, w["decode.up.weight"], w["decode.up.bias"]), "decode.blocks14"))
        h = self.doubled(h, w["decode.leave.weight"], torch.zeros(4, dtype=torch.float64))
        return Independent(Bernoulli(logits=h.flatten(1) + w["decode.bias"]), 1)

    def mixture(self, name: str) -> Distribution:
        mean, log_variance, logits = (self.weights[f"{name}.{kind}"] for kind in ("mean", "logvar", "logits"))
        return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, (log_variance / 2).exp()), 1))

    def flow(self, z: Tensor) -> Tensor:
        """u = f(z): each coupling scales and shifts one half of the latents, given the other half. (D,) -> (D,)."""
        first, second = z.split(self.halves)
        for coupling in range(self.config["flow_couplings"]):
            log_scale, shift = self.perceptron(first, f"prior.couplings.{coupling}").chunk(2)
            first, second = second * (2 * torch.tanh(log_scale / 2)).exp() + shift, first
        return torch.cat([first, second])

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), for a flow by the change of variables, with its whole Jacobian matrix. (B, D) -> (B,)."""
        if self.config["prior"] == "standard-normal":
            return Independent(Normal(torch.zeros_like(z), torch.ones_like(z)), 1).log_prob(z)
        if self.config["prior"] == "mixture":
            return self.mixture("prior").log_prob(z)
        base, parts = self.mixture("prior.base"), []
        for part in z.split(JACOBIANS):
            jacobian = torch.vmap(torch.func.jacrev(self.flow))(part)  # (B, D, D)
            parts.append(base.log_prob(torch.vmap(self.flow)(part)) + torch.linalg.slogdet(jacobian).logabsdet)
        return torch.cat(parts)


@torch.no_grad()
def estimate(model: Model, grey: np.ndarray, samples: int, seed: int) -> Estimate:
    """Draws the pixels and `samples` latents of each image. Shapes: grey (N, 784) uint8."""
    random = np.random.Generator(np.random.Philox(seed))
    rows: list[tuple[Tensor, ...]] = []
    for part in np.array_split(grey, math.ceil(len(grey) * samples / CHUNK)):
        x = torch.from_numpy((random.random(part.shape) < part / 255).astype(np.float64))  # (B, 784)
        posterior, log_w, terms = model.posterior(x), [], []
        for _ in range(samples):
            noise = torch.from_numpy(random.standard_normal(posterior.mean.shape))
            z = posterior.mean + posterior.stddev * noise  # (B, D)
            rate = posterior.log_prob(z) - model.log_prior(z)
            distortion = -model.likelihood(z).log_prob(x)
            terms.append(torch.stack([rate + distortion, rate, distortion]))
            log_w.append(-terms[-1][0])
        bound = math.log(samples) - torch.logsumexp(torch.stack(log_w), dim=0)
        rows.append((*torch.stack(terms).mean(dim=0), bound))
    return Estimate(*(torch.cat(column) for column in zip(*rows, strict=True)))
