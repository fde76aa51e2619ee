"""Where a model computes."""

import pytest
import torch

from vae import device
from vae.errors import InputError


def test_device():
    """cpu is there; auto is CUDA where there is one."""
    assert device.choose("cpu").type == "cpu"
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_device_that_is_not_there(monkeypatch):
    """An error that names the key and the way out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"params\.yaml: train\.device: no cuda device.*auto or cpu"):
        device.choose("cuda")
    assert device.choose("auto").type == "cpu"
