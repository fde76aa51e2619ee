"""Data sets as whole uint8 tensors, their splits, and binarization."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae import idx
from vae.errors import InputError
from vae.idx import PIXELS, SIDE


class Split(NamedTuple):
    images: Tensor  # (N, 784) uint8, grey
    labels: Tensor  # (N,) uint8


def read_idx(path: Path, kind: str) -> Tensor:
    """Reads an IDX file of 28x28 images, (N, 784), or of labels, (N,), as uint8.
    The file is memory-mapped, not copied. Raises InputError if it is missing, or is not a whole file of that kind."""
    remedy = "fetch it again with `dvc repro --force download`"
    if not path.is_file():
        raise InputError(f"{path}: no such file; {remedy}")
    try:
        found = idx.array(np.memmap(path, mode="c"), kind)  # changes stay in memory
        if kind == "images" and found.shape[1:] != (SIDE, SIDE):
            raise ValueError("its images are not 28x28")
    except ValueError as error:
        raise InputError(f"{path}: not a whole IDX file of {kind} ({error}); {remedy}") from error
    content = torch.from_numpy(found)
    return content.view(-1, PIXELS) if kind == "images" else content


def load(folder: Path, split: str) -> Split:
    """Loads the `train` or the `t10k` (test) files of a data set."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte", "images")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte", "labels")
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} images but {len(labels)} labels; `dvc repro --force download`")
    return Split(images, labels)


def split_validation(train: Tensor, validation: int) -> tuple[Tensor, Tensor]:
    """Splits off the last `validation` training images, at most a fifth of them (small data sets have few).
    Shapes: train (N, ...) -> (N - V, ...), (V, ...)."""
    count = min(validation, len(train) // 5)
    return train[: len(train) - count], train[len(train) - count :]


def binarize(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Draws x ~ Bernoulli(grey / 255) (Salakhutdinov & Murray 2008), as float32 zeros and ones.
    Shapes: grey (B, 784) uint8 -> (B, 784)."""
    uniform = torch.rand(grey.shape, generator=generator, device=grey.device)  # (B, 784) in [0, 1)
    return (uniform.mul_(255) < grey).float()


def unit(grey: Tensor) -> Tensor:
    """Grey bytes as intensities in [0, 1]. Shapes: (B, 784) uint8 -> (B, 784) float32."""
    return grey.float().div_(255)
