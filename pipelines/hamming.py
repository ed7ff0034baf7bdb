"""Pairs of 64-bit hashes that differ in few bits, found among a million without comparing each with each.

Two ways, by which is expected to be quicker. *In bands*, for few newcomers: hashes are cut into four bands of 16 bits;
two that differ in at most `radius` bits differ in a fourth of that in at least one band, so of each band only the
hashes are compared that have one of so few values. *In tables*, for all: hashes are cut into `blocks`; such two agree
wholly in `blocks - radius` of them, so for each choice of that many blocks the hashes are sorted by those bits, and
only runs of equal ones are compared.

Invariants: every pair within the radius is found once, as comparing each with each would; a hash of 0 (a flat picture)
is close to nothing; beside the hashes some 12 bytes of memory for each are used, and what is found is given away.

References: Manku, Jain, Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007 (the tables); Norouzi,
Punjani, Fleet, "Fast exact search in Hamming space with multi-index hashing", TPAMI 2014 (the bands).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]

MAX_RADIUS = 12
MAX_PAIRS = 20_000_000
BITS = 64
BANDS = 4
_BAND_BITS = BITS // BANDS
_SORTING, _BANDING, _COMPARING = 1.5e-7, 4e-8, 2.5e-8
"""Seconds to sort one hash for a table and for a band, and to compare one pair; their ratios matter."""
_SAMPLE = 30_000
"""Hashes that a plan is made by."""
_AT_ONCE = 1 << 17
"""Hashes, or pairs, that are looked at together."""


class TooAlike(ValueError):
    """So many hashes lie within the radius of each other that listing the pairs is no use."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of rows whose hashes are close, `first` < `second`; all columns (P,)."""

    first: Rows
    second: Rows
    distance: NDArray[np.uint8]
    """Bits in which the hashes differ."""

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """Return the chosen pairs."""
        return Pairs(first=self.first[chosen], second=self.second[chosen], distance=self.distance[chosen])

    @staticmethod
    def joined(parts: list[Pairs]) -> Pairs:
        """Return all pairs of some parts, in order of the first and then the second."""
        none = np.empty(0, dtype=np.int64)
        first, second = (
            np.concatenate([none, *rows]) for rows in ([p.first for p in parts], [p.second for p in parts])
        )
        distance = np.concatenate([np.empty(0, dtype=np.uint8), *(part.distance for part in parts)])
        order = np.lexsort((second, first))
        return Pairs(first=first[order], second=second[order], distance=distance[order])


def all_pairs(hashes: Hashes, *, radius: int) -> Pairs:
    """Find all pairs of rows of `hashes` (N,) that differ in at most `radius` bits. Raises as `search` does."""
    return Pairs.joined(list(search(hashes, asking=np.ones(len(hashes), dtype=np.bool_), radius=radius)))


def newcomers(hashes: Hashes, *, new: Rows, radius: int) -> Pairs:
    """Find the pairs of which at least one row is among `new`, distinct rows. Raises as `search` does."""
    asking = np.zeros(len(hashes), dtype=np.bool_)
    asking[new] = True
    return Pairs.joined(list(search(hashes, asking=asking, radius=radius)))


def search(hashes: Hashes, *, asking: NDArray[np.bool_], radius: int) -> Iterator[Pairs]:
    """Find the pairs of rows of `hashes` (N,) within the radius, one of them `asking` (N,); some at a time.

    Raises ValueError where the radius is not in 0..12, TooAlike where there are more than 20 million pairs.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(f"a radius of {radius} bits is not in 0..{MAX_RADIUS}; beyond it everything looks alike")
    in_bands, blocks = _plan(hashes, askers=int(asking.sum()), radius=radius)
    if in_bands:
        batches = _in_bands(hashes, asking=asking, radius=radius)
    else:
        batches = _in_tables(hashes, asking=asking, radius=radius, blocks=blocks)
    found = 0
    for pairs in batches:
        found += len(pairs)
        if found > MAX_PAIRS:
            raise TooAlike(f"more than {MAX_PAIRS:,} pairs within {radius} bits: choose a smaller radius")
        yield pairs


def _in_bands(hashes: Hashes, *, asking: NDArray[np.bool_], radius: int) -> Iterator[Pairs]:
    """Compare each asker with the hashes that have nearly its value in a band."""
    askers = np.flatnonzero(asking & (hashes != 0))
    most = radius // BANDS
    turned = np.array([sum(1 << bit for bit in bits) for n in range(most + 1) for bits in combinations(range(16), n)])
    for band in range(BANDS):
        values = _band(hashes, band)
        order = np.argsort(values, kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << _BAND_BITS))])
        for some in np.array_split(askers, 1 + len(askers) * len(turned) // _AT_ONCE):
            probes = (values[some].astype(np.int64)[:, None] ^ turned).ravel()
            for which, place in _spread(starts[probes], starts[probes + 1]):
                mine, theirs = some[which // len(turned)], order[place].astype(np.int64)
                # Two askers meet from both sides: the one that comes first tells.
                known = (mine != theirs) & ~(asking[theirs] & (theirs < mine)) & (hashes[theirs] != 0)
                yield _near(hashes, mine[known], theirs[known], radius=radius, unless=_before(band), least=most)


def _in_tables(hashes: Hashes, *, asking: NDArray[np.bool_], radius: int, blocks: int) -> Iterator[Pairs]:
    """Sort by each choice of blocks and compare within runs of equal ones, of which one asks."""
    masks = np.array(_cut(blocks), dtype=np.uint64)
    for chosen in combinations(range(blocks), blocks - radius):
        # A pair that agrees in more blocks than it must is met in several tables, and taken in the first of them.
        passed_over = masks[np.setdiff1d(np.arange(chosen[-1]), chosen)]
        mask = np.bitwise_or.reduce(masks[list(chosen)])
        bucket = _buckets(hashes, mask)
        for number in range(int(bucket.max(initial=0)) + 1):
            rows = np.flatnonzero((bucket == number) & (hashes != 0))
            rows = np.concatenate([rows[asking[rows]], rows[~asking[rows]]])
            keys = hashes[rows] & mask
            order = np.argsort(keys, kind="stable")  # within a run of equal keys the askers come first
            keys, rows = keys[order], rows[order]
            # For each row the end of its run, one past the last.
            ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
            end = np.repeat(ends, np.diff(ends, prepend=0))
            left = np.flatnonzero(asking[rows])
            for which, place in _spread(left + 1, end[left]):
                yield _near(hashes, rows[left[which]], rows[place], radius=radius, unless=passed_over, least=0)


def _near(hashes: Hashes, one: Rows, other: Rows, *, radius: int, unless: Hashes, least: int) -> Pairs:
    """The pairs within the radius, but those that differ in at most `least` bits of one of the masks `unless`."""
    differing = hashes[one] ^ hashes[other]
    distance = np.bitwise_count(differing)
    near = np.flatnonzero(distance <= radius)
    near = near[(np.bitwise_count(differing[near, None] & unless) > least).all(axis=1)]
    one, other = one[near], other[near]
    return Pairs(first=np.minimum(one, other), second=np.maximum(one, other), distance=distance[near])


def _spread(starts: Rows, ends: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Write out ranges of numbers, about `_AT_ONCE` numbers at a time: of which range each is, and the number."""
    counts = ends - starts
    total = np.cumsum(counts)
    first = 0
    while first < len(counts):
        before = int(total[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(total, before + _AT_ONCE, side="right")))
        n = counts[first:last]
        shift = starts[first:last] - (total[first:last] - n - before)
        which = np.repeat(np.arange(first, last), n)
        yield which, np.arange(len(which)) + np.repeat(shift, n)
        first = last


