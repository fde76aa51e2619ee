"""The numbers of metrics/quality.json: samples compared with test images, and with their nearest training images."""

from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae import data, streams
from vae.errors import InputError
from vae.evaluation import classifier, distances
from vae.model import VAE
from vae.params import Quality


class Measured(NamedTuple):
    """The figures, and samples (N, P) with the training image (N, P) that is nearest to each."""

    figures: dict[str, Any]
    samples: Tensor
    nearest: Tensor


@torch.no_grad()
def measure(network: classifier.Network, vae: VAE, train: Tensor, test: Tensor, config: Quality) -> Measured:
    """Draws as many samples as there are test images, at most `quality.samples`, and does this `quality.draws` times.
    Figures are means over the draws. Shapes: train (N, P) uint8, test (M, P) uint8.
    Raises InputError if there are too few samples for `quality.neighbours`."""
    generator = streams.stream(config.seed, "quality")
    count = min(config.samples, len(test), len(train))  # equal numbers, because a distance of few points is too large
    if count <= config.neighbours:
        raise InputError(
            f"params.yaml: quality.samples: {count} samples are too few for {config.neighbours} neighbours; raise it, "
            "or lower quality.neighbours"
        )
    draws, probabilities = [], []
    for draw in range(config.draws):
        data_test, data_train = (
            images[torch.randperm(len(images), generator=generator)[:count]] for images in (test, train)
        )
        means = vae.sample(count, generator)  # (N, P)
        draws.append(compare(network, means, data_train, data_test, config.neighbours, generator))
        probabilities.append(classifier.probabilities(network, means))  # (N, C)
        if draw == 0:
            samples = means[: config.searched]
            ratios, nearest = neighbours(vae, samples, data_test[: config.searched], data.unit(train))
    classes = torch.cat(probabilities)  # (draws * N, C)
    shares = distances.class_shares(classes)  # (C,)
    figures = {
        "samples": count,
        "draws": config.draws,
        **over_draws(draws),
        "class_shares": [{"class": number, "share": share} for number, share in enumerate(shares.tolist())],
        "class_entropy_nats": distances.entropy(shares),
        "confidence": confidence(classes),
        "confidence_test": confidence(classifier.probabilities(network, data.unit(test))),
        **ratios,
    }
    return Measured(figures, samples, nearest)


def confidence(probabilities: Tensor) -> float:
    """The mean of the largest probability. (N, C)."""
    return probabilities.max(dim=1).values.mean().item()


def compare(
    network: classifier.Network, means: Tensor, train: Tensor, test: Tensor, neighbours: int, generator: torch.Generator
) -> dict[str, float]:
    """Compares samples with test images, by grey values and by binary pixels, then training images with test images.
    Shapes: means (N, P) in [0, 1], train (N, P) uint8, test (N, P) uint8."""
    grey = means, data.unit(train), data.unit(test)
    binary = torch.bernoulli(means, generator=generator), *(data.binarize(x, generator) for x in (train, test))
    values: dict[str, float] = {}
    for kind, images in (("grey", grey), ("binary", binary)):
        sampled, fitted, unseen = (classifier.features(network, x) for x in images)  # (N, F)
        for suffix, features in (("", sampled), ("_train", fitted)):
            compared = distances.compare(features, unseen, neighbours)
            values |= {f"{name}_{kind}{suffix}": value for name, value in compared.items()}
    return values


def over_draws(draws: list[dict[str, float]]) -> dict[str, float]:
    """Means over draws, and the standard errors of the figures of samples."""
    columns = {name: [draw[name] for draw in draws] for name in draws[0]}
    errors = {name: stdev(column) / len(column) ** 0.5 for name, column in columns.items() if "train" not in name}
    return {name: mean(column) for name, column in columns.items()} | {
        f"{name}_stderr": error for name, error in errors.items()
    }


def neighbours(vae: VAE, samples: Tensor, test: Tensor, train: Tensor) -> tuple[dict[str, float], Tensor]:
    """The median distance to the nearest training image, as a ratio to the same distance of test images.
    It is given for samples, and for reconstructions of test images: smooth images without memorising.
    Returns the ratios, and the training image that is nearest to each sample.
    Shapes: samples (N, P) in [0, 1], test (M, P) uint8, train (L, P) in [0, 1]."""
    unseen = data.unit(test)
    index, distance = distances.nearest(samples, train)
    expected = distances.nearest(unseen, train)[1].median()
    rebuilt = distances.nearest(vae.means(vae.encode(unseen)[0]), train)[1].median()
    ratios = {
        "nearest_train_ratio": (distance.median() / expected).item(),
        "nearest_train_ratio_reconstructions": (rebuilt / expected).item(),
    }
    return ratios, train[index]
