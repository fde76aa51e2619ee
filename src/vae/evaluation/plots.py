"""Pictures from arrays. Grids of digits are PNGs of their own pixels. The latent space is drawn by matplotlib."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vae.idx import SIDE

SCALE = 2  # screen pixels for each pixel of a digit, in each direction
GAP = 2  # pixels between two digits


def tile(images: NDArray, columns: int) -> NDArray[np.uint8]:
    """Arranges digits in rows of `columns`, white on black, with grey lines between them.
    Shapes: images (N, 784), intensities in [0, 1] -> (height, width)."""
    grey = np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
    rows = -(-len(grey) // columns)
    cell = SIDE + GAP
    canvas = np.full((rows * cell + GAP, columns * cell + GAP), 60, dtype=np.uint8)
    for index, image in enumerate(grey):
        top, left = (GAP + cell * place for place in divmod(index, columns))
        canvas[top : top + SIDE, left : left + SIDE] = image
    return canvas


def grid(images: NDArray, columns: int) -> Image.Image:
    """Digits (N, 784) as a picture of rows of `columns`."""
    picture = Image.fromarray(tile(images, columns))
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


def save_grid(path: Path, images: NDArray, columns: int) -> None:
    """Writes digits (N, 784) as a PNG of rows of `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns).save(path, optimize=True)


def principal_components(points: NDArray) -> tuple[NDArray, NDArray]:
    """The coordinates on the two directions with the largest variance, and the share of variance of each.
    Shapes: (N, D) -> (N, 2), (2,)."""
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(vectors.shape[1])])  # fix the sign
    return centred @ vectors, values / max((centred**2).sum(), np.finfo(float).tiny)


def save_latent_space(path: Path, mu: NDArray, labels: NDArray) -> None:
    """Draws posterior means (N, D) on their two principal components, coloured by class (N,), with the number of each
    class at its median."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here, because it takes half a second
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    points, share = principal_components(mu)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    classes = max(10, int(labels.max()) + 1)
    colours, most = "tab10" if classes == 10 else "turbo", classes - 0.5
    scatter = axes.scatter(points[:, 0], points[:, 1], c=labels, cmap=colours, vmin=-0.5, vmax=most, s=3, linewidths=0)
    figure.colorbar(scatter, ticks=range(0, classes, math.ceil(classes / 30)), label="class")
    for label in np.unique(labels):
        x, y = np.median(points[labels == label], axis=0)
        outline = withStroke(linewidth=3, foreground="white")
        axes.text(x, y, str(label), fontsize=13, weight="bold", ha="center", va="center", path_effects=[outline])
    axes.set_title("Posterior means of the test images")
    axes.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({share[1]:.0%})")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the version would change the bytes
