"""Folders of your own images: pictures in class folders as torchvision reads them, IDX files, and what is refused."""

from vae.runtime import images, mirrors

import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from tools import reachable
from vae.errors import InputError

SIDE = 28


def random(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (SIDE, SIDE)))).astype(np.uint8)


def save(array: np.ndarray, path: Path, **options) -> Path:
    """Writes an array as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Thirty PNG pictures in three class folders, one of them deeper. Other files are there too."""
    for number, array in enumerate(random(30)):
        save(array, tmp_path / "mine" / "abc"[number % 3] / ("deep" if number == 7 else "") / f"{number}.png")
    for name in ("notes.txt", "a/Thumbs.db", "a/._1.png", ".git/x.png"):
        path = tmp_path / "mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    return tmp_path / "mine"


def load(folder: Path, resize: bool = False, grey: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    return images.load(folder, mirrors.FILES, resize=resize, grey=grey, seed=seed)


def pairs(arrays: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    """Each picture with its label, without an order."""
    return {(array.tobytes(), int(label)) for array, label in zip(arrays, labels, strict=True)}


def refused(folder: Path, **options) -> str:
    """The one line of the error."""
    with pytest.raises(InputError) as caught:
        load(folder, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_pictures_and_labels_are_those_of_torchvision(folder):
    shutil.rmtree(folder / ".git")  # torchvision takes it for a class
    (folder / "a/._1.png").unlink()  # and this one for a picture
    reference = ImageFolder(str(folder), loader=lambda path: np.asarray(Image.open(path)))
    found, labels, test = load(folder)
    assert pairs(found, labels) == pairs(*map(np.stack, zip(*reference, strict=True)))
    assert (found.shape, found.dtype, test) == ((30, SIDE, SIDE), np.uint8, 6)
    assert len({*labels[-test:]}) > 1  # the pictures are not in the order of the classes


def test_the_seed_decides_the_split(folder):
    """Names of files do not. Pictures that are added leave the others in their order."""
    found, _, _ = load(folder)
    assert np.array_equal(load(folder)[0], found)
    assert not np.array_equal(load(folder, seed=1)[0], found)
    (folder / "a/0.png").rename(folder / "a/zero.png")
    assert np.array_equal(load(folder)[0], found)
    new = random(4, seed=1)
    for number, array in enumerate(new):
        save(array, folder / "b" / f"new{number}.png")
    more, _, test = load(folder)
    assert test == 6
    old = [array for array in more if not any(np.array_equal(array, other) for other in new)]
    assert np.array_equal(np.stack(old), found)


def test_a_folder_that_is_split_already(folder, tmp_path):
    """train/ and test/ with class folders. A class that only one part has counts in both."""
    split = tmp_path / "split"
    shutil.move(folder, split / "train")
    for number, array in enumerate(random(5, seed=1)):
        save(array, split / "test" / "bd"[number % 2] / f"{number}.png")
    found, labels, test = load(split)
    assert (len(found), test) == (35, 5)
    assert pairs(found[30:], labels[30:]) == pairs(random(5, seed=1), np.array([1, 3, 1, 3, 1]))
    assert {*labels[:30]} == {0, 1, 2}
    save(random(1)[0], split / "val/a/1.png")
    assert "train/ next to test, val" in refused(split)
    shutil.rmtree(split / "val")
    shutil.rmtree(split / "test")
    assert "train/ next to nothing" in refused(split)


def idx_folder(folder: Path, count: int = 12, test: int = 3, side: int = SIDE, end: str = "") -> tuple:
    """Four IDX files of random images, compressed if the names end in .gz."""
    found, labels = random(count, side, side), np.arange(count, dtype=np.uint8)
    folder.mkdir(parents=True)
    for split, part in (("train", slice(None, -test)), ("t10k", slice(-test, None))):
        number = len(labels[part])
        contents = {
            f"{split}-images-idx3-ubyte": struct.pack(">4i", 2051, number, side, side) + found[part].tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">2i", 2049, number) + labels[part].tobytes(),
        }
        for name, content in contents.items():
            (folder / f"{name}{end}").write_bytes(gzip.compress(content) if end else content)
    return found, labels


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_stay_as_they_are(tmp_path, end):
    found, labels = idx_folder(tmp_path / "idx", end=end)
    result = load(tmp_path / "idx")
    assert np.array_equal(result[0], found)
    assert np.array_equal(result[1], labels)
    assert result[2] == 3


def test_other_sizes(folder, tmp_path):
    """They are refused, or resized if that is asked for."""
    square = np.zeros((56, 56), np.uint8)
    square[:28] = 200  # the upper half
    path = save(square, folder / "a/large.png")
    assert f"{path}: 56x56 pixels, not 28x28; data.resize: true" in refused(folder)
    expected = np.zeros((SIDE, SIDE))
    expected[:14] = 200
    found, _, _ = load(folder, resize=True)
    assert min(np.abs(array - expected).mean() for array in found) < 2
    path.unlink()
    path = save(random(1, 40, 30)[0], folder / "a/wide.png")
    assert f"{path}: 30x40 pixels" in refused(folder)
    assert load(folder, resize=True)[0].shape == (31, SIDE, SIDE)
    idx_folder(tmp_path / "idx", side=14)
    assert "train-images-idx3-ubyte: 14x14 pixels" in refused(tmp_path / "idx")
    assert load(tmp_path / "idx", resize=True)[0].shape == (12, SIDE, SIDE)


def test_colour(folder):
    """It is refused, or turned grey if that is asked for. A picture with three equal channels has no colour."""
    grey = random(1, seed=5)[0]
    equal = save(np.stack([grey] * 3, axis=-1), folder / "a/equal.png")
    Image.fromarray(grey).convert("P").save(folder / "b/palette.png")
    Image.open(equal).save(folder / "c/same.jpg", quality=100)
    found, _, _ = load(folder)
    assert sum(np.array_equal(array, grey) for array in found) == 2
    assert sum(0 < np.abs(array.astype(int) - grey).mean() < 2 for array in found) == 1  # the JPEG
    path = save(np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8), folder / "a/red.png")
    assert f"{path}: is in colour; data.grey: true" in refused(folder)
    found, _, _ = load(folder, grey=True)
    assert sum((array == 76).all() for array in found) == 1  # 0.299 * 255 (ITU-R BT.601)


def test_photographs_are_turned_upright(folder):
    """A camera stores how it was held."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[14:] = 255  # below, so at the left after the turn
    save(picture, folder / "a/photo.jpg", exif=exif, quality=100)
    assert any(array[:, :12].min() > 250 and array[:, 16:].max() < 5 for array in load(folder)[0])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read as a picture"),
        (lambda path: path.write_text("text"), "cannot be read as a picture"),
        (lambda path: path.write_bytes(b""), "cannot be read as a picture"),
        (lambda path: save(random(1)[0].astype(np.uint16) * 256, path), "more than 8 bits"),
        (lambda path: save(np.full((SIDE, SIDE, 4), 9, np.uint8), path), "transparent"),
    ],
    ids=["half", "text", "empty", "16 bits", "transparent"],
)
def test_a_picture_that_is_refused(folder, spoil, reason):
    path = folder / "b/1.png"
    spoil(path)
    for options in ({}, {"grey": True, "resize": True}):
        message = refused(folder, **options)
        assert str(path) in message
        assert reason in message


def test_folders_that_are_refused(folder, tmp_path):
    assert "is not a folder" in refused(tmp_path / "nowhere")
    assert "is not a folder" in refused(folder / "a/0.png")
    (tmp_path / "empty").mkdir()
    assert "subfolders: 0, pictures outside of them: 0" in refused(tmp_path / "empty")
    (tmp_path / "empty/a").mkdir()
    assert "training images: 0, test images: 0" in refused(tmp_path / "empty")
    for number, array in enumerate(random(9)):
        save(array, tmp_path / "empty/a" / f"{number}.png")
    assert "training images: 8, test images: 1" in refused(tmp_path / "empty")
    save(random(1)[0], folder / "loose.png")
    assert "subfolders: 3, pictures outside of them: 1;" in refused(folder)
    for number in range(300):
        (tmp_path / "many" / str(number)).mkdir(parents=True)
    assert "subfolders: 300" in refused(tmp_path / "many")


def test_idx_files_that_are_refused(tmp_path):
    idx_folder(tmp_path / "idx")
    one, two = (tmp_path / "idx" / name for name in mirrors.FILES[:2])
    whole = one.read_bytes(), two.read_bytes()
    for content in (b"", whole[0][:9], whole[0][:-1], whole[1]):
        one.write_bytes(content)
        assert f"{one}: not a whole IDX file of images" in refused(tmp_path / "idx")
    one.write_bytes(whole[0])
    two.write_bytes(struct.pack(">2i", 2049, 8) + bytes(8))
    assert f"{mirrors.FILES[0]} has 9 images, but {mirrors.FILES[1]} has 8 labels" in refused(tmp_path / "idx")
    two.unlink()
    assert f"{two}: no such file" in refused(tmp_path / "idx")
    Path(f"{two}.gz").write_bytes(gzip.compress(whole[1])[:-9])
    assert f"{two}.gz: not a whole IDX file of labels" in refused(tmp_path / "idx")


def test_make_run_asks_no_mirror(root, tmp_path, monkeypatch):
    """Images of your own need no network. MNIST does."""
    asked = []
    monkeypatch.setattr(reachable.mirrors, "unreachable", lambda name, _: asked.append(name))
    text = (root / "params.yaml").read_text()
    for name in ("folder", "mnist"):
        (tmp_path / "params.yaml").write_text(text.replace("name: mnist ", f"name: {name} "))
        reachable.main(tmp_path / "params.yaml", tmp_path / "data")
    assert asked == ["mnist"]
