"""Pairs of images that look like copies of one another, found among a million without comparing each with each.

Hashes are cut into `blocks` of bits; two that differ in at most `radius` bits agree wholly in `blocks - radius` of
them, so for each choice of that many blocks the hashes are sorted by those bits, and only runs of equal ones are
compared. Invariant: every pair within the radius is found, as comparing each with each would; a hash of 0 (a flat
picture) is close to nothing.

References: Manku, Jain, Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007 (the tables); Norouzi,
Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", TPAMI 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import perceptual
from pipelines.gate_rules import NearDuplicates

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]
Fetch = Callable[[Rows], Sequence[NDArray[Any]]]
"""Gives the pixels of some rows."""

MAX_RADIUS = 12
MAX_PAIRS = 20_000_000
_COMPARED_AT_ONCE = 256
"""Pairs whose pixels are held in memory together."""
_SORTING, _COMPARING, _PASSING = 3e-7, 1.2e-8, 2.5e-9
"""Seconds to sort one hash, to compare one pair in a table, and to compare one pair in passing; their ratios matter."""
_SAMPLE = 100_000
"""Hashes that a plan is made by."""


class TooAlike(ValueError):
    """So many hashes lie within the radius of each other that listing the pairs is no use."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of rows that look alike, in order of the first and then the second; all columns (P,)."""

    first: Rows
    second: Rows
    distance: NDArray[np.uint8]
    """Bits in which the hashes differ."""

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Return the chosen pairs."""
        return Pairs(first=self.first[chosen], second=self.second[chosen], distance=self.distance[chosen])


def all_pairs(hashes: Hashes, *, radius: int) -> Pairs:
    """Find all pairs of rows of `hashes` (N,) that differ in at most `radius` bits; `first` < `second`.

    Raises ValueError where the radius is not in 0..12, TooAlike where there are more than 20 million pairs.
    """
    return _in_tables(hashes, askers=len(hashes), radius=radius)


def near_duplicates(new_hashes: Hashes, all_hashes: Hashes, *, radius: int) -> Pairs:
    """Find the pairs of a row of `new_hashes` (M,) and one of `all_hashes` (N,) that differ in at most `radius` bits.

    `first` counts in `new_hashes`, `second` in `all_hashes`. The cost is linear in N. Raises as `all_pairs` does.
    """
    _check(radius)
    one_by_one = len(new_hashes) * len(all_hashes) * _PASSING
    if one_by_one > 0.5 and one_by_one > _plan(all_hashes, askers=len(new_hashes), radius=radius)[1]:
        found = _in_tables(np.concatenate([new_hashes, all_hashes]), askers=len(new_hashes), radius=radius)
        across = found.where(found.second >= len(new_hashes))
        return Pairs(first=across.first, second=across.second - len(new_hashes), distance=across.distance)
    parts = []
    for row, mine in enumerate(new_hashes):
        distance = np.bitwise_count(all_hashes ^ mine)
        near = np.flatnonzero(distance <= radius) if mine else np.arange(0)
        near = near[all_hashes[near] != 0]
        parts.append((np.full(len(near), row), near, distance[near]))
    return _joined(parts)


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
    if len(new) == len(hashes):
        found = all_pairs(hashes, radius=rule.radius)
    else:
        found = near_duplicates(hashes[new], hashes, radius=rule.radius)
        first, second = new[found.first], found.second
        is_new = np.isin(np.arange(len(hashes)), new)
        # Two new rows meet twice and each meets itself: keep each pair once.
        kept = (first != second) & ~(is_new[second] & (second < first))
        found = Pairs(
            first=np.minimum(first, second)[kept],
            second=np.maximum(first, second)[kept],
            distance=found.distance[kept],
        )
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
    placed, waits = set(np.flatnonzero(incumbent).tolist()), []
    for row in sorted(twins.keys() - placed, key=lambda row: int(order[row])):
        nearest = min(((distance, int(order[b]), b) for distance, b in twins[row] if b in placed), default=None)
        if nearest is None:
            placed.add(row)
        else:
            waits.append(Twin(row=row, other=nearest[2], distance=nearest[0]))
    return waits


def _in_tables(hashes: Hashes, *, askers: int, radius: int) -> Pairs:
    """All pairs within the radius of which at least one is among the first `askers` rows; `first` < `second`."""
    _check(radius)
    rows = np.flatnonzero(hashes != 0)
    told = hashes[rows]
    blocks, _ = _plan(told, askers=askers, radius=radius)
    masks = np.array(_cut(blocks), dtype=np.uint64)
    parts: list[tuple[Rows, Rows, NDArray[np.uint8]]] = []
    found = 0
    for chosen in combinations(range(blocks), blocks - radius):
        # A pair that agrees in more blocks than it must is met in several tables, and taken in the first of them.
        passed_over = np.setdiff1d(np.arange(chosen[-1]), chosen)
        keys = told & np.bitwise_or.reduce(masks[list(chosen)])
        order = np.argsort(keys, kind="stable")  # within a run of equal keys the askers come first
        keys, ordered, names = keys[order], told[order], rows[order]
        # For each row the end of its run, one past the last.
        ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
        end = np.repeat(ends, np.diff(ends, prepend=0))
        left, step = np.flatnonzero(names < askers), 1
        while len(left := left[left + step < end[left]]):
            differing = ordered[left] ^ ordered[left + step]
            near = np.flatnonzero(np.bitwise_count(differing) <= radius)
            near = near[(differing[near, None] & masks[passed_over]).all(axis=1)]
            if len(near):
                parts.append((names[left[near]], names[left[near] + step], np.bitwise_count(differing[near])))
                found += len(near)
                if found > MAX_PAIRS:
                    raise TooAlike(f"more than {MAX_PAIRS:,} pairs within {radius} bits: choose a smaller radius")
            step += 1
    return _joined(parts)


def _joined(parts: list[tuple[Rows, Rows, NDArray[np.uint8]]]) -> Pairs:
    """Join what was found, in order."""
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return Pairs(first=none, second=none, distance=np.empty(0, dtype=np.uint8))
    first, second, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((second, first))
    return Pairs(first=first[order], second=second[order], distance=distance[order])


def _cut(blocks: int) -> list[int]:
    """Cut the bits into blocks, as masks. Neighbouring bits, which hang together, are put into different blocks."""
    return [sum(1 << bit for bit in range(block, perceptual.BITS, blocks)) for block in range(blocks)]


def _plan(hashes: Hashes, *, askers: int, radius: int) -> tuple[int, float]:
    """How many blocks make the search shortest, and its seconds, judged by how often these hashes agree in a block.

    Hashes of one kind of image agree far more often than chance has it.
    """
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    plans = []
    for blocks in range(radius + 1, radius + 5):
        _, runs = np.unique(sample & np.uint64(sum(_cut(blocks)[: blocks - radius])), return_counts=True)
        agree = float((runs.astype(np.float64) * (runs - 1)).sum()) / max(1, len(sample) * (len(sample) - 1))
        # Not less than chance: a sample does not show what is rare.
        agree = max(agree, 2.0 ** (-perceptual.BITS * (blocks - radius) / blocks))
        one = len(hashes) * _SORTING + askers * len(hashes) * agree * _COMPARING
        plans.append((math.comb(blocks, radius) * one, blocks))
    seconds, blocks = min(plans)
    return blocks, seconds


def _check(radius: int) -> None:
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"a radius of {radius} bits is not in 0..{MAX_RADIUS}; beyond it everything looks alike")


def _thumbnails(rows: Rows, fetch: Fetch) -> NDArray[np.float32]:
    distinct, places = np.unique(rows, return_inverse=True)
    pictures = np.stack([perceptual.thumbnail(pixels) for pixels in fetch(distinct)])
    return pictures[places]
