"""Distances between samples and data: of their features, of their classes, and to the nearest images.

Both sides of a comparison must have features of the same kind of images: binary pixels or grey values. All sums over a
data set are in float64."""

import torch
from torch import Tensor

CHUNK = 1000  # rows of a matrix of distances at a time: 80 MB of float64 for ten thousand columns


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the sample covariance of a data set. Shapes: (N, F) -> (F,), (F, F)."""
    return features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1)


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix. Eigenvalues below zero count as zero. (F, F)."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), of Gaussians with the moments of two data sets (Heusel et al. 2017).
    tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2). This needs no root of a matrix that is not
    symmetric, and loses no digits if eigenvalues are near zero.
    Shapes: (N, F), (M, F), in float64 -> squared units of the features."""
    (mean, covariance), (other_mean, other_covariance) = moments(one), moments(other)
    cross = torch.linalg.svdvals(square_root(covariance) @ square_root(other_covariance)).sum()  # features
    traces = covariance.trace() + other_covariance.trace()
    return ((mean - other_mean).square().sum() + traces - 2 * cross).item()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 by one matrix product. Shapes: x (N, F), y (M, F) -> (N, M)."""
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)  # (N, M)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_min_(0)


def squared_radii(points: Tensor, neighbours: int) -> Tensor:
    """The squared distance from each point to its k-th nearest other point. Shapes: (N, F) with N > k -> (N,)."""
    parts = []
    for start, part in zip(range(0, len(points), CHUNK), points.split(CHUNK), strict=True):
        distances = squared_distances(part, points)  # (B, N)
        distances.diagonal(start).fill_(torch.inf)  # a point is not its own neighbour
        parts.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(parts)


def coverage(points: Tensor, reference: Tensor, neighbours: int) -> float:
    """The share of points within the k-nearest-neighbour ball of any reference point (Kynkaanniemi et al. 2019, eq. 1).
    For precision the points are samples and the reference is the data. For recall it is the other way round.
    Shapes: points (N, F), reference (M, F) with M > k."""
    radii = squared_radii(reference, neighbours)  # (M,)
    inside = [(squared_distances(part, reference) <= radii).any(dim=1) for part in points.split(CHUNK)]  # (B,)
    return torch.cat(inside).double().mean().item()


def compare(samples: Tensor, data: Tensor, neighbours: int) -> dict[str, float]:
    """Frechet distance, precision and recall of samples against data. Shapes: features (N, F), (M, F)."""
    return {
        "frechet": frechet_distance(samples, data),
        "precision": coverage(samples, data, neighbours),
        "recall": coverage(data, samples, neighbours),
    }


def class_shares(probabilities: Tensor) -> Tensor:
    """The share of images for which each class is the most probable. Shapes: (N, C) -> (C,)."""
    count = torch.bincount(probabilities.argmax(dim=1), minlength=probabilities.shape[1])
    return count.double() / len(probabilities)


def entropy(shares: Tensor) -> float:
    """-sum_c p_c log p_c, in nats. Its maximum log C means that all classes are equally frequent. Shapes: (C,)."""
    return torch.special.entr(shares).sum().item()  # classes


def nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """For each image, the training image with the smallest L2 distance in pixel space, and that distance.
    Shapes: images (N, P), train (M, P), both in [0, 1] -> index (N,), distance (N,)."""
    parts = [squared_distances(part, train).argmin(dim=1) for part in images.split(CHUNK // 10)]  # (B,)
    index = torch.cat(parts)
    # The distance is computed again, because near zero the product above is only rounding error.
    return index, (images - train[index]).double().norm(dim=1)
