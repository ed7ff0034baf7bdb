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


def png(stored: bytes) -> bytes:
    """Write stored pixels, (H, W) or (H, W, 3) uint8 or uint16, as PNG. Raises NotPixels."""
    shape, pixels = _read(stored)
    if shape.bytes_each == 2 and sys.byteorder == "little":  # PNG is big endian
        values = array("H", pixels)
        values.byteswap()
        pixels = values.tobytes()
    rows = b"".join(
        b"\x00" + pixels[start : start + shape.stride] for start in range(0, len(pixels), max(1, shape.stride))
    )
    kind = _COLOUR if shape.channels == 3 else _GREY
    header = struct.pack(">IIBBBBB", shape.columns, shape.rows, 8 * shape.bytes_each, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _read(stored: bytes) -> tuple[_Shape, bytes]:
    if not stored.startswith(_MAGIC):
        raise NotPixels("not NPY 1.0")
    start = 10 + int.from_bytes(stored[8:10], "little")
    try:
        header = ast.literal_eval(stored[10:start].decode("latin-1"))
        size, shape = _BYTES[header["descr"]], tuple(header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise NotPixels("a header that the decoder does not write") from error
    if header["fortran_order"] or len(shape) not in {2, 3} or shape[2:] not in {(), (3,)} or 0 in shape:
        raise NotPixels(f"an array of shape {shape}")
    found = _Shape(rows=shape[0], columns=shape[1], channels=3 if len(shape) == 3 else 1, bytes_each=size)
    pixels = stored[start:]
    if len(pixels) != found.rows * found.stride:
        raise NotPixels("fewer or more pixels than the header says")
    return found, pixels


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
