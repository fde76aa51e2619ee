"""Answers of a trained model, compared with the model itself."""

import pytest
import torch

from vae import model, streams
from vae.errors import InputError
from vae.idx import PIXELS
from vae.serving.inference import Inference


@pytest.fixture
def network(vae, perturb):
    """A model whose weights are all different."""
    return perturb(vae())


@pytest.fixture
def inference(network, tmp_path):
    """The answers of a file that has this model."""
    model.save(network, tmp_path / "vae.safetensors")
    return Inference(tmp_path / "vae.safetensors")


@pytest.fixture
def images():
    """(5, 784) in [0, 1]."""
    return torch.rand(5, PIXELS, generator=torch.Generator().manual_seed(1))


def test_answers_are_lists_of_the_numbers_of_the_model(network, inference, images):
    with torch.no_grad():
        mu, logvar = network.encode(images)
        assert inference.encode(images.tolist()) == (mu.tolist(), logvar.tolist())
        assert inference.decode(mu.tolist()) == network.means(mu).tolist()
        assert inference.reconstruct(images.tolist()) == network.means(mu).tolist()
        assert inference.generate(3, 7) == network.sample(3, streams.stream(7, "served samples")).tolist()


def test_the_seed_alone_decides_what_is_generated(inference):
    """The state of torch's own generator has no influence, and does not change."""
    torch.manual_seed(1)
    first = inference.generate(2, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert inference.generate(2, 0) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert inference.generate(2, 1) != first


@pytest.mark.parametrize("length", [2, 4])
def test_a_latent_of_the_wrong_size_is_refused(inference, length):
    """Also if only one of several latents is wrong."""
    with pytest.raises(InputError, match=f"latents: 3 values each, got {length}"):
        inference.decode([[0.0] * 3, [0.0] * length])


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "vae.safetensors").write_text("no model")
    with pytest.raises(InputError, match=r"vae\.safetensors"):
        Inference(tmp_path / "vae.safetensors")
