"""Bytes from outside into pixels, and pixels into what a network sees.

Accepts PNG, NPY and uncompressed DICOM of one frame or many, told apart by their first bytes and never by what the
sender claims. Headers are checked against the caps before anything is allocated, metadata other than an allow-list is
gone, and whatever cannot be read with certainty is refused with a stable code. A stored image is the NPY form of an
array (H, W), (H, W, 3) or, of a volume, (D, H, W), uint8 or uint16; its name is the SHA-256 of those bytes. Three axes
of which the last is 3 are always colour: a volume is at least `NARROWEST` voxels wide.

References: PNG 3rd edition (W3C); NEP 1 (NPY).
Decode bytes from outside only in a process with memory and time limits.
"""

from __future__ import annotations

import ast
import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.protocol import InputSpec
from pipelines.types import Digest

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Attribute = str | int | float

MAX_SIDE = 8192
MAX_PIXELS = 40_000_000
"""Of an image, and voxels of a volume."""
NARROWEST = 8
"""Voxels along each side of a slice, at least; a volume has two slices, or more."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Colour to grey, ITU-R BT.601."""

_PNG = b"\x89PNG\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_NPY_TYPES = ("|u1", "<u2", ">u2")
_NPY_HEADER_BYTES = 4096


class ImageRefused(ValueError):
    """The bytes are not an image this service takes; `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Pixels (H, W), (H, W, 3) or (D, H, W), uint8 or uint16, brighter is denser; and attributes that survived."""

    pixels: Pixels
    attributes: dict[str, Attribute] = field(default_factory=dict)


def decode(data: bytes, content_type: str | None = None) -> Decoded:
    """Turn bytes from outside into pixels and allow-listed attributes.

    `content_type` is what the sender claims; it only makes the refusal of an unknown format clearer.
    Raises ImageRefused, whatever the bytes.
    """
    if data.startswith(_PNG):
        return Decoded(pixels=_decode_png(data))
    if data.startswith(_NPY):
        return Decoded(pixels=from_npy(data))
    if data[128:132] == b"DICM":
        from pipelines import dicom  # noqa: PLC0415 - a third of a second, and only for bytes from outside

        return dicom.decode(data)
    claimed = f" (sent as {content_type!r})" if content_type else ""
    raise ImageRefused("unsupported-format", f"neither PNG, NPY nor DICOM{claimed}; send one of these")


def npy_bytes(pixels: Pixels) -> bytes:
    """Write pixels in the stored form: NPY 1.0, C order, little endian. The same pixels give the same bytes."""
    stored = np.ascontiguousarray(pixels, dtype=np.dtype(pixels.dtype).newbyteorder("<"))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, stored, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def image_digest(pixels: Pixels) -> Digest:
    """SHA-256 of the stored form: the name of an image everywhere."""
    return Digest(hashlib.sha256(npy_bytes(pixels)).hexdigest())


def from_npy(data: bytes) -> Pixels:
    """Read pixels from NPY bytes, the header checked before anything is allocated. Raises ImageRefused."""
    descr, fortran_order, shape, start = _npy_header(data)
    if descr not in _NPY_TYPES:
        raise ImageRefused("unsupported-pixels", f"pixels are of type {descr!r}; send uint8 or uint16")
    dtype = np.dtype(descr)
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    if len(shape) not in (2, 3):
        raise ImageRefused("not-single-frame", f"shape {shape}: send (H, W), (H, W, 3) or a volume (D, H, W)")
    if len(shape) == 3 and shape[2] != 3:
        check_volume(depth=shape[0], rows=shape[1], columns=shape[2])
    else:
        check_size(rows=shape[0], columns=shape[1])
    count = int(np.prod(shape, dtype=np.int64))
    body = memoryview(data)[start:]
    if len(body) != count * dtype.itemsize:
        raise ImageRefused("truncated", f"{len(body)} bytes of pixels where the header promises {count} values")
    values = np.frombuffer(body, dtype=dtype).reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(values, dtype=dtype.newbyteorder("="))


