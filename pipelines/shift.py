"""Whether the new cases are like those before: their classes, where they come from, and how their images look.

Invariant: a shift is told by a size and a p-value together, each with its n; of too few cases nothing is said. The
same arrays and seed give the same numbers. Images are compared by a few plain features, or by what a model says of
them, which tells harmful shifts best; one case a patient, because a permutation needs cases that could be exchanged.

References: Székely and Rizzo, J Stat Plan Inference 2013 (energy distance and its permutation test); Rabanser,
Günnemann, Lipton, "Failing Loudly", NeurIPS 2019 (two-sample tests on what a model says); Phipson and Smyth, Stat Appl
Genet Mol Biol 2010 (a permutation p is never 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import spatial, special

from pipelines.images import LUMA

Floats = NDArray[np.float64]

FEATURES = ("brightness", "contrast", "shadows", "highlights", "skewness", "sharpness", "frame", "size")
"""Mean; standard deviation; 5th and 95th percentile; skewness; gradient against contrast; outermost tenth against the
rest; logarithm of the pixel count. All of grey values in [0, 1]."""
PERMUTATIONS = 999
MOST_COMPARED = 400
"""Cases a side of a comparison of images; more are drawn from at random, for the cost is quadratic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How a mix of categories changed: half the sum of the absolute changes in share, in [0, 1]."""

    distance: float
    low: float
    high: float
    """Bounds of the bootstrap interval at 95 %, which does not reach 0 because a distance cannot."""
    p: float
    before: int
    after: int
    moved: str
    """The category whose share changed most."""
    share_before: float
    share_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the look of images changed: normalised energy distance in [0, 1], 0 for the same distribution."""

    distance: float
    p: float
    before: int
    after: int
    moved: str
    """The feature whose mean moved most."""
    by: float
    """How far it moved, in standard deviations of the cases before."""


def mix(before: NDArray[Any], after: NDArray[Any], *, rng: np.random.Generator) -> Mix:
    """Compare the categories (text or numbers) of the cases before (N,) and after (M,).

    χ² test of homogeneity; where a cell is expected to hold fewer than five, its p by permutation. Raises ValueError
    where a side is empty.
    """
    if len(before) == 0 or len(after) == 0:
        raise ValueError("nothing to compare with: one side has no case")
    names, codes = np.unique(np.concatenate([before.astype(str), after.astype(str)]), return_inverse=True)
    counts = [np.bincount(side, minlength=len(names)) for side in (codes[: len(before)], codes[len(before) :])]
    shares = [side / side.sum() for side in counts]
    drawn = [rng.multinomial(int(side.sum()), side / side.sum(), size=2000) / side.sum() for side in counts]
    spread = np.abs(drawn[1] - drawn[0]).sum(axis=1) / 2.0
    change = shares[1] - shares[0]
    most = int(np.abs(change).argmax())
    return Mix(
        distance=float(np.abs(change).sum() / 2.0),
        low=float(np.quantile(spread, 0.025)),
        high=float(np.quantile(spread, 0.975)),
        p=_homogeneity(np.stack(counts), rng=rng),
        before=len(before),
        after=len(after),
        moved=str(names[most]),
        share_before=float(shares[0][most]),
        share_after=float(shares[1][most]),
    )


