"""Pictures: grids with exact pixels, and the same bytes each time."""

import numpy as np
import pytest
from PIL import Image

from vae.evaluation import plots
from vae.idx import SIDE


@pytest.fixture
def images():
    """Seven random digits."""
    return np.random.default_rng(0).random((7, 784)).astype(np.float32)


@pytest.fixture
def latents():
    """Posterior means near a plane in five dimensions, and labels."""
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(300, 2)) * [5, 2]
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    mu = plane @ axes[:2] + 0.01 * rng.normal(size=(300, 5)) + rng.normal(size=5)
    return mu.astype(np.float32), rng.integers(0, 10, 300)


def cell(canvas: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels of one digit of a grid."""
    top, left = (plots.GAP + (SIDE + plots.GAP) * place for place in (row, column))
    return canvas[top : top + SIDE, left : left + SIDE]


def test_tile_places_every_digit(images):
    """Digits fill rows from the top left, with each pixel right within half a grey level.
    The rest of the last row stays empty."""
    canvas = plots.tile(images, 3)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (3 * 30 + 2, 3 * 30 + 2)
    for index, image in enumerate(images):
        found = cell(canvas, *divmod(index, 3))
        assert np.abs(found - image.reshape(28, 28) * 255).max() <= 0.5 + 1e-4
    outside = canvas.copy()
    for index in range(7):
        cell(outside, *divmod(index, 3))[:] = outside[0, 0]
    assert (outside == outside[0, 0]).all()
    assert 0 < outside[0, 0] < 255


def test_tile_clips():
    """Values below 0 are black, and values above 1 are white."""
    canvas = plots.tile(np.stack([np.full(784, -0.2), np.full(784, 1.2), np.zeros(784), np.ones(784)]), 4)
    assert [np.unique(cell(canvas, 0, column)).tolist() for column in range(4)] == [[0], [255], [0], [255]]


def test_save_grid(tmp_path, images):
    """The file is a grey PNG with the enlarged pixels of the grid, and the same bytes each time."""
    first, second = tmp_path / "new" / "folder" / "grid.png", tmp_path / "again.png"
    for path in (first, second):
        plots.save_grid(path, images, 4)
    with Image.open(first) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "L"
        pixels = np.asarray(picture)
    expected = plots.tile(images, 4).repeat(plots.SCALE, axis=0).repeat(plots.SCALE, axis=1)
    assert np.array_equal(pixels, expected)
    assert first.read_bytes() == second.read_bytes()


def test_principal_components(latents):
    """Directions and shares of variance agree with the singular value decomposition, up to the sign."""
    mu = latents[0].astype(np.float64)
    points, share = plots.principal_components(mu)
    centred = mu - mu.mean(axis=0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs(centred @ directions[:2].T), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(share, values[:2] ** 2 / (values**2).sum(), rtol=1e-10)
    assert share[0] > share[1]
    assert share.sum() == pytest.approx(1, abs=1e-3)
    assert points.shape == (300, 2)


@pytest.mark.parametrize("signs", [[1, 1, 1, 1, -1], [1, 1, 1, -1, 1]])
def test_principal_components_have_a_fixed_sign(latents, monkeypatch, signs):
    """Neither the order of the images nor the sign of an eigenvector changes a point."""
    mu = latents[0].astype(np.float64)
    order = np.random.default_rng(2).permutation(len(mu))
    points, _ = plots.principal_components(mu)
    values, vectors = np.linalg.eigh(np.cov(mu[order].T) * (len(mu) - 1))
    monkeypatch.setattr(np.linalg, "eigh", lambda _: (values, vectors * signs))
    turned, _ = plots.principal_components(mu[order])
    np.testing.assert_allclose(turned, points[order], rtol=1e-6, atol=1e-9)


def test_two_latents(tmp_path):
    """The smallest model has two latents. Its plane is drawn without loss, but rotated."""
    mu = np.random.default_rng(3).normal(size=(50, 2))
    points, share = plots.principal_components(mu)
    assert share.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.linalg.norm(mu - mu.mean(axis=0), axis=1), rtol=1e-10)
    plots.save_latent_space(tmp_path / "space.png", mu, np.arange(50) % 10)
    assert (tmp_path / "space.png").stat().st_size > 1000


def test_charts_are_the_same_each_time(tmp_path, latents):
    """Charts are not blank, other data give another chart, and the same data give the same bytes."""
    mu, labels = latents
    charts = {
        "space": lambda path: plots.save_latent_space(path, mu, labels),
        "labels": lambda path: plots.save_latent_space(path, mu, labels[::-1]),
    }
    contents = {}
    for name, draw in charts.items():
        first, second = tmp_path / "new" / f"{name}.png", tmp_path / f"{name}.png"
        draw(first)
        draw(second)
        contents[name] = first.read_bytes()
        assert contents[name] == second.read_bytes()
        with Image.open(first) as picture:
            assert picture.format == "PNG"
            assert not {"Software", "Creation Time"} & set(picture.info)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert len(set(contents.values())) == len(contents)


def test_every_class_has_a_colour(tmp_path, latents):
    """Labels 20 and 25 are told apart, as in EMNIST's letters."""
    mu, labels = latents
    few, many = labels // 5 + 20, labels // 5 * 5 + 20
    assert len(np.unique(few)) == len(np.unique(many)) == 2
    for name, found in (("few", few), ("many", many)):
        plots.save_latent_space(tmp_path / f"{name}.png", mu, found)
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("few", "many")]
    colours = [{*map(tuple, picture.reshape(-1, 3))} for picture in pictures]
    assert colours[0] != colours[1]


@pytest.mark.filterwarnings("error")
def test_a_latent_that_collapsed(tmp_path):
    """Without any variance there is still a picture, and no warning of a division by zero."""
    plots.save_latent_space(tmp_path / "space.png", np.zeros((20, 3)), np.arange(20) % 10)
    assert (tmp_path / "space.png").stat().st_size > 1000
