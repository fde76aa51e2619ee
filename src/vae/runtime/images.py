"""Your own images: a folder of pictures with one subfolder for each class, or four IDX files."""

import hashlib
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vae import idx
from vae.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
PARTS = "train", "test"  # two folders of classes, if the pictures are split already
SHARE = 5  # otherwise every fifth picture is a test image, as in the bundled digits
FEWEST = 5, 2  # training and test images: enough for one validation image, and for a standard error
CLASSES = 256  # the most that fit into labels of one byte
SIZE = idx.SIDE, idx.SIDE
MOST_BYTES = 1 << 31  # of an IDX file: more than two million images
MOST_PIXELS = 1 << 26  # of a picture; a small file can hide far more
CACHE = "files", "md5"  # the end of DVC's cache, to which `dvc add` may link
Part = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) and labels (N,), uint8


def load(
    folder: Path, names: tuple[str, ...], *, resize: bool, grey: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Images, labels and the number of test images, which are the last. The folder has the four IDX files `names`, or
    pictures. Shapes: (N, 28, 28), (N,).
    Raises InputError if an image is not 28x28 or not grey, and `resize` or `grey` does not allow to change it."""
    if not folder.is_dir():
        raise InputError(f"data.path: {folder} is not a folder; give the folder that has the images")
    if any(_find(folder, name) for name in names):
        train, test = (_read_idx(folder, names[start : start + 2], resize) for start in (0, 2))
    else:
        train, test = _read_pictures(folder, resize, grey, seed)
    counts = len(train[1]), len(test[1])
    if counts[0] < FEWEST[0] or counts[1] < FEWEST[1]:
        raise InputError(
            f"data.path: {folder}: training images: {counts[0]}, test images: {counts[1]}; add images, the fewest are "
            f"{FEWEST[0]} and {FEWEST[1]}"
        )
    return np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]]), counts[1]


def _fitted(image: Image.Image, path: Path, resize: bool) -> np.ndarray:
    """The pixels of a grey image, stretched to 28x28 if `resize` allows it."""
    if image.size != SIZE and not resize:
        width, height = image.size
        raise InputError(f"{path}: {width}x{height} pixels, not {SIZE[0]}x{SIZE[1]}; data.resize: true resizes images")
    return np.asarray(image if image.size == SIZE else image.resize(SIZE, Image.Resampling.BICUBIC))


def _own(path: Path, folder: Path) -> Path:
    """A path in a folder. Raises InputError if it is a link out of the folder (except to DVC's cache), or no file."""
    target = path.resolve()
    if not target.is_file():
        raise InputError(f"{path}: is no file; replace or remove it")
    if not target.is_relative_to(folder.resolve()) and target.parts[-4:-2] != CACHE:
        raise InputError(f"{path}: is a link out of {folder}, which may lead to a private file; copy the file here")
    return path


# IDX files.


def _find(folder: Path, name: str) -> Path | None:
    """An IDX file, as it is or compressed."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, names: tuple[str, ...], resize: bool) -> Part:
    images, labels = (_idx(folder, name, kind) for name, kind in zip(names, ("images", "labels"), strict=True))
    if len(images) != len(labels):
        raise InputError(f"{folder}: {names[0]} has {len(images)} images, but {names[1]} has {len(labels)} labels")
    if images.shape[1:] != SIZE:
        images = np.stack([_fitted(Image.fromarray(image), folder / names[0], resize) for image in images])
    return images, labels


def _idx(folder: Path, name: str, kind: str) -> np.ndarray:
    """The content of an IDX file: (N, height, width) or (N,)."""
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder / name}: no such file; a folder with IDX files must have all four")
    path = _own(path, folder)
    try:
        content = path.read_bytes()
        content = idx.decompressed(content, MOST_BYTES) if path.suffix == ".gz" else content
        return idx.array(np.frombuffer(content, np.uint8), kind)
    except (EOFError, zlib.error, ValueError) as error:
        raise InputError(f"{path}: not a whole IDX file of {kind} in unsigned bytes ({error}); replace it") from error


# Pictures in one subfolder for each class, which torchvision's ImageFolder reads too.


def _subfolders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _read_pictures(folder: Path, resize: bool, grey: bool, seed: int) -> tuple[Part, Part]:
    """The pictures of a folder. The label of a picture is the place of its class in the sorted list of all classes."""
    names = _subfolders(folder)
    split = names == {*PARTS}
    if not split and PARTS[0] in names:
        others = ", ".join(sorted(names - {PARTS[0]})) or "nothing"
        raise InputError(f"data.path: {folder} has train/ next to {others}; a split folder has train/ and test/ alone")
    roots = [folder / name for name in PARTS] if split else [folder]
    classes = sorted({name for root in roots for name in _subfolders(root)})
    loose = [path for root in roots for path in _pictures(root.iterdir())]
    if loose or not 1 <= len(classes) <= CLASSES:
        raise InputError(
            f"data.path: {folder}: subfolders: {len(classes)}, pictures outside of them: {len(loose)}; put pictures "
            f"into one subfolder for each class (1 to {CLASSES})"
        )
    parts = []
    for root in roots:
        found = [(path, label) for label, name in enumerate(classes) for path in _pictures((root / name).rglob("*"))]
        parts.append(_ordered([(_pixels(_own(path, folder), resize, grey), label) for path, label in found], seed))
    if not split:
        cut = len(parts[0]) - len(parts[0]) // SHARE
        parts = [parts[0][:cut], parts[0][cut:]]
    train, test = ((np.array([x for x, _ in part]), np.array([label for _, label in part])) for part in parts)
    return train, test


def _ordered(pictures: list[tuple[np.ndarray, int]], seed: int) -> list[tuple[np.ndarray, int]]:
    """Pictures in a random order that depends on the seed and on their pixels alone. So the names of files do not
    matter, and pictures that are added or removed leave the others in their order."""
    return sorted(pictures, key=lambda picture: hashlib.sha256(b"%d " % seed + picture[0].tobytes()).digest())


def _pixels(path: Path, resize: bool, grey: bool) -> np.ndarray:
    """The grey pixels of a PNG or JPEG file. (28, 28) uint8."""
    try:
        with Image.open(path) as file:
            if math.prod(file.size) > MOST_PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels are too many")
            image = ImageOps.exif_transpose(file)  # photographs are stored as the camera was held
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); replace or remove it") from error
    if image.mode[0] in "IF":
        raise InputError(f"{path}: has more than 8 bits for each pixel; save it with 8")
    rgba = np.asarray(image.convert("RGBA"))  # (H, W, 4)
    if rgba[..., 3].min() < 255:
        raise InputError(f"{path}: is transparent in places; save it without transparency")
    if not grey and (rgba[..., :3] != rgba[..., :1]).any():
        raise InputError(f"{path}: is in colour; data.grey: true turns colour into grey")
    return _fitted(image.convert("RGB").convert("L"), path, resize)
