"""Picking cases that differ from each other: greedy choices over vectors, the same whoever asks and however often.

Invariant: nothing is drawn at random. Where the literature draws, each case brings a lot of its own, uniform in
[0, 1), so that the picks are a pure function of the cases and do not change with their order (equals go by position:
sort first).

References: Ash et al., ICLR 2020 (BADGE); Arthur and Vassilvitskii, SODA 2007 (k-means++); Sener and Savarese, ICLR
2018 (farthest first); Efraimidis and Spirakis, IPL 2006 (a weighted draw as a race of exponential times).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def gradients(
    errors: NDArray[np.floating], embeddings: NDArray[np.floating], lots: NDArray[np.floating], *, count: int
) -> Rows:
    """Pick `count` rows by k-means++ over gradient embeddings, the longest first; returns rows in the order picked.

    The gradient of the last layer, were the predicted class right, is the outer product of `errors` (N, K), scores less
    the one-hot prediction, and `embeddings` (N, d). It is never written out: its distances follow from those of its
    factors. `lots` (N,) in [0, 1).
    """
    a, h = np.asarray(errors, dtype=np.float64), np.asarray(embeddings, dtype=np.float64)
    lengths = (a**2).sum(axis=1) * (h**2).sum(axis=1)  # (N,) squared
    waiting = -np.log1p(-np.asarray(lots, dtype=np.float64))  # exponential times: the least time over weight wins
    picked, nearest = [int(lengths.argmax())] if len(a) else [], np.full(len(a), np.inf)
    while len(picked) < min(count, len(a)):
        last = picked[-1]
        apart = lengths + lengths[last] - 2.0 * (a @ a[last]) * (h @ h[last])
        nearest = np.minimum(nearest, np.maximum(apart, 0.0))
        nearest[last] = 0.0
        far = nearest > 0.0
        if not far.any():
            break
        picked.append(int(np.where(far, waiting / np.where(far, nearest, 1.0), np.inf).argmin()))
    return _completed(picked, lengths, count=count)


def distances(embeddings: NDArray[np.floating], known: NDArray[np.floating]) -> Floats:
    """Return the squared distance (N,) of `embeddings` (N, d) to the nearest of `known` (M, d); inf where M is 0."""
    if not len(known):
        return np.full(len(embeddings), np.inf)
    squares = (embeddings**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None, :]
    apart = squares - 2.0 * embeddings @ known.T  # (N, M)
    return np.asarray(np.maximum(apart.min(axis=1), 0.0), dtype=np.float64)


def farthest(embeddings: NDArray[np.floating], nearest: NDArray[np.floating], *, count: int) -> Rows:
    """Pick `count` rows, each the farthest from what is known and from those picked before; in the order picked.

    `nearest` (N,) is the squared distance of each to what is known, inf where nothing is.
    """
    h = np.asarray(embeddings, dtype=np.float64)
    squares, left = (h**2).sum(axis=1), np.array(nearest, dtype=np.float64)
    picked: list[int] = []
    while len(picked) < min(count, len(h)):
        last = int(left.argmax())
        picked.append(last)
        left = np.minimum(left, np.maximum(squares + squares[last] - 2.0 * (h @ h[last]), 0.0))
        left[picked] = -1.0
    return np.array(picked, dtype=np.int64)


def _completed(picked: list[int], worth: Floats, *, count: int) -> Rows:
    """Where those left are all alike one that was picked, go on by worth."""
    first = np.array(picked, dtype=np.int64)
    if len(first) >= min(count, len(worth)):
        return first
    rest = np.setdiff1d(np.arange(len(worth)), first)
    return np.concatenate([first, rest[np.argsort(-worth[rest], kind="stable")]])[:count]
