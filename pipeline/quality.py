"""Stage `quality`: what the samples are worth, in the features of the classifier and beside training images."""

from vae import command

# isort: split
import hashlib
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from vae import classifier, cores, data, model, plots, quality
from vae.errors import InputError
from vae.params import Quality, load

EXAMPLES = 12  # samples over their nearest training images


def main(params: Path, data_folder: Path, model_path: Path, network_path: Path, result: Path, picture: Path) -> None:
    """Measures the quality of samples."""
    config = load(params)
    torch.set_num_threads(config.train.threads)
    network, vae = classifier.load(network_path), model.load(model_path)
    test = data.load(data_folder, "t10k").images
    train, _ = data.split_validation(data.load(data_folder, "train").images, config.data.validation)
    with cores.turn(config.train.threads):
        values = measure(network, vae, train, test, config.quality, picture)
    values["classifier_sha256"] = hashlib.sha256(network_path.read_bytes()).hexdigest()
    values["model_sha256"] = hashlib.sha256(model_path.read_bytes()).hexdigest()
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(values, indent=2) + "\n")
    print(
        f"Frechet distance {values['frechet_binary']:.2f} ± {values['frechet_binary_stderr']:.2f} "
        f"(training images {values['frechet_binary_train']:.2f}), "
        f"precision {values['precision_binary']:.2f}, recall {values['recall_binary']:.2f}"
    )


def measure(
    network: classifier.Network, vae: model.VAE, train: Tensor, test: Tensor, config: Quality, picture: Path
) -> dict[str, Any]:
    """The figures, and the picture of samples over training images. train (N, P) uint8, test (M, P) uint8."""
    generator = torch.Generator().manual_seed(config.seed)
    count = min(config.samples, len(test), len(train))  # as many of each: few points overrate a distance
    if count <= config.neighbours:
        raise InputError(
            f"params.yaml: quality.samples: among {count} none has {config.neighbours} neighbours; raise it, "
            "or lower quality.neighbours"
        )
    draws, probabilities, near = [], [], {}
    for _ in range(config.draws):
        data_test, data_train = (
            images[torch.randperm(len(images), generator=generator)[:count]] for images in (test, train)
        )
        means = sample(vae, count, generator)  # (N, P)
        draws.append(compare(network, means, data_train, data_test, config.neighbours, generator))
        probabilities.append(classifier.probabilities(network, means))  # (N, C)
        near = near or neighbours(vae, means[: config.searched], data_test[: config.searched], train, picture)
    classes = torch.cat(probabilities)  # (draws * N, C)
    shares = quality.class_shares(classes)  # (C,)
    return {
        "samples": count,
        "draws": config.draws,
        **over(draws),
        "class_shares": shares.tolist(),
        "class_entropy_nats": quality.entropy(shares),
        "confidence": confidence(classes),
        "confidence_test": confidence(classifier.probabilities(network, data.unit(test))),
        **near,
    }


@torch.no_grad()
def sample(vae: model.VAE, count: int, generator: torch.Generator) -> Tensor:
    """The mean images of samples from the prior. Returns (count, P)."""
    z = vae.prior.sample(count, generator)  # (N, D)
    return torch.cat([torch.sigmoid(vae.decode(part)) for part in z.split(classifier.CHUNK)])


def confidence(probabilities: Tensor) -> float:
    """The mean of the largest probability. (N, C)."""
    return probabilities.max(dim=1).values.mean().item()


def compare(
    network: classifier.Network, means: Tensor, train: Tensor, test: Tensor, neighbours: int, generator: torch.Generator
) -> dict[str, float]:
    """Samples against test images, and as many training images in their place, by grey values and by drawn pixels."""
    kinds = {
        "grey": (means, data.unit(train), data.unit(test)),
        "binary": (
            torch.bernoulli(means, generator=generator),
            data.binarize(train, generator),
            data.binarize(test, generator),
        ),
    }
    values = {}
    for kind, images in kinds.items():
        ours, fitted, unseen = (classifier.features(network, x) for x in images)  # (N, F)
        for name, value in quality.compare(ours, unseen, neighbours).items():
            values[f"{name}_{kind}"] = value
        for name, value in quality.compare(fitted, unseen, neighbours).items():
            values[f"{name}_{kind}_train"] = value
    return values


def over(draws: list[dict[str, float]]) -> dict[str, float]:
    """Means over draws, and the standard errors of those of the samples."""
    columns = {name: [draw[name] for draw in draws] for name in draws[0]}
    errors = {name: stdev(column) / len(column) ** 0.5 for name, column in columns.items() if "train" not in name}
    return {name: mean(column) for name, column in columns.items()} | {
        f"{name}_stderr": error for name, error in errors.items()
    }


@torch.no_grad()
def neighbours(vae: model.VAE, means: Tensor, test: Tensor, train: Tensor, picture: Path) -> dict[str, float]:
    """How near samples are to training images, against test images, as medians; and how near reconstructions of test
    images are, which no training image is copied into. Draws the first samples over their nearest training images."""
    images, unseen = data.unit(train), data.unit(test)  # (N, P), (M, P)
    index, distance = quality.nearest(means, images)
    shown = min(EXAMPLES, len(index))
    pairs = torch.cat([means[:shown], images[index[:shown]]])
    plots.save_grid(picture, pairs.numpy(), shown)
    expected = quality.nearest(unseen, images)[1].median()
    rebuilt = quality.nearest(torch.sigmoid(vae.decode(vae.encode(unseen)[0])), images)[1].median()
    return {
        "nearest_train_ratio": (distance.median() / expected).item(),
        "nearest_train_ratio_reconstructions": (rebuilt / expected).item(),
    }


if __name__ == "__main__":
    command.run(main)
