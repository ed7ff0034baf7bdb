"""What an image looks like, in 64 bits: copies of a picture get hashes that differ in few bits, however they were made.

A hash is the signs of 64 low frequencies about their median, so brightness, contrast, size and bit depth hardly matter.
It proposes pairs, and `likeness` of two thumbnails decides: radiographs of one body part share their low frequencies,
so most pairs with close hashes are different patients. Invariant: the same pixels give the same hash; 0 means that the
picture is flat, so that its hash says nothing.

Reference: Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010 (DCT-based hash); what
the numbers below cost and find on chest radiographs is in docs/benchmarks.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images import LUMA

Floats = NDArray[np.float32]

SIDE = 32
"""Rows and columns of a thumbnail."""
BITS = 64
_SHIFT = 2
"""A copy may be moved by this many pixels of the thumbnail, either way, a sixteenth of the picture."""
_BLUR = 5.0
"""Standard deviation, in pixels of the thumbnail, of what is taken away before two thumbnails are compared."""


def perceptual_hash(pixels: NDArray[Any]) -> int:
    """Return the 64-bit hash of an image; 0 where it is flat.

    `pixels` is (H, W), (H, W, 3) or a volume (D, H, W), of any size, uint8 or uint16, or float in [0, 1]; of a volume
    the mean over its slices is hashed. Raises ValueError on another shape.
    """
    return int(hash_thumbnails(thumbnail(pixels)[None])[0])


def thumbnail(pixels: NDArray[Any]) -> Floats:
    """Return the picture as (SIDE, SIDE) float32 in [0, 1]: grey, each pixel the mean of the area that it covers.

    Takes what `perceptual_hash` takes. The aspect ratio is not kept.
    """
    if pixels.size == 0 or pixels.ndim not in (2, 3):
        raise ValueError(f"shape {pixels.shape} is no image: (H, W), (H, W, 3) or (D, H, W) is needed")
    whole = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
    if pixels.ndim == 2:
        plane = pixels.astype(np.float32)
    elif pixels.shape[2] == 3:
        plane = pixels.astype(np.float32) @ LUMA
    else:
        plane = pixels.mean(axis=0, dtype=np.float32)
    small = _areas(plane.shape[0]) @ plane @ _areas(plane.shape[1]).T
    return np.asarray(small / np.float32(whole), dtype=np.float32)


def hash_thumbnails(thumbnails: Floats) -> NDArray[np.uint64]:
    """Return the hashes (N,) of thumbnails (N, SIDE, SIDE); 0 where one is flat."""
    from scipy import fft  # noqa: PLC0415 - takes a third of a second, and a correction hashes nothing

    waves = fft.dctn(thumbnails.astype(np.float64), axes=(1, 2), norm="ortho")
    waves = waves[:, _WAVES, _WAVES].reshape(-1, BITS)
    flat = np.ptp(thumbnails, axis=(1, 2)) < 1e-4
    # What is zero but for rounding must not become a coin thrown for each machine.
    waves[np.abs(waves) < 1e-6 * np.abs(waves).max(axis=1, keepdims=True)] = 0.0
    bits = (waves > np.median(waves, axis=1, keepdims=True)) & ~flat[:, None]
    packed = np.ascontiguousarray(np.packbits(bits, axis=1, bitorder="little"))
    return packed.view("<u8").reshape(-1).astype(np.uint64)


def likeness(first: Floats, second: Floats) -> Floats:
    """Return how alike pairs of thumbnails (P, SIDE, SIDE) are, (P,) float32 in [-1, 1], 1 for the same picture.

    The correlation of their fine structure, which tells patients apart, at the best of the small shifts that a copy may
    have; 0 where one is flat.
    """
    inner, places = slice(_SHIFT, SIDE - _SHIFT), range(2 * _SHIFT + 1)
    core = _fine(first)[:, inner, inner]
    core = core - core.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.einsum("pij,pij->p", core, core))
    moving = _fine(second)
    # Length of each moved window about its own mean; the numerator needs no mean, for `core` sums to 0.
    sums, squares = (_WINDOWS @ planes @ _WINDOWS.T for planes in (moving, moving**2))
    lengths = np.sqrt(np.maximum(squares - sums**2 / _WINDOW**2, 0.0))  # (P, 5, 5)
    best = np.full(len(first), -1.0, dtype=np.float32)
    for down in places:
        for right in places:
            window = moving[:, down : down + _WINDOW, right : right + _WINDOW]
            product = length * lengths[:, down, right]
            found = np.einsum("pij,pij->p", core, window)
            np.maximum(best, np.divide(found, product, out=np.zeros_like(best), where=product > 1e-8), out=best)
    return np.minimum(best, 1.0, out=best)


_WAVES = slice(1, 9)
"""Frequencies along each side. Without those of 0: a mean over rows or columns is nearly the same in every chest."""


@lru_cache(maxsize=64)
def _areas(length: int) -> Floats:
    """Weights (SIDE, length) that average `length` pixels over SIDE equal areas."""
    edges = np.linspace(0.0, length, SIDE + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1.0) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0.0, None) * (SIDE / length)
    return np.asarray(weights, dtype=np.float32)


def _blurring() -> Floats:
    """Weights (SIDE, SIDE) of a Gaussian blur along one side, each row summing to 1."""
    places = np.arange(SIDE)
    weights = np.exp(-0.5 * ((places[:, None] - places) / _BLUR) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


_WINDOW = SIDE - 2 * _SHIFT
_WINDOWS = np.array([np.eye(_WINDOW, SIDE, start).sum(axis=0) for start in range(2 * _SHIFT + 1)], dtype=np.float32)
"""(5, SIDE) which pixels of a side each moved window covers."""
_COARSE = _blurring()


def _fine(thumbnails: Floats) -> Floats:
    """A thumbnail without its coarse structure, which all chests share."""
    return np.asarray(thumbnails - _COARSE @ thumbnails @ _COARSE.T, dtype=np.float32)
