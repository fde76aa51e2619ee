"""Streams of random numbers: each purpose and seed has its own, and they never meet."""

from itertools import pairwise, product

import numpy as np
import torch

from vae import data, params, streams
from vae.model import VAE

SEEDS = (0, 1, 2, 7, 2**31 - 1)
LONG = 20_000  # numbers of each stream


def test_no_two_streams_share_a_run():
    """Of all prefixes, no 64-bit number occurs twice. A shared run of two numbers would be one."""
    generators = [streams.stream(seed, purpose) for seed, purpose in product(SEEDS, streams.PURPOSES)]
    generators += [streams.binarization(seed) for seed in SEEDS]
    drawn = [torch.randint(0, 2**62, (10_000,), generator=generator).numpy() for generator in generators]
    joined = np.concatenate(drawn)
    assert len(np.unique(joined)) == len(joined)


def test_uniform_and_normal_numbers_of_equal_seeds_differ():
    """For equal seeds, long prefixes of the normal noise of all purposes have no pair of values in common."""
    seen: dict[bytes, str] = {}
    for purpose in streams.PURPOSES:
        noise = torch.randn(LONG, generator=streams.stream(0, purpose)).numpy()
        for one, two in pairwise(noise):
            key = one.tobytes() + two.tobytes()
            assert seen.setdefault(key, purpose) == purpose
    noise = torch.randn(LONG, generator=streams.binarization(0)).numpy()
    assert not any(one.tobytes() + two.tobytes() in seen for one, two in pairwise(noise))


def test_the_noise_of_an_evaluation_is_not_in_the_initial_weights(digits, small):
    """With one seed for both, noise of the evaluation was once equal to initial means of the prior's mixture."""
    config = small(model={"prior": "flow", "latent_dim": 32, "mixture_components": 512})
    torch.manual_seed(streams.derived(0, "weights"))
    initial = VAE(config.model).prior.base.mean.detach().numpy()  # (C, D)
    rows = {row[:4].tobytes() for row in initial}
    data.binarize(digits.images[:360], streams.binarization(0))
    noise = torch.randn(2040, 32, generator=streams.stream(0, "test posterior")).numpy()
    values = noise.ravel()
    assert not any(values[start : start + 4].tobytes() in rows for start in range(len(values) - 4))


def test_equal_seeds_and_purposes_give_equal_numbers():
    one, two = (torch.rand(5, generator=streams.stream(3, "order")) for _ in range(2))
    assert torch.equal(one, two)
    assert streams.derived(0, "weights") == 3_533_857_372  # as on every machine


def test_no_derived_seed_is_a_seed_of_the_user():
    """The seeds of params.yaml are below 2^31, and derived ones are not. So nothing meets the test pixels."""
    assert all(streams.derived(seed, purpose) >= 2**31 for seed, purpose in product(SEEDS, streams.PURPOSES))
    assert params.Evaluate.model_fields["seed"].metadata[-1].le == 2**31 - 1


def test_the_binarization_of_the_test_images_stays(digits):
    """The pixels are those of torch's own generator, as in all published figures."""
    grey = digits.images[:50]
    expected = data.binarize(grey, torch.Generator().manual_seed(0))
    assert torch.equal(data.binarize(grey, streams.binarization(0)), expected)
