"""Stage `quality`: what the samples are worth, in the features of the classifier and beside training images."""

from vae import command

# isort: split
import hashlib
import json
from pathlib import Path
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
        f"Frechet distance {values['frechet_binary']:.2f} (training images {values['frechet_binary_floor']:.2f}), "
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
    test, some = (images[torch.randperm(len(images), generator=generator)[:count]] for images in (test, train))
    means = sample(vae, count, generator)  # (N, P)
    probabilities = classifier.probabilities(network, means)  # (N, C)
    shares = quality.class_shares(probabilities)  # (C,)
    return {
        "samples": count,
        **compare(network, "grey", means, data.unit(some), data.unit(test), config.neighbours),
        **compare(
            network,
            "binary",
            torch.bernoulli(means, generator=generator),
            data.binarize(some, generator),
            data.binarize(test, generator),
            config.neighbours,
        ),
        "class_shares": shares.tolist(),
        "class_entropy_nats": quality.entropy(shares),
        "confidence": probabilities.max(dim=1).values.mean().item(),
        "nearest_train_ratio": neighbours(means, test, train, config.searched, picture),
    }


@torch.no_grad()
def sample(vae: model.VAE, count: int, generator: torch.Generator) -> Tensor:
    """The mean images of samples from the prior. Returns (count, P)."""
    z = vae.prior.sample(count, generator)  # (N, D)
    return torch.cat([torch.sigmoid(vae.decode(part)) for part in z.split(classifier.CHUNK)])


def compare(
    network: classifier.Network, kind: str, samples: Tensor, train: Tensor, test: Tensor, neighbours: int
) -> dict[str, float]:
    """Samples against test images, and as many training images in their place, all of one kind of pixels."""
    ours, train, test = (classifier.features(network, x) for x in (samples, train, test))  # (N, F)
    found, reached = quality.compare(ours, test, neighbours), quality.compare(train, test, neighbours)
    bound = {"frechet": "floor", "precision": "ceiling", "recall": "ceiling"}
    return {f"{name}_{kind}": value for name, value in found.items()} | {
        f"{name}_{kind}_{bound[name]}": value for name, value in reached.items()
    }


def neighbours(means: Tensor, test: Tensor, train: Tensor, searched: int, picture: Path) -> float:
    """Draws samples over their nearest training images; returns how near they are, against test images, as medians."""
    images = data.unit(train)  # (N, P)
    index, distance = quality.nearest(means[:searched], images)
    _, expected = quality.nearest(data.unit(test[:searched]), images)
    shown = min(EXAMPLES, len(index))
    pairs = torch.cat([means[:shown], images[index[:shown]]])
    plots.save_grid(picture, pairs.numpy(), shown)
    return (distance.median() / expected.median()).item()


if __name__ == "__main__":
    command.run(main)
