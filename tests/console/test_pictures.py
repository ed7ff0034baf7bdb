"""Stored pixels as PNG: every bit as it was, told by another decoder; and nothing but what the jailed decoder wrote."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from api.console.pictures import SMALL, NotPixels, png, thumbnail
from pipelines.images import decode, npy_bytes


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *((shape, kind) for shape in ((1, 1), (3, 5), (28, 28), (64, 33)) for kind in (np.uint8, np.uint16)),
        ((7, 9, 3), np.uint8),  # Pillow opens no colour image of 16 bits
    ],
    ids=str,
)
def test_no_bit_is_lost(shape: tuple[int, ...], kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, size=shape, endpoint=True).astype(kind)
    opened = Image.open(io.BytesIO(png(npy_bytes(pixels))))
    assert opened.size == (shape[1], shape[0])
    assert (np.asarray(opened) == pixels).all()


def test_it_is_what_the_services_own_decoder_takes() -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    assert (decode(png(npy_bytes(pixels))).pixels == pixels).all()


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (128, 128), (129, 64), (1000, 700), (700, 1000, 3)], ids=str)
def test_a_thumbnail_is_the_image_made_small(shape: tuple[int, ...]) -> None:
    down, across = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    picture = (1000 + 30_000 * (down + across) / 2).astype(np.uint16)
    pixels = picture if len(shape) == 2 else np.stack([picture, picture // 2, picture // 4], axis=-1)
    opened = Image.open(io.BytesIO(thumbnail(npy_bytes(pixels))))
    assert max(opened.size) <= SMALL
    small = np.asarray(opened).astype(float)
    step = -(-max(shape[:2]) // SMALL)
    rows, columns = max(1, shape[0] // step), max(1, shape[1] // step)
    assert small.shape[:2] == (rows, columns)
    blocks = pixels[: rows * step, : columns * step].reshape(rows, step, columns, step, -1).mean(axis=(1, 3)).squeeze()
    scaled = (blocks - blocks.min()) / max(1.0, float(np.ptp(blocks))) * 255
    assert np.abs(small - scaled.reshape(small.shape)).max() <= 4


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\x89PNG",
        b"\x93NUMPY\x01\x00\xff\xff{",
        npy_bytes(np.zeros((4, 4), dtype=np.uint8))[:-1],
        npy_bytes(np.zeros((4, 4), dtype=np.uint8)) + b"x",
        _npy(np.zeros((4, 4), dtype=np.float32)),
        _npy(np.zeros((4, 4, 2), dtype=np.uint8)),
        _npy(np.asfortranarray(np.zeros((4, 5), dtype=np.uint8))),
        _npy(np.zeros((0, 5), dtype=np.uint8)),
    ],
    ids=range(9),
)
def test_anything_else_is_refused(stored: bytes) -> None:
    with pytest.raises(NotPixels):
        png(stored)