def to_network_input(pixels: Sequence[Pixels] | Pixels, spec: InputSpec) -> NDArray[np.float32]:
    """Resample and scale images for a network: (N, C, rows, columns) float32 in [0, 1].

    Grey and colour are converted into each other as `spec.channels` asks; the aspect ratio is not kept. Shrinking
    averages over the area each new pixel covers, enlarging is bilinear. A stack of equal images may be one array. Where
    `spec` has a depth, (N, 1, depth, rows, columns) of volumes, resampled along all three in the same way. Raises
    ImageRefused for a volume where images are read, and the other way round.
    """
    if isinstance(pixels, np.ndarray) and pixels.shape[1:] == spec.shape:  # nothing to resample
        scaled = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
        return np.repeat(scaled[:, None], spec.channels, axis=1)
    batch = np.empty((len(pixels), spec.channels, *spec.shape), dtype=np.float32)
    for index, image in enumerate(pixels):
        check_kind(image, volume=spec.depth is not None)
        scaled = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
        if spec.depth is not None:
            batch[index, 0] = _resample_volume(scaled, spec, depth=spec.depth)
            continue
        planes = scaled[None] if scaled.ndim == 2 else np.moveaxis(scaled, -1, 0)  # (C, H, W)
        if spec.channels == 1 and planes.shape[0] == 3:
            planes = np.tensordot(LUMA, planes, axes=1)[None]
        for channel in range(spec.channels):
            batch[index, channel] = _resample(planes[min(channel, len(planes) - 1)], spec.rows, spec.columns)
    return np.clip(batch, 0.0, 1.0, out=batch)


