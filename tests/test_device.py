"""Where a model computes."""

import pytest
import torch

from vae import device
from vae.errors import InputError


def test_device():
    """cpu is there; auto is CUDA where there is one."""
    assert device.choose("cpu").type == "cpu"
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_device_that_is_not_there(monkeypatch, name):
    """An error that names the key and the way out."""
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(InputError, match=rf"params\.yaml: train\.device: no {name} device.*auto or cpu"):
        device.choose(name)
    assert device.choose("auto").type == "cpu"
