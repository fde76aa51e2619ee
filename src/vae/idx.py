"""The IDX format of the data sets: 28x28 images of grey bytes, and their labels."""

import struct

SIDE = 28  # pixels
PIXELS = SIDE * SIDE
HEADER = {"images": struct.Struct(">4i"), "labels": struct.Struct(">2i")}  # magic number, count[, rows, columns]
MAGIC = {"images": 0x803, "labels": 0x801}  # unsigned bytes in three dimensions, and in one


def header(kind: str, count: int) -> bytes:
    """The bytes before the content of a file of `count` images or labels."""
    shape = (SIDE, SIDE) if kind == "images" else ()
    return HEADER[kind].pack(MAGIC[kind], count, *shape)