def image_features(pixels: NDArray[Any]) -> Floats:
    """Return FEATURES of one image (H, W), (H, W, 3) or (D, H, W), as (8,) float64; a volume by its mean slice."""
    whole = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1.0
    grey = pixels.astype(np.float32) / np.float32(whole)
    if grey.ndim == 3:
        grey = grey @ LUMA if grey.shape[2] == 3 else grey.mean(axis=0)
    mean, deviation = float(grey.mean()), float(grey.std())
    steps = [float(np.abs(np.diff(grey, axis=axis)).mean()) if grey.shape[axis] > 1 else 0.0 for axis in (0, 1)]
    skewness = float(((grey - mean) ** 3).mean()) / deviation**3 if deviation > 1e-6 else 0.0
    low, high = np.quantile(grey, (0.05, 0.95))
    top, side = (max(1, length // 10) for length in grey.shape)
    inner = grey[top:-top, side:-side]
    rest = float(inner.mean()) if inner.size else mean
    frame = (mean * grey.size - rest * inner.size) / max(1, grey.size - inner.size) - rest
    sharpness = sum(steps) / deviation if deviation > 1e-6 else 0.0
    return np.array([mean, deviation, low, high, skewness, sharpness, frame, np.log(grey.size)])


def look(before: Floats, after: Floats, *, names: Sequence[str] = FEATURES, rng: np.random.Generator) -> Look:
    """Compare features (N, F) of cases before with those (M, F) of cases after, `names` being the F features.

    Features are divided by their spread before (where they have one) and compared by energy distance; p by permutation.
    Raises ValueError where a side has fewer than two cases, or where a feature is not finite.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError("nothing to compare with: one side has fewer than two cases")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("a feature is not a number")
    # A feature that never varied before (one size of image) is measured by its spread in all.
    centre, spread = before.mean(axis=0), before.std(axis=0)
    overall = np.concatenate([before, after]).std(axis=0)
    spread = np.where(spread > 1e-9, spread, np.where(overall > 1e-9, overall, 1.0))
    moved = (after.mean(axis=0) - centre) / spread
    sides = [(_sample(side, rng=rng) - centre) / spread for side in (before, after)]
    distance, p = _energy_test(sides[0], sides[1], rng=rng)
    most = int(np.abs(moved).argmax())
    return Look(distance=distance, p=p, before=len(before), after=len(after), moved=names[most], by=float(moved[most]))


def one_of_each(groups: NDArray[Any], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose one row of each group (N,) at random; returns rows, ascending."""
    order = rng.permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.sort(order[first]).astype(np.int64)


def _homogeneity(table: NDArray[np.int64], *, rng: np.random.Generator) -> float:
    if table.shape[1] == 1:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    if expected.min() >= 5.0:
        return float(special.chdtrc(table.shape[1] - 1, _chi_square(table[1:], expected)[0]))
    drawn = rng.multivariate_hypergeometric(table.sum(axis=0), int(table[1].sum()), size=PERMUTATIONS)
    hits = (_chi_square(drawn, expected) >= _chi_square(table[1:], expected) - 1e-9).sum()
    return (int(hits) + 1.0) / (PERMUTATIONS + 1.0)


def _chi_square(after: NDArray[np.int64], expected: Floats) -> Floats:
    """χ² (P,) of P tables of two rows with these margins, `after` (P, K) being their second rows."""
    deviation = (after - expected[1]) ** 2
    return np.asarray((deviation / expected[1] + deviation / expected[0]).sum(axis=1))


def _sample(side: Floats, *, rng: np.random.Generator) -> Floats:
    return side if len(side) <= MOST_COMPARED else side[rng.permutation(len(side))[:MOST_COMPARED]]


def _energy_test(before: Floats, after: Floats, *, rng: np.random.Generator) -> tuple[float, float]:
    """Normalised energy distance in [0, 1] of two samples, and the p-value of its permutation test."""
    pooled = np.concatenate([before, after])
    distances = spatial.distance.cdist(pooled, pooled)
    n, m = len(before), len(after)
    inside = np.tile(np.repeat([0.0, 1.0], [n, m]), (PERMUTATIONS + 1, 1))
    inside[1:] = rng.permuted(inside[1:], axis=1)
    total = distances.sum()
    to_after = inside @ distances  # (P, n + m): from each case to those called "after"
    after_after = np.einsum("pi,pi->p", to_after, inside)
    across = to_after.sum(axis=1) - after_after
    before_before = total - after_after - 2.0 * across
    mean_across = across / (n * m)
    energy = 2.0 * mean_across - before_before / n**2 - after_after / m**2
    p = (int((energy[1:] >= energy[0] - 1e-12).sum()) + 1.0) / (PERMUTATIONS + 1.0)
    share = energy[0] / (2.0 * mean_across[0]) if mean_across[0] > 0.0 else 0.0
    return float(np.clip(share, 0.0, 1.0)), p
