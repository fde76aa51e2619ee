"""A small classifier of grey digits. Its features are used to measure the quality of samples."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from vae import streams, weights
from vae.data import unit
from vae.errors import InputError
from vae.idx import SIDE
from vae.optimizers import Adam, rate_factor
from vae.params import Classifier

CLASSES = 10
CHUNK = 1000  # images at a time outside training
STREAMS: tuple[streams.Purpose, ...] = ("classifier order", "classifier shifts")


class Network(nn.Module):
    """p(class|x): convolutions at 14x14 and 7x7, then a layer of features, then the last layer."""

    def __init__(self, config: Classifier) -> None:
        super().__init__()
        self.config = config
        wide, deep = config.channels
        self.conv14 = nn.Conv2d(4, wide, 3, padding=1)
        self.conv7 = nn.Conv2d(4 * wide, deep, 3, padding=1)
        self.more7 = nn.Conv2d(deep, deep, 3, padding=1)
        self.enter = nn.Linear(9 * deep, config.features)
        self.leave = nn.Linear(config.features, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer, after its ReLU. Shapes: x (B, P) in [0, 1] -> (B, F)."""
        x = F.pixel_unshuffle(x.view(-1, 1, SIDE, SIDE), 2)  # (B, 4, 14, 14): four times faster than 28x28
        x = F.relu(self.conv14(x))  # (B, C, 14, 14)
        x = F.relu(self.conv7(F.pixel_unshuffle(x, 2)))  # (B, C', 7, 7)
        x = F.max_pool2d(F.relu(self.more7(x)), 2)  # (B, C', 3, 3)
        return F.relu(self.enter(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x (B, P) in [0, 1] -> logits (B, C)."""
        return self.leave(self.features(x))


def shift(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Moves all images of a batch by the same random shift of at most `most` pixels. Pixels wrap around the edges.
    Shapes: (B, P) -> (B, P)."""
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(x.view(-1, SIDE, SIDE), (down, right), (1, 2)).flatten(1)


def fit(images: Tensor, labels: Tensor, config: Classifier) -> Network:
    """Minimizes the mean cross-entropy on shifted grey images, by Adam.
    Shapes: images (N, P) uint8, labels (N,) uint8.
    Raises InputError if there are more than ten classes, or the loss is no longer finite."""
    if labels.max() >= CLASSES:
        raise InputError(
            f"quality is measured for {CLASSES} classes at most, and this data set has label {labels.max()}"
        )
    torch.manual_seed(streams.derived(config.seed, "classifier weights"))  # torch's initializers take no generator
    network = Network(config)
    optimizer = Adam(network.parameters(), config.learning_rate)
    order, shifts = (streams.stream(config.seed, name) for name in STREAMS)
    steps = config.epochs * math.ceil(len(images) / config.batch_size)
    orders = (torch.randperm(len(images), generator=order) for _ in range(config.epochs))
    batches = (batch for images_of_epoch in orders for batch in images_of_epoch.split(config.batch_size))
    for step, batch in enumerate(tqdm(batches, total=steps, unit="batch", disable=None)):
        logits = network(shift(unit(images[batch]), config.shift, shifts))  # (B, C)
        loss = F.cross_entropy(logits, labels[batch].long())  # images
        network.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step(rate_factor("cosine", step / steps, step, config.warmup_steps))
    if not math.isfinite(loss.item()):
        raise InputError("the classifier's training diverged: lower classifier.learning_rate")
    return network.eval()


def _in_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Applies a function to a chunk of images at a time. Shapes: (N, P) in [0, 1] -> (N, ...)."""
    return torch.cat([function(part) for part in x.split(CHUNK)])


@torch.no_grad()
def features(network: Network, x: Tensor) -> Tensor:
    """The features of all images, in float64 for sums over a data set. Shapes: (N, P) in [0, 1] -> (N, F)."""
    return _in_chunks(network.features, x).double()


@torch.no_grad()
def probabilities(network: Network, x: Tensor) -> Tensor:
    """p(class|x) of all images. Shapes: (N, P) in [0, 1] -> (N, C) float64."""
    return torch.softmax(_in_chunks(network, x).double(), dim=1)


def accuracy(network: Network, images: Tensor, labels: Tensor) -> float:
    """The share of grey images whose most probable class is their label. Shapes: (N, P) uint8, (N,) uint8."""
    return (probabilities(network, unit(images)).argmax(dim=1) == labels).double().mean().item()


save = weights.save


def load(path: Path) -> Network:
    """Reads a classifier that `save` wrote. Raises InputError like `weights.load`."""
    remedy = "train it again with `dvc repro --force quality/dvc.yaml:classifier`"
    return weights.load(path, Classifier, Network, remedy, "cpu")
