"""The quality of samples: its figures, its errors and its picture."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import quality as script
from vae import model
from vae.errors import InputError
from vae.evaluation import classifier, plots, quality


def grey(count: int, seed: int = 0) -> torch.Tensor:
    """Random images. (count, 784) uint8."""
    return torch.randint(0, 256, (count, 784), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("samples", "images"), [(3, 100), (100, 3)])
def test_too_few_samples_for_the_neighbours_are_an_error(small, vae, samples, images):
    """Otherwise the last neighbour would be infinitely far away, and its ball would cover everything."""
    config = small(quality={"samples": samples, "neighbours": 3}).quality
    with pytest.raises(InputError, match=r"quality\.samples: 3 samples are too few for 3 neighbours"):
        quality.measure(None, vae(), grey(images), grey(images), config)


def test_nearest_training_images_of_training_images_are_themselves(vae):
    """The ratio is then zero, and reconstructions of other images are farther away."""
    train = grey(60)
    samples = (train.flip(0) / 255)[:40]
    ratios, nearest = quality.neighbours(vae(), samples, 255 - train, train / 255)
    assert ratios["nearest_train_ratio"] == 0
    assert ratios["nearest_train_ratio_reconstructions"] > 0
    assert torch.equal(nearest, samples)


@pytest.mark.parametrize(("searched", "shown"), [(5, 5), (40, script.EXAMPLES)])
def test_the_picture_has_each_sample_above_its_nearest(
    small, vae, digits_folder, tmp_path, monkeypatch, searched, shown
):
    """Each sample is above its nearest training image. The file has the figures, and the hashes of both models."""
    config = small(train={"threads": 1})
    samples, nearest = grey(searched) / 255, grey(searched, seed=1) / 255
    figures = dict.fromkeys(
        ("frechet_binary", "frechet_binary_stderr", "frechet_binary_train", "precision_binary", "recall_binary"), 0.5
    )
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # the folder of the locks of cores
    monkeypatch.setattr(script, "load", lambda _: config)
    monkeypatch.setattr(script.quality, "measure", lambda *_: quality.Measured(figures, samples, nearest))
    files = {name: tmp_path / name for name in ("model", "network", "result", "picture.png")}
    model.save(vae(), files["model"])
    classifier.save(classifier.Network(config.classifier), files["network"])
    script.main(
        tmp_path,
        digits_folder,
        model=files["model"],
        network=files["network"],
        result=files["result"],
        picture=files["picture.png"],
    )
    expected = plots.grid(torch.cat([samples[:shown], nearest[:shown]]).numpy(), shown)
    assert np.array_equal(np.asarray(Image.open(files["picture.png"])), np.asarray(expected))
    written = json.loads(files["result"].read_text())
    assert figures.items() < written.items()
    assert written.keys() - figures.keys() == {"classifier_sha256", "model_sha256"}


def test_figures_are_means_over_draws_with_their_errors():
    """The error of a mean is the deviation of the draws, divided by the root of their number."""
    draws = [{"frechet_grey": value, "frechet_grey_train": 1 + value} for value in (1.0, 2.0, 6.0)]
    found = quality.over_draws(draws)
    assert found == {"frechet_grey": 3, "frechet_grey_train": 4, "frechet_grey_stderr": pytest.approx((7 / 3) ** 0.5)}


def test_the_seed_decides_the_draws(small, vae):
    """Another seed draws other samples. The same seed gives the same figures and the same nearest images."""
    config, images = small(quality={"samples": 30, "draws": 2, "searched": 10}), grey(40)
    network = classifier.Network(config.classifier)

    def measured(seed: int) -> quality.Measured:
        settings = config.quality.model_copy(update={"seed": seed})
        return quality.measure(network, vae(), images, images, settings)

    one, again, other = measured(0), measured(0), measured(1)
    assert one.figures["frechet_binary_stderr"] > 0
    assert one.figures["class_entropy_nats"] <= math.log(10)
    assert again.figures == one.figures
    assert torch.equal(again.nearest, one.nearest)
    assert other.figures["frechet_binary"] != one.figures["frechet_binary"]
