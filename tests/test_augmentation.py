"""Augmentation: small random affine maps, one for each image."""

import pytest
import torch
import torch.nn.functional as F

from vae import augmentation
from vae.idx import SIDE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images(digits):
    """A hundred digits. (100, P) uint8."""
    return digits.images[:100]


def test_share_of_augmented_images(digits):
    """The share is right within 4 standard deviations. The other images stay bit for bit."""
    images = digits.images[:1000]
    moved = (augmentation.augment(images, 0.3, generator()) != images).any(dim=1)
    assert abs(moved.sum().item() - 300) < 4 * (1000 * 0.3 * 0.7) ** 0.5


def test_no_augmentation_draws_no_random_numbers(images):
    """The state of the generator does not change, so later draws stay the same."""
    source = generator()
    before = source.get_state()
    assert augmentation.augment(images, 0.0, source) is images
    assert torch.equal(source.get_state(), before)


def test_repeatable(images):
    """Equal seeds give equal images, and the input does not change."""
    before = images.clone()
    first, second, other = (augmentation.augment(images, 1.0, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_each_image_has_its_own_map(images):
    """A hundred copies of one image become a hundred images."""
    moved = augmentation.augment(images[:1].expand(100, -1), 1.0, generator())
    assert len(torch.unique(moved, dim=0)) == 100


def test_maps_are_close_to_the_identity(images):
    """Each entry of a map is within the named bounds, and the mean map is nearly the identity."""
    maps = augmentation.affine_maps(20_000, generator())
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    bounds = torch.tensor([[0.14, 0.43, 0.12], [0.23, 0.14, 0.12]])
    assert ((maps - identity).abs() <= bounds).all()
    # the mean cosine of an angle, uniform up to a, is 1 - a^2 / 6
    torch.testing.assert_close(maps.mean(dim=0), identity * (1 - 0.2**2 / 6), atol=0.005, rtol=0)


def test_bounds_of_zero_change_nothing(images, monkeypatch):
    for bound in ("ROTATION", "SCALE", "SHEAR", "SHIFT"):
        monkeypatch.setattr(augmentation, bound, 0.0)
    assert torch.equal(augmentation.augment(images, 1.0, generator()), images)


def test_a_shift_is_a_shift(images, monkeypatch):
    """Each pixel takes the value of the pixel two to the right and two below."""
    for bound in ("ROTATION", "SCALE", "SHEAR"):
        monkeypatch.setattr(augmentation, bound, 0.0)
    monkeypatch.setattr(augmentation, "SHIFT", 2 / 14)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(shape))
    moved = augmentation.augment(images, 2.0, generator()).view(-1, SIDE, SIDE)
    expected = F.pad(images.view(-1, SIDE, SIDE)[:, 2:, 2:], (0, 2, 0, 2))
    assert torch.equal(moved, expected)
