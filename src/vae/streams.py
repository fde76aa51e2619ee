"""Random numbers: every purpose has a stream of its own, so that no two uses of a seed ever draw the same numbers.

A stream is a generator of torch whose seed is a hash of the user's seed and of the purpose (NumPy's SeedSequence).
Otherwise the noise of an evaluation with seed 0 would be the noise of a training with seed 0. Torch's generator on the
CPU takes 32 bits of a seed. The highest bit is always set here, and a seed of the user is below 2^31. So the one stream
that has the user's seed itself, the binarization of the test images, is met by no other."""

from typing import Literal, get_args

import numpy as np
import torch

Purpose = Literal[
    "weights",  # initial weights of the VAE
    "order",  # of the images in a training
    "augmentation",
    "pixels",  # binary pixels of a training
    "posterior",  # noise of q(z|x) in a training
    "validation pixels",
    "validation posterior",
    "test posterior",  # noise of the importance-weighted bound
    "grey posterior",  # noise of the score against grey values
    "fitted pixels",  # of the training images that show overfitting
    "fitted posterior",
    "samples",  # of the prior, in the stage `generate`
    "epoch samples",  # of the prior, in the pictures of a training
    "served samples",
    "annealing images",
    "annealing",
    "classifier weights",
    "classifier order",
    "classifier shifts",
    "quality",
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def derived(seed: int, purpose: Purpose) -> int:
    """A 32-bit seed with its highest bit set. Equal arguments give equal seeds on every machine."""
    (word,) = np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint32)
    return int(word) | 1 << 31


def stream(seed: int, purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator at the start of the stream of this seed and purpose."""
    return torch.Generator(device).manual_seed(derived(seed, purpose))


def binarization(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The stream of the binary test images, whose hash is published: torch's own for this seed."""
    return torch.Generator(device).manual_seed(seed)
