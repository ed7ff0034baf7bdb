"""Images that look like copies of one another, and which of them have to wait.

Hashes propose pairs (`pipelines.hamming`), and the pictures decide: most pairs with close hashes are of different
patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import hamming, perceptual
from pipelines.gate_rules import NearDuplicates
from pipelines.hamming import Hashes, Pairs, Rows, TooAlike

__all__ = ["Fetch", "Hashes", "Pairs", "Rows", "TooAlike", "Twin", "across_splits", "among", "confirmed"]

Fetch = Callable[[Rows], Sequence[NDArray[Any]]]
"""Gives the pixels of some rows."""

_COMPARED_AT_ONCE = 256
"""Pairs whose pixels are held in memory together."""


def confirmed(pairs: Pairs, *, first: Fetch, second: Fetch, minimum_likeness: float) -> Pairs:
    """Keep the pairs whose pictures, looked at, are alike; `first` and `second` give pixels for rows of each side.

    Each picture is fetched once for each batch of pairs that needs it.
    """
    alike = np.zeros(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _COMPARED_AT_ONCE):
        part = slice(start, start + _COMPARED_AT_ONCE)
        alike[part] = perceptual.likeness(
            _thumbnails(pairs.first[part], first), _thumbnails(pairs.second[part], second)
        )
    return pairs.where(alike >= minimum_likeness)


def among(hashes: Hashes, *, new: Rows, rule: NearDuplicates, fetch: Fetch) -> Pairs:
    """Find the pairs of rows, at least one of them `new`, whose pictures are alike; the pictures of both are compared.

    What is not new was searched when it was. Raises TooAlike.
    """
    found = hamming.newcomers(hashes, new=new, radius=rule.radius)
    return confirmed(found, first=fetch, second=fetch, minimum_likeness=rule.minimum_likeness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A newcomer that looks like a copy of a case in another split, by row."""

    row: int
    other: int
    distance: int


def across_splits(pairs: Pairs, *, splits: NDArray[Any], incumbent: NDArray[np.bool_], order: Rows) -> list[Twin]:
    """Say which newcomers have to wait, that no picture be on two sides: each with the case whose twin it is.

    `pairs` are of rows of one table; `splits`, `incumbent` (in the version before) and `order` (case ids) are (N,).
    Incumbents stay where they are; of newcomers the lowest case id comes first, and only a case that stays keeps
    another out. Two incumbents are left to the gate: neither can be moved.
    """
    crossing = pairs.where(splits[pairs.first] != splits[pairs.second])
    twins: dict[int, list[tuple[int, int]]] = {}
    for a, b, distance in zip(
        crossing.first.tolist(), crossing.second.tolist(), crossing.distance.tolist(), strict=True
    ):
        twins.setdefault(a, []).append((distance, b))
        twins.setdefault(b, []).append((distance, a))
    placed, waits = {row for row in twins if incumbent[row]}, []
    for row in sorted(twins.keys() - placed, key=lambda row: int(order[row])):
        nearest = min(((distance, int(order[b]), b) for distance, b in twins[row] if b in placed), default=None)
        if nearest is None:
            placed.add(row)
        else:
            waits.append(Twin(row=row, other=nearest[2], distance=nearest[0]))
    return waits


def _thumbnails(rows: Rows, fetch: Fetch) -> NDArray[np.float32]:
    distinct, places = np.unique(rows, return_inverse=True)
    pictures = np.stack([perceptual.thumbnail(pixels) for pixels in fetch(distinct)])
    return pictures[places]