def _band(hashes: Hashes, band: int) -> NDArray[np.uint16]:
    """(N,) every fourth bit of each hash; neighbouring bits, which hang together, are in different bands."""
    values = np.empty(len(hashes), dtype=np.uint16)
    for start in range(0, len(hashes), _AT_ONCE):
        bits = (hashes[start : start + _AT_ONCE] >> np.uint64(band)) & np.uint64(0x1111_1111_1111_1111)
        for shift, mask in (
            (3, 0x0303_0303_0303_0303),
            (6, 0x000F_000F_000F_000F),
            (12, 0x0000_00FF_0000_00FF),
            (24, 0x0000_0000_0000_FFFF),
        ):
            bits = (bits | (bits >> np.uint64(shift))) & np.uint64(mask)
        values[start : start + _AT_ONCE] = bits
    return values


def _before(band: int) -> Hashes:
    """Masks of the bands before one: what is close in one of them was told there."""
    return np.array([0x1111_1111_1111_1111 << earlier for earlier in range(band)], dtype=np.uint64)


def _buckets(hashes: Hashes, mask: np.uint64) -> NDArray[np.uint8]:
    """(N,) a number for each hash, the same for all that agree under the mask, so few hashes have the same."""
    bits = min(8, max(0, (len(hashes) - 1).bit_length() - 17))
    found = np.zeros(len(hashes), dtype=np.uint8)
    for start in range(0, len(hashes) if bits else 0, _AT_ONCE):
        mixed = (hashes[start : start + _AT_ONCE] & mask) * np.uint64(0x9E37_79B9_7F4A_7C15)
        found[start : start + _AT_ONCE] = mixed >> np.uint64(BITS - bits)
    return found


def _cut(blocks: int) -> list[int]:
    """Cut the bits into blocks, as masks. Neighbouring bits, which hang together, are put into different blocks."""
    return [sum(1 << bit for bit in range(block, BITS, blocks)) for block in range(blocks)]


def _plan(hashes: Hashes, *, askers: int, radius: int) -> tuple[bool, int]:
    """Say whether bands are quicker than tables, and by how many blocks tables are quickest.

    Judged by how often these hashes agree: those of one kind of image do far more often than chance has it.
    """
    sample = hashes[:: max(1, len(hashes) // _SAMPLE)]
    pairs, n = askers * len(hashes) * _COMPARING, len(hashes)
    probes = sum(math.comb(_BAND_BITS, turned) for turned in range(radius // BANDS + 1))
    agree = sum(_agreement(sample, mask) for mask in _cut(BANDS))
    in_bands = BANDS * n * _BANDING + probes * agree * pairs
    plans = []
    for blocks in range(radius + 1, radius + 5):
        tables, cut = math.comb(blocks, radius), _cut(blocks)
        if tables * n * _SORTING < in_bands:
            agree = sum(_agreement(sample, sum((cut + cut)[k : k + blocks - radius])) for k in range(blocks)) / blocks
            plans.append((tables * (n * _SORTING + agree * pairs), blocks))
    seconds, blocks = min(plans, default=(math.inf, radius + 1))
    return in_bands <= seconds, blocks


def _agreement(sample: Hashes, mask: int) -> float:
    """How often two hashes agree under a mask, and not less than chance: a sample does not show what is rare."""
    _, runs = np.unique(sample & np.uint64(mask), return_counts=True)
    agree = float((runs.astype(np.float64) * (runs - 1)).sum()) / max(1, len(sample) * (len(sample) - 1))
    return max(agree, 2.0 ** -mask.bit_count())
