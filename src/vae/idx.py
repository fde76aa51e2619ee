"""The IDX format of the data sets: 28x28 images of grey bytes, and their labels."""

import math
import struct
import zlib

import numpy as np

SIDE = 28  # pixels
PIXELS = SIDE * SIDE
HEADER = {"images": struct.Struct(">4i"), "labels": struct.Struct(">2i")}  # magic number, count[, rows, columns]
MAGIC = {"images": 0x803, "labels": 0x801}  # unsigned bytes in three dimensions, and in one


def header(kind: str, count: int) -> bytes:
    """The bytes before the content of a file of `count` images or labels."""
    shape = (SIDE, SIDE) if kind == "images" else ()
    return HEADER[kind].pack(MAGIC[kind], count, *shape)


def array(content: np.ndarray, kind: str) -> np.ndarray:
    """The images (N, height, width) or labels (N,) in the bytes of a file, not copied.
    Raises ValueError if the bytes are no whole IDX file of that kind."""
    header = HEADER[kind]
    if len(content) <= header.size:
        raise ValueError(f"{len(content)} bytes are too few")
    magic, *shape = header.unpack(content[: header.size].tobytes())
    if magic != MAGIC[kind] or min(shape) < 1 or len(content) != header.size + math.prod(shape):
        raise ValueError("its header and its length disagree")
    return content[header.size :].reshape(shape)


def decompressed(content: bytes, most: int) -> bytes:
    """The content of a gzip file. Raises EOFError or zlib.error if it is damaged, and ValueError if it has more than
    `most` bytes, which a small file can hide."""
    stream = zlib.decompressobj(wbits=31)
    found = stream.decompress(content, most)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {most >> 20} MiB when decompressed")
    if not stream.eof:
        raise EOFError("it ends too early")
    return found


def files(images: np.ndarray, labels: np.ndarray, test: int) -> tuple[bytes, ...]:
    """The contents of the four IDX files. The last `test` images are the test split. (N, 28, 28), (N,) -> 4 files."""
    contents = []
    for part in (slice(None, -test), slice(-test, None)):
        for kind, array in (("images", images[part]), ("labels", labels[part])):
            contents.append(header(kind, len(array)) + array.astype(np.uint8).tobytes())
    return tuple(contents)
