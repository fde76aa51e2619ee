"""Distances and neighbours, compared with closed forms and on points with known neighbours."""

import math

import pytest
import torch

from vae.evaluation import distances


def points(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(*places: float) -> torch.Tensor:
    """Points on a line, (N, 1)."""
    return torch.tensor(places, dtype=torch.float64)[:, None]


def standardized(count: int, width: int) -> torch.Tensor:
    """Points with a mean of zero and the identity as covariance, up to rounding."""
    x = points(count, width)
    x = x - x.mean(dim=0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_gaussians_on_common_axes():
    """If both covariances are diagonal, the distance is |m1 - m2|^2 + sum (s1 - s2)^2."""
    x = standardized(500, 4)
    scales, others = torch.tensor([1.0, 2, 0, 0.5]).double(), torch.tensor([3.0, 2, 1, 0]).double()
    mean, other_mean = torch.tensor([1.0, 0, -2, 5]).double(), torch.tensor([0.0, 0, 1, 5]).double()
    expected = (mean - other_mean).square().sum() + (scales - others).square().sum()
    found = distances.frechet_distance(x * scales + mean, standardized(700, 4) * others + other_mean)
    assert found == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_distance_of_gaussians_on_any_axes():
    """tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1 C2, here from a general solver."""
    one, other = points(300, 5) @ points(5, 5, 1), points(400, 5, 2) @ points(5, 5, 3) + 1
    covariances = torch.cov(one.T), torch.cov(other.T)
    cross = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.sqrt().sum()
    expected = (one.mean(dim=0) - other.mean(dim=0)).square().sum() + sum(c.trace() for c in covariances) - 2 * cross
    assert distances.frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-10)
    assert distances.frechet_distance(other, one) == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("rank", [6, 2])
def test_frechet_distance_of_equal_sets_is_zero(rank):
    """It is zero even if the order differs, most features never vary and the mean is large."""
    x = points(200, rank) @ points(rank, 6, 1) + 100
    order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
    assert distances.frechet_distance(x, x[order]) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_does_not_depend_on_axes():
    one, other = points(300, 4), points(300, 4, 1) * 2
    turn = torch.linalg.qr(points(4, 4, 2))[0]
    expected = distances.frechet_distance(one, other)
    assert distances.frechet_distance(one @ turn, other @ turn) == pytest.approx(expected, rel=1e-12)


def test_one_feature():
    assert distances.frechet_distance(line(-1, 1), line(2, 6)) == pytest.approx(4**2 + 2 * (2 - 1) ** 2)


def test_the_square_root_squares_to_the_matrix():
    x = points(3, 5)  # rank 3
    covariance = x.T @ x
    root = distances.square_root(covariance)
    torch.testing.assert_close(root @ root, covariance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(root, root.T)


def test_squared_distances():
    x, y = points(7, 3), points(5, 3, 1)
    torch.testing.assert_close(distances.squared_distances(x, y), torch.cdist(x, y).square())
    assert (distances.squared_distances(x, x) >= 0).all()


def test_radii_reach_the_kth_other_point():
    x = line(0, 1, 3, 7, 7)
    assert distances.squared_radii(x, 1).tolist() == [1, 1, 4, 0, 0]
    assert distances.squared_radii(x, 2).tolist() == [9, 4, 9, 16, 16]


def test_precision_and_recall_of_known_sets():
    """The data are at 0, 1, 2 and 100, 101, 102. With k = 1 each ball has radius 1."""
    data = line(0, 1, 2, 100, 101, 102)
    near = line(0.5, 1.5, 1.6, -0.9)  # near one of the two modes, and inside the balls
    assert distances.coverage(near, data, 1) == 1
    assert distances.coverage(data, near, 1) == pytest.approx(2 / 6)  # 0 and 1: the ball around 1.6 ends before 2
    far = line(0, 3.5, 50, 101)
    assert distances.coverage(far, data, 1) == 0.5
    found = distances.compare(near, data, 1)
    assert (found["precision"], found["recall"]) == (1, 2 / 6)
    assert found["frechet"] == distances.frechet_distance(near, data)


def test_only_near_sets_cover_each_other():
    x = points(60, 4)
    assert distances.coverage(x, x, 3) == 1
    assert distances.coverage(x + 100, x, 3) == 0


@pytest.mark.parametrize("chunk", [1, 7, 50, 60, 1000])
def test_chunks_equal_the_whole(monkeypatch, chunk):
    """The points are integers, so their distances are exact. Most chunks divide neither number of points."""
    one, other = (points(53, 3) * 4).round(), (points(61, 3, 1) * 4).round()
    whole = distances.squared_radii(one, 3), distances.coverage(one, other, 3), distances.coverage(other, one, 3)
    assert 0 < whole[1] < 1
    monkeypatch.setattr(distances, "CHUNK", chunk)
    assert torch.equal(distances.squared_radii(one, 3), whole[0])
    assert (distances.coverage(one, other, 3), distances.coverage(other, one, 3)) == whole[1:]


def test_class_shares_and_their_entropy():
    """The entropy is log C for equal shares, and zero for a single class. A class without images adds nothing."""
    probabilities = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1, 2, 2, 0, 1]] * 0.9 + 0.02
    shares = distances.class_shares(probabilities)
    assert shares.tolist() == [3 / 8, 3 / 8, 2 / 8, 0]
    assert distances.entropy(shares) == pytest.approx(-2 * 3 / 8 * math.log(3 / 8) - 2 / 8 * math.log(2 / 8))
    assert distances.entropy(torch.full((10,), 0.1, dtype=torch.float64)) == pytest.approx(math.log(10))
    assert distances.entropy(torch.eye(10, dtype=torch.float64)[3]) == 0


def test_nearest_finds_the_image_and_the_distance():
    """The result agrees with all distances one by one. A copy has a distance of exactly zero."""
    train = torch.rand(40, 784, generator=torch.Generator().manual_seed(0))
    images = torch.rand(250, 784, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = train[17], train[5] * 0.9
    index, distance = distances.nearest(images, train)
    expected = torch.stack([(image - train).double().norm(dim=1) for image in images])  # (N, M)
    torch.testing.assert_close(distance, expected.min(dim=1).values)
    assert torch.equal(index, expected.argmin(dim=1))
    assert index[:2].tolist() == [17, 5]
    assert distance[0] == 0
