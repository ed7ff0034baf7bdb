"""Stored pixels as PNG: 8 or 16 bits, grey or colour, with nothing lost and nothing added.

The API opens no image from outside. What is stored are pixels that the jailed decoder wrote (NPY 1.0, uint8 or uint16,
C order, little endian; `pipelines.images`), and of those only the header is read here. Rows are written unfiltered, so
that `viewer.mjs` can read all 16 bits, which a browser's own decoder halves (PNG 3rd edition, W3C, §9.2 type 0).
"""

from __future__ import annotations

import ast
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass

_MAGIC = b"\x93NUMPY\x01\x00"
_BYTES = {"|u1": 1, "<u2": 2}
_GREY, _COLOUR = 0, 2
SMALL = 128
"""Pixels of a thumbnail's longer side, at most."""


NARROWEST = 8
"""Pixels a side of a volume's slices, at least (`pipelines.images`)."""


class NotPixels(ValueError):
    """A stored file is not what the decoder writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    rows: int
    columns: int
    channels: int
    bytes_each: int

    @property
    def stride(self) -> int:
        return self.columns * self.channels * self.bytes_each


def png(stored: bytes, *, at: int | None = None) -> bytes:
    """Write stored pixels, (H, W) or (H, W, 3) uint8 or uint16, as PNG.

    Of a volume (D, H, W), slice `at` or the last there is; the middle one where None. Raises NotPixels.
    """
    shape, pixels = _read(stored, at=at)
    if shape.bytes_each == 2 and sys.byteorder == "little":  # PNG is big endian
        values = array("H", pixels)
        values.byteswap()
        pixels = values.tobytes()
    return _written(
        pixels, rows=shape.rows, columns=shape.columns, channels=shape.channels, bytes_each=shape.bytes_each
    )


def slices(stored: bytes) -> int:
    """Return how many slices a stored volume has, 0 of an image. Raises NotPixels."""
    return _opened(stored)[1]


def place(stored: bytes, *, at: int | None) -> int:
    """Return which slice of a stored volume is meant by `at`: the last there is if beyond, the middle one if None."""
    count = slices(stored)
    return count // 2 if at is None else min(at, count - 1)


def thumbnail(stored: bytes) -> bytes:
    """Write stored pixels small, as PNG of 8 bits a channel, from their darkest to their brightest value.

    At most `SMALL` pixels a side; each is the mean of four of those it stands for. Of a volume, its middle slice.
    Raises NotPixels.
    """
    shape, pixels = _read(stored)
    step = max(1, -(-max(shape.rows, shape.columns) // SMALL))
    values: memoryview | array[int] = memoryview(pixels)
    if shape.bytes_each == 2:
        values = array("H", pixels)
        if sys.byteorder == "big":
            values.byteswap()
    rows, columns = shape.rows // step or 1, shape.columns // step or 1
    summed = [_row(values, shape, row=row, step=step, columns=columns) for row in range(rows)]
    low, high = min(map(min, summed)), max(map(max, summed))
    scale = 255 / max(1, high - low)
    small = b"".join(bytes(round((value - low) * scale) for value in row) for row in summed)
    return _written(small, rows=rows, columns=columns, channels=shape.channels, bytes_each=1)


def _row(values: memoryview | array[int], shape: _Shape, *, row: int, step: int, columns: int) -> list[int]:
    """A row of a thumbnail, channels beside each other: sums of four pixels each."""
    wide, stride = shape.columns * shape.channels, step * shape.channels
    places = (step // 4, min(step - 1, 3 * step // 4))
    made = [0] * (columns * shape.channels)
    for channel in range(shape.channels):
        parts = []
        for down in places:
            start = (row * step + down) * wide
            line = values[start : start + wide]
            parts += [line[across * shape.channels + channel :: stride][:columns] for across in places]
        made[channel :: shape.channels] = [sum(four) for four in zip(*parts, strict=True)]
    return made


def _read(stored: bytes, *, at: int | None = None) -> tuple[_Shape, bytes]:
    found, slices, start = _opened(stored)
    size = found.rows * found.stride
    start += size * place(stored, at=at) if slices else 0
    return found, stored[start : start + size]


def _opened(stored: bytes) -> tuple[_Shape, int, int]:
    """Shape of the image, or of each slice; how many slices, 0 where it is an image; where the pixels begin."""
    if not stored.startswith(_MAGIC):
        raise NotPixels("not NPY 1.0")
    start = 10 + int.from_bytes(stored[8:10], "little")
    try:
        header = ast.literal_eval(stored[10:start].decode("latin-1"))
        size, shape = _BYTES[header["descr"]], tuple(header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise NotPixels("a header that the decoder does not write") from error
    if header["fortran_order"] or len(shape) not in {2, 3} or 0 in shape:
        raise NotPixels(f"an array of shape {shape}")
    slices = shape[0] if len(shape) == 3 and shape[2] != 3 else 0
    if slices and min(shape[1:]) < NARROWEST:
        raise NotPixels(f"an array of shape {shape}")
    shape = shape[1:] if slices else shape
    found = _Shape(rows=shape[0], columns=shape[1], channels=3 if len(shape) == 3 else 1, bytes_each=size)
    if len(stored) - start != found.rows * found.stride * max(slices, 1):
        raise NotPixels("fewer or more pixels than the header says")
    return found, slices, start


def _written(pixels: bytes, *, rows: int, columns: int, channels: int, bytes_each: int) -> bytes:
    """Write pixels as PNG; those of 16 bits are big endian."""
    stride = columns * channels * bytes_each
    lines = b"".join(b"\x00" + pixels[start : start + stride] for start in range(0, len(pixels), max(1, stride)))
    kind = _COLOUR if channels == 3 else _GREY
    header = struct.pack(">IIBBBBB", columns, rows, 8 * bytes_each, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
