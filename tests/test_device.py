"""The device that computes."""

import pytest
import torch

from vae import device
from vae.errors import InputError


def test_device():
    """`auto` is CUDA if there is a CUDA device, else the CPU."""
    assert device.choose("cpu").type == "cpu"
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_missing_device(monkeypatch):
    """The error names the key and the way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"params\.yaml: train\.device: no cuda device.*auto or cpu"):
        device.choose("cuda")
    assert device.choose("auto").type == "cpu"
