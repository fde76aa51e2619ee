"""The figures of the library agree with an evaluator from outside, within the error of its own pixels and noise."""

import hashlib
import json
import math

import pytest
import torch
import yaml

from tests import outside
from tools.deps import imported
from vae import data, model, params, training
from vae.evaluation import metrics

NAMES = {"neg_elbo": "neg_elbo_nats", "rate": "rate_nats", "distortion": "distortion_nats", "nll": "nll_iw_nats"}
DRAWS = 2  # of pixels and noise, by the evaluator from outside
SAMPLES = 5
EVERY = 5  # of the published test images one in so many is measured, because the evaluator from outside is slow
# Architectures, priors and pixels. The first is the kind of the recipe `seed`. All other recipes have convolutions and
# a flow, and have a test of their own below.
CASES = {
    "mlp, standard-normal": ("none", {"encoder": [32, 16], "decoder": [16, 32]}),
    "mlp, mixture": ("dynamic", {"latent_dim": 6}),
    "mlp, flow": ("dynamic", {"latent_dim": 5, "flow_couplings": 3}),
    "conv, standard-normal": ("dynamic", {"channels": [4, 8]}),
    "conv, mixture": ("dynamic", {"channels": [4, 8], "blocks": 2}),
}


def test_it_shares_no_code_with_the_library(root):
    names = {name.partition(".")[0] for name in imported(root / "tests/outside.py")}
    assert names == {"json", "math", "numpy", "pathlib", "safetensors", "torch", "typing"}


def assert_agreement(config: params.Params, digits_folder, folder) -> None:
    """Trains on the digits. Each figure of the test images is then within 4 standard errors of the figure from outside.
    The images are the same, so these errors come from pixels and noise alone."""
    split = data.split_validation(data.load(digits_folder, "train").images, config.data.validation)
    state = training.start(config, split[0])
    for _ in training.fit(state, *split, config.data.binarization):
        pass
    model.save(state.model, folder / "model")
    settings = {"importance_samples": SAMPLES, "grey_samples": 1, "precision": "fp32"}
    test = data.load(digits_folder, "t10k").images
    figures, _ = metrics.evaluate(state.model, test, split[0][: len(test)], config.evaluate.model_copy(update=settings))

    grey = outside.images(digits_folder / "t10k-images-idx3-ubyte")
    drawn = [outside.estimate(outside.Model(folder / "model"), grey, SAMPLES, seed) for seed in range(DRAWS)]
    for field, name in NAMES.items():
        values = torch.stack([getattr(estimate, field) for estimate in drawn])  # (R, N)
        error = (values.var(dim=0).mean() / len(grey) * (1 + 1 / DRAWS)).sqrt().item()
        assert abs(figures[name] - values.mean().item()) < 4 * error, name
        assert 0 < error < (0.2 if name == "rate_nats" else 1), name  # so that the comparison is sharp


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_and_prior(small, digits_folder, tmp_path, case):
    architecture, prior = case.split(", ")
    binarization, fields = CASES[case]
    train = {"epochs": 4, "warmup_steps": 20, "optimizer": "muon", "kl_warmup_epochs": 0}
    network = {"architecture": architecture, "prior": prior} | fields
    assert_agreement(small(data={"binarization": binarization}, model=network, train=train), digits_folder, tmp_path)


def test_the_committed_settings(root, digits_folder, tmp_path):
    """Training and evaluation have the same seed in params.yaml. The noise of the evaluation must not repeat noise of
    the training, for example the initial means of the mixture: the figures would be too good."""
    config = params.load(root / "params.yaml")
    assert config.train.seed == config.evaluate.seed
    train = {"batch_size": 64, "device": "cpu", "precision": "fp32", "threads": 1}
    assert_agreement(
        config.model_copy(update={"train": config.train.model_copy(update=train)}), digits_folder, tmp_path
    )


def test_the_present_figures(root):
    """metrics/evaluation.json, if its model and its data are here: after `dvc repro` or `dvc pull`.
    The errors are standard errors over images, so this is less sharp than the tests above."""
    file, test = root / "models/vae.safetensors", root / "data/t10k-images-idx3-ubyte"
    if not file.is_file() or not test.is_file():
        pytest.skip("no model or no data; run `dvc repro`")
    stage = yaml.safe_load((root / "dvc.lock").read_text())["stages"]["evaluate"]
    (locked,) = (dep["md5"] for dep in stage["deps"] if dep["path"] == "models/vae.safetensors")
    published, grey = json.loads((root / "metrics/evaluation.json").read_text()), outside.images(test)
    if hashlib.md5(file.read_bytes()).hexdigest() != locked or len(grey) != published["test_images"]:
        pytest.skip("metrics/evaluation.json is of another model or other data; run `dvc repro`")
    samples = min(published["importance_samples"], 10)
    estimate = outside.estimate(outside.Model(file), grey[::EVERY], samples, seed=0)
    for field, name in NAMES.items():
        if field == "nll" and samples != published["importance_samples"]:
            continue
        values = getattr(estimate, field)
        error = values.std().item() / math.sqrt(len(values))
        assert abs(published[name] - values.mean().item()) < 4 * error, name
        assert 0 < error < 0.02 * published["neg_elbo_nats"], name
