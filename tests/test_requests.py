"""The served API: every task, and requests that must be refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vae import data, model
from vae.serving.requests import MAX_DIGITS, Digits, Request, check


@pytest.fixture
def served(vae, tmp_path):
    """The API with a small model."""
    model.save(vae(), tmp_path / "vae.safetensors")
    digits = Digits()
    digits.load_context(SimpleNamespace(artifacts={"model": str(tmp_path / "vae.safetensors")}))
    return digits


def answer(served, **request):
    """The result of one request."""
    return served.predict([Request(**request)])[0]


def test_generate_is_seeded(served):
    first, again, other = (answer(served, task="generate", n=3, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert np.shape(first["images"]) == (3, data.PIXELS)
    assert 0 <= np.min(first["images"]) <= np.max(first["images"]) <= 1


def test_without_a_seed_each_answer_has_other_digits(served):
    assert answer(served, task="generate", n=1) != answer(served, task="generate", n=1)


def test_the_largest_seed_is_accepted(served):
    assert len(answer(served, task="generate", n=1, seed=2**63 - 1)["images"]) == 1


def test_encode_decode_and_reconstruct_agree(served):
    images = torch.rand(2, data.PIXELS, generator=torch.Generator().manual_seed(0)).tolist()
    encoded = answer(served, task="encode", images=images)
    assert np.shape(encoded["mu"]) == np.shape(encoded["logvar"]) == (2, served.model.vae.config.latent_dim)
    decoded = answer(served, task="decode", latents=encoded["mu"])
    np.testing.assert_allclose(
        decoded["images"], answer(served, task="reconstruct", images=images)["images"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"task": "paint"}, "task"),
        ({"task": "generate"}, "takes"),
        ({"task": "generate", "seed": 0}, "takes ['n'] and optionally ['format', 'seed'], got ['seed']"),
        ({"task": "generate", "n": 1, "format": "gif"}, "format 'gif': must be one of list, png"),
        ({"task": "encode", "images": [[0.0] * 784], "format": "png"}, "takes ['images'], got ['format', 'images']"),
        ({"task": "generate", "n": 2, "seed": 0, "images": [[0.0] * 784]}, "takes"),
        ({"task": "generate", "n": 0, "seed": 0}, "n:"),
        ({"task": "generate", "n": 10**9, "seed": 0}, "n:"),
        ({"task": "generate", "n": 1, "seed": -1}, "seed"),
        ({"task": "generate", "n": 1, "seed": 2**63}, "seed"),
        ({"task": "encode", "images": []}, "rows"),
        ({"task": "encode", "images": [[0.0] * 783]}, "784"),
        ({"task": "encode", "images": [[math.nan] * 784]}, "[0, 1]"),
        ({"task": "reconstruct", "images": [[1.5] * 784]}, "[0, 1]"),
        ({"task": "reconstruct", "images": [[0, 255] * 392]}, "from 0.0 to 255.0; divide bytes by 255"),
        ({"task": "decode", "latents": [[math.inf]]}, "finite"),
        ({"task": "decode", "latents": [[math.nan]]}, "finite"),
        ({"task": "decode", "latents": [[-1e300]]}, "finite"),  # beyond the range of float32
        ({"task": "decode", "latents": [[0.0]], "temperature": 1}, "temperature"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(request_, word):
    with pytest.raises(ValueError) as caught:
        check(Request(**request_))
    assert word in str(caught.value)


def test_all_tasks_of_a_request_count(served):
    """Otherwise twenty tasks of a thousand digits each would be answered at once."""
    half = {"task": "generate", "n": MAX_DIGITS // 2, "seed": 0}
    with pytest.raises(Exception, match=rf"at most {MAX_DIGITS} digits .* got {MAX_DIGITS + 1}") as caught:
        served.predict([Request(**half), Request(**half), Request(task="encode", images=[[0.0] * 784])])
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_latents_of_the_wrong_size_are_refused(served):
    with pytest.raises(Exception, match="latents: 3 values") as caught:
        answer(served, task="decode", latents=[[0.0] * (served.model.vae.config.latent_dim + 1)])
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"  # a 400, not a 500
