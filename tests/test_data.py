"""IDX files, compared with torchvision; splits; binarization."""

from vae.runtime import mirrors

import math
import struct

import pytest
import torch
from torchvision.datasets import MNIST

from vae import data, idx
from vae.errors import InputError


def write_idx(folder, split: str, count: int, seed: int) -> tuple[bytes, bytes]:
    """Writes random images and labels of a split. Returns their bytes without headers."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8).numpy().tobytes()
    labels = torch.randint(10, (count,), generator=generator, dtype=torch.uint8).numpy().tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images)
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels)
    return images, labels


@pytest.fixture
def folder(tmp_path):
    """A small data set of random bytes."""
    write_idx(tmp_path, "train", 7, seed=0)
    write_idx(tmp_path, "t10k", 4, seed=1)
    return tmp_path


@pytest.mark.parametrize(("split", "train", "count"), [("train", True, 7), ("t10k", False, 4)])
def test_same_as_torchvision(tmp_path, split, train, count):
    """The reader agrees with torchvision bit for bit."""
    raw = tmp_path / "MNIST" / "raw"
    for name, size in (("train", 7), ("t10k", 4)):
        write_idx(raw, name, size, seed=size)
    reference = MNIST(tmp_path, train=train, download=False)
    ours = data.load(raw, split)
    assert ours.images.dtype == ours.labels.dtype == torch.uint8
    assert ours.images.shape == (count, idx.PIXELS)
    assert torch.equal(ours.images, reference.data.flatten(1))
    assert torch.equal(ours.labels.long(), reference.targets)


def test_the_reader_reads_the_files_of_the_writer(tmp_path):
    """vae.runtime.mirrors writes the headers that vae.data reads."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (9, idx.PIXELS), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (9,), generator=generator, dtype=torch.uint8)
    contents = idx.files(images.numpy(), labels.numpy(), test=3)
    mirrors.write_files(tmp_path, zip(mirrors.FILES, contents, strict=True))
    train, test = data.load(tmp_path, "train"), data.load(tmp_path, "t10k")
    assert (len(train.images), len(test.images)) == (6, 3)
    assert torch.equal(torch.cat([train.images, test.images]), images)
    assert torch.equal(torch.cat([train.labels, test.labels]), labels)
    assert idx.header("images", 7) == struct.pack(">4i", 2051, 7, 28, 28)
    assert idx.header("labels", 7) == struct.pack(">2i", 2049, 7)


def test_writing_to_images_does_not_change_the_file(folder):
    """The mapping is private, because the files of data/ belong to DVC."""
    path = folder / "train-images-idx3-ubyte"
    before = path.read_bytes()
    data.read_idx(path, "images").zero_()
    assert path.read_bytes() == before


def damaged(content: bytes) -> dict[str, bytes]:
    """Damaged files of images, by the kind of damage."""
    return {
        "empty": b"",
        "header only": content[:16],
        "half a header": content[:9],
        "one byte short": content[:-1],
        "one byte long": content + b"\0",
        "labels": struct.pack(">2i", 2049, 8) + bytes(8),
        "other type": struct.pack(">i", 0xD03) + content[4:],
        "other shape": struct.pack(">4i", 2051, 7, 14, 56) + content[16:],
        "count too large": struct.pack(">4i", 2051, 8, 28, 28) + content[16:],
        "negative": struct.pack(">4i", 2051, -7, 28, 28) + content[16:],
        "gzip": b"\x1f\x8b" + content[2:],
    }


@pytest.mark.parametrize("damage", list(damaged(b"")))
def test_damaged_images(folder, damage):
    """A damaged file is an error that names the file and the way out."""
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(InputError) as caught:
        data.load(folder, "train")
    assert str(path) in str(caught.value)
    assert "dvc repro --force download" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", struct.pack(">2i", 2051, 7) + bytes(7), struct.pack(">2i", 2049, 7) + bytes(6)]
)
def test_damaged_labels(folder, content):
    """A damaged file of labels is an error that names the file and the way out."""
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte.*dvc repro --force download"):
        data.load(folder, "train")


def test_missing_file(folder):
    """The error names the missing file and the way out."""
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte: no such file.*dvc repro --force download"):
        data.load(folder, "t10k")


def test_images_without_labels(folder):
    """The error has the number of images and the number of labels."""
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 6) + bytes(6))
    with pytest.raises(InputError, match="7 images but 6 labels"):
        data.load(folder, "train")


@pytest.mark.parametrize(("total", "wanted", "given"), [(100, 10, 10), (100, 20, 20), (100, 50, 20), (60, 5000, 12)])
def test_split_validation(total, wanted, given):
    """The validation split has the last images, at most a fifth. Each image is in exactly one split."""
    images = torch.arange(total)[:, None]
    train, validation = data.split_validation(images, wanted)
    assert len(validation) == given
    assert torch.equal(torch.cat([train, validation]), images)


def test_binarize_has_the_mean_of_its_grey_values():
    """For each grey value, P(x = 1) = grey / 255 within 5 standard errors."""
    draws = 4000
    grey = torch.arange(256, dtype=torch.uint8).repeat(draws, 1)
    p = torch.arange(256).double() / 255
    x = data.binarize(grey, torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    error = (x.double().mean(dim=0) - p).abs()
    assert (error <= 5 * (p * (1 - p) / draws).sqrt()).all()
    overall = (x.double().mean() - p.mean()).item()  # a common bias would show here
    assert abs(overall) < 5 * math.sqrt((p * (1 - p)).sum().item() / draws) / 256


def test_binarize_keeps_black_and_white():
    """In eight million draws each, a pixel of 0 is always 0, and a pixel of 255 is always 1."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        assert data.binarize(torch.zeros(1000, 1000, dtype=torch.uint8), generator).sum() == 0
        assert data.binarize(torch.full((1000, 1000), 255, dtype=torch.uint8), generator).sum() == 1_000_000


def test_the_generator_decides_the_binarization():
    """Equal seeds give equal bits. Another seed, or a second draw, gives others."""
    grey = torch.full((10, idx.PIXELS), 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    first, second = data.binarize(grey, generator), data.binarize(grey, generator)
    torch.manual_seed(99)
    assert torch.equal(first, data.binarize(grey, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, data.binarize(grey, torch.Generator().manual_seed(4)))
    assert (grey == 128).all()


def test_unit():
    """Grey bytes become intensities from 0 to 1. The argument does not change."""
    grey = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(data.unit(grey), torch.tensor([0.0, 0.2, 1.0]), rtol=1e-7, atol=0)
    assert grey.tolist() == [0, 51, 255]