def png_bytes(array: NDArray[Any]) -> bytes:
    """Write a picture for people as PNG: (H, W) or (H, W, 3); uint8, uint16 (grey), or float in [0, 1]."""
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min(initial=0.0) < 0.0 or array.max(initial=0.0) > 1.0:
            raise ValueError("a float picture must be finite and within [0, 1]")
        array = np.round(array * 255.0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG")
    return buffer.getvalue()


def _resample(plane: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    if plane.shape == (rows, columns):
        return plane
    shrinks = plane.shape[0] >= rows and plane.shape[1] >= columns
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    resized = Image.fromarray(np.ascontiguousarray(plane)).resize((columns, rows), method)
    return np.asarray(resized, dtype=np.float32)


def _resample_volume(volume: NDArray[np.float32], spec: InputSpec, *, depth: int) -> NDArray[np.float32]:
    """(D, H, W) -> (depth, rows, columns): slice by slice, then along the depth, where each slice is one long row."""
    slices = np.stack([_resample(plane, spec.rows, spec.columns) for plane in volume])
    return _resample(slices.reshape(len(slices), -1), depth, spec.rows * spec.columns).reshape(spec.shape)


def is_volume(pixels: Pixels) -> bool:
    """Whether pixels are a volume (D, H, W) and no image (H, W) or (H, W, 3)."""
    return pixels.ndim == 3 and pixels.shape[2] != 3


def check_kind(pixels: Pixels, *, volume: bool) -> None:
    """Refuse a volume where images are read, and an image where volumes are. Raises ImageRefused."""
    if volume and not is_volume(pixels):
        message = "this line reads volumes, and this is one image; send a multi-frame DICOM or an NPY (D, H, W)"
        raise ImageRefused("not-a-volume", message)
    if not volume and is_volume(pixels):
        message = f"this line reads images, and this is a volume of {len(pixels)} slices; send one image"
        raise ImageRefused("not-single-frame", message)


def check_size(*, rows: int, columns: int) -> None:
    """Refuse an image that is empty or larger than the caps. Raises ImageRefused."""
    if rows < 1 or columns < 1:
        raise ImageRefused("empty", f"{rows} × {columns} pixels: there is nothing in this image")
    if max(rows, columns) > MAX_SIDE or rows * columns > MAX_PIXELS:
        limit = f"{MAX_SIDE} a side and {MAX_PIXELS // 1_000_000} million in all"
        raise ImageRefused("too-many-pixels", f"{rows} × {columns} pixels; the most is {limit}")


def check_volume(*, depth: int, rows: int, columns: int) -> None:
    """Refuse a volume that is none, or larger than the caps. Raises ImageRefused."""
    size = f"{depth} slices of {rows} × {columns}"
    if depth < 2 or min(rows, columns) < NARROWEST:
        least = f"2 slices of {NARROWEST} × {NARROWEST}"
        raise ImageRefused("empty", f"{size}: the least is {least}; one slice is an image, (H, W)")
    if max(depth, rows, columns) > MAX_SIDE or depth * rows * columns > MAX_PIXELS:
        limit = f"{MAX_SIDE} a side and {MAX_PIXELS // 1_000_000} million voxels in all"
        raise ImageRefused("too-many-pixels", f"{size}; the most is {limit}: send a smaller region, or resample it")


def _npy_header(data: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """Type, order, shape and where the pixels begin.

    NumPy's own reader falls back to repairing headers of Python 2, with more ways to fail than one can list.
    """
    length_bytes = {b"\x01\x00": 2, b"\x02\x00": 4}.get(data[6:8], 0)
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    try:
        if length_bytes == 0 or start > min(len(data), _NPY_HEADER_BYTES):
            raise ValueError("no header")  # noqa: TRY301 - one refusal for all that is wrong with a header
        header = ast.literal_eval(data[8 + length_bytes : start].decode("latin-1").strip())
        descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
        if type(fortran_order) is not bool or not all(type(side) is int and side >= 0 for side in shape):
            raise TypeError("not a header")  # noqa: TRY301 - as above
        return str(descr), fortran_order, tuple(shape), start
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise ImageRefused("truncated", "the NPY header is damaged or cut short; send the file again") from error


def _decode_png(data: bytes) -> Pixels:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ImageRefused("truncated", "the PNG header is damaged or cut short; send the file again")
    columns, rows = struct.unpack(">II", data[16:24])
    check_size(rows=rows, columns=columns)
    if not _holds_every_row(data, rows=rows, columns=columns):
        raise ImageRefused("truncated", "the PNG holds fewer pixels than its header says; send the file again")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
            if image.mode.startswith("I"):  # 16-bit grey
                pixels: Pixels = np.array(image, dtype=np.uint16)
            else:
                grey = image.mode in {"1", "L", "LA"}
                pixels = np.array(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError) as error:
        raise ImageRefused("truncated", "the PNG is damaged or cut short; send the file again") from error
    if frames > 1:
        raise ImageRefused("not-single-frame", "an animated PNG has many frames; send one image")
    return pixels


def _holds_every_row(data: bytes, *, rows: int, columns: int) -> bool:
    """Whether the pixel data of a PNG is as long as its header says; Pillow would fill missing rows with black.

    Source: PNG 3rd edition, 5.6 (chunk layout), 8 (interlacing), 9.2 (a filter byte leads every row).
    """
    bits, colour, interlaced = data[24], data[25], data[28]
    per_pixel = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    expected = 0
    for top, left, down, across in passes if interlaced else [(0, 0, 1, 1)]:
        height, width = -(-(rows - top) // down), -(-(columns - left) // across)
        if height > 0 and width > 0:
            expected += height * (1 + -(-width * per_pixel // 8))
    inflater, found, at = zlib.decompressobj(), 0, 8
    try:
        while at + 8 <= len(data) and found < expected:
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            if kind == b"IDAT":
                waiting = data[at + 8 : at + 8 + length]
                while waiting and found < expected:  # piece by piece: a bomb never unfolds in memory
                    found += len(inflater.decompress(waiting, 1 << 20))
                    waiting = inflater.unconsumed_tail
            at += 12 + length
    except (zlib.error, struct.error):
        return False
    return found >= expected
