"""Downloads of the data sets: mirrors in order, checksums, and files that are either whole or absent."""

from vae.runtime import network

import hashlib
import io
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
import urllib3
from tqdm import tqdm

from vae import idx
from vae.errors import InputError

TIMEOUT_SECONDS = (5, 30)  # until connected, and between two bytes
ATTEMPTS = 3
CHUNK_BYTES = 1 << 16
SLOWEST = 1000  # bytes a second, after the time-out between two bytes
MOST_BYTES = 1 << 27  # of a file, also of its content; the largest has 98 MB
MOST_ARCHIVE_BYTES = 1 << 30

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
    "fashion-mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
    "kmnist": ("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
    "emnist-letters": ("https://biometrics.nist.gov/cs_links/EMNIST",),
}

# fmt: off
# MD5 of the decompressed content, because a mirror may have compressed it again.
CONTENT_MD5 = {
    "mnist": ("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    "fashion-mnist": ("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
}
# MD5 of the published file, for data sets whose content has no published checksum (torchvision's list).
GZIP_MD5 = {
    "kmnist": ("bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134"),
    "emnist-letters": ("58c8d27c78d21e728a6bc7b3cc06412e",),
}
# fmt: on
ARCHIVES = {"emnist-letters": "gzip.zip"}  # data sets that are published in one archive, with others


class Failure(NamedTuple):
    source: str
    reason: str
    away: bool  # the source just does not answer: there is nothing that the user can mend

    def __str__(self) -> str:
        return f"{network.shown(self.source)} ({network.shown(self.reason)})"


# The errors of a source. Any other error is a bug of this program.
SourceFailure = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, EOFError, ValueError, zlib.error)


def sources(name: str, environment: dict[str, str]) -> list[str]:
    """The folders and URLs to try, in order: `MNIST_MIRROR` if it is set, then the public mirrors."""
    own = environment.get("MNIST_MIRROR", "").strip()
    return ([own] if own else []) + list(MIRRORS[name])


def published(name: str) -> tuple[str, ...]:
    """The files that a source of a data set has."""
    return (ARCHIVES[name],) if name in ARCHIVES else tuple(f"{file}.gz" for file in FILES)


def _read(source: str, file: str, most: int) -> bytes:
    """The bytes of `file` from a folder or URL. Raises ValueError if a URL gives more than `most`."""
    if not source.startswith(("http://", "https://")):
        return (Path(source.removeprefix("file://")).expanduser() / file).read_bytes()
    url, plain = f"{source.rstrip('/')}/{file}", {"Accept-Encoding": "identity"}  # the .gz itself, not its content
    with requests.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=plain) as response:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0)) or None
        content, began = bytearray(), time.monotonic()
        with tqdm(total=total, desc=file, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                content += chunk
                bar.update(len(chunk))
                if max(len(content), total or 0) > most:
                    raise ValueError(f"more than {most >> 20} MiB")
                if time.monotonic() - began > TIMEOUT_SECONDS[1] + len(content) / SLOWEST:
                    raise requests.Timeout
        if total and len(content) != total:
            raise EOFError(f"{len(content)} of {total} bytes")
    if content.lstrip()[:1] == b"<":
        raise network.WebPage("a web page in place of the file")
    return bytes(content)


def _verified(name: str, index: int, compressed: bytes) -> bytes:
    """Checks a file, and decompresses it unless it is an archive.
    Raises ValueError or OSError if the content is not the published one."""
    content = compressed if name in ARCHIVES else idx.decompressed(compressed, MOST_BYTES)
    checked, known = (content, CONTENT_MD5) if name in CONTENT_MD5 else (compressed, GZIP_MD5)
    if (actual := hashlib.md5(checked).hexdigest()) != (expected := known[name][index]):
        raise ValueError(f"MD5 {actual}, expected {expected}")
    return content


def _transient(error: BaseException) -> bool:
    """Whether trying the same source again may help."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    return isinstance(error, (requests.Timeout, urllib3.exceptions.HTTPError, EOFError))


def _try(name: str, index: int, candidates: list[str]) -> tuple[bytes, list[Failure]]:
    """One verified file from the first source that has it, and why the sources before it failed."""
    failures: list[Failure] = []
    most = MOST_ARCHIVE_BYTES if name in ARCHIVES else MOST_BYTES
    for source in candidates:
        for attempt in range(ATTEMPTS):
            try:
                return _verified(name, index, _read(source, published(name)[index], most)), failures
            except SourceFailure as error:
                if attempt + 1 < ATTEMPTS and _transient(error):
                    time.sleep(2.0**attempt)
                    continue
                failures.append(_failure(source, error, public=source in MIRRORS[name]))
                break
    return b"", failures


def _contents(name: str, candidates: list[str]) -> Iterator[tuple[str, bytes]]:
    """The verified files of a data set, by name. Raises InputError if no source has one of them."""
    for index, file in enumerate(published(name)):
        content, failures = _try(name, index, candidates)
        if not content:
            wanted, told = ARCHIVES.get(name, "the four .gz files"), "; ".join(map(str, failures))
            own = "; for images of your own: -S data.name=folder -S data.path=<folder>" * ("(MD5 " in told)
            raise InputError(
                f"{file} of {name}: no source has it: {told}. Set MNIST_MIRROR to a folder or "
                f"URL that has {wanted}, or use the bundled data: dvc exp run -S data.name=digits{own}"
            )
        yield from _letters(content) if name in ARCHIVES else [(FILES[index], content)]


def _letters(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The four files of EMNIST's letters (Cohen et al. 2017), with labels 1 to 26, from the archive of all its parts.
    The images in the archive are transposed. Here they are upright."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for file in FILES:
            name = file.replace("t10k", "test")
            content = idx.decompressed(members.read(f"gzip/emnist-letters-{name}.gz"), MOST_BYTES)
            if "images" in file:
                images = idx.array(np.frombuffer(content, np.uint8), "images")
                content = idx.header("images", len(images)) + images.transpose(0, 2, 1).tobytes()
            yield file, content


def present(name: str, folder: Path) -> bool:
    """Whether a folder has the four files of a data set, checked by checksums if those of the content are known."""
    paths = [folder / file for file in FILES if (folder / file).is_file()]
    if len(paths) < len(FILES) or name not in CONTENT_MD5:
        return len(paths) == len(FILES)
    return tuple(hashlib.md5(path.read_bytes()).hexdigest() for path in paths) == CONTENT_MD5[name]


def unreachable(name: str, environment: dict[str, str]) -> list[Failure]:
    """Why each source failed to give the smallest file. Empty if one of them gave it, or if the only file is an
    archive, which is too large to be fetched twice."""
    if name in ARCHIVES:
        return []
    smallest = FILES.index("t10k-labels-idx1-ubyte")
    content, failures = _try(name, smallest, sources(name, environment))
    return [] if content else failures


def _failure(source: str, error: BaseException, public: bool) -> Failure:
    """Why a source failed, in a few words."""
    remote = source.startswith(("http://", "https://"))
    if remote and (fault := network.fault(error, source, public)):
        return Failure(source, fault, away=False)
    match error:
        case requests.Timeout() | urllib3.exceptions.ReadTimeoutError():
            return Failure(source, "timed out", away=True)
        case requests.HTTPError() if error.response is not None:
            return Failure(source, f"HTTP {error.response.status_code}", away=True)
        case requests.ConnectionError():
            return Failure(source, "cannot be reached", away=True)
        case FileNotFoundError():
            return Failure(source, "no such file", away=False)
        case EOFError() | zlib.error():
            return Failure(source, f"damaged: {error}", away=False)
        case _:
            return Failure(source, str(error), away=False)


def write_files(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Writes all files into `folder`, or none of them: they are renamed into it when all are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for file, content in contents:
            Path(scratch, file).write_bytes(content)
        for path in Path(scratch).iterdir():
            os.replace(path, folder / path.name)


def digits() -> tuple[bytes, ...]:
    """scikit-learn's 1797 handwritten digits of 8x8, scaled to 28x28. The last 360 are the test split."""
    from PIL import Image  # imported here, because the other data sets need neither
    from sklearn.datasets import load_digits

    bunch, size = load_digits(), (idx.SIDE, idx.SIDE)
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    images = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in grey]
    return idx.files(np.stack(images), bunch.target, test=360)


BUNDLED = {"digits": digits}  # data sets that need no network


def download(name: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Puts the four IDX files of a data set into `folder`, decompressed and verified; returns the sources to try.
    `MNIST_MIRROR` in `environment` is tried first.
    Raises InputError if no source has a file. The message lists the sources, why each failed, and the way out."""
    if name in BUNDLED:
        write_files(folder, zip(FILES, BUNDLED[name](), strict=True))
        return ["an installed package"]
    candidates = sources(name, environment)
    write_files(folder, _contents(name, candidates))
    return [network.shown(source) for source in candidates]
