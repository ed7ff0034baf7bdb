"""Labels copied from the champion: a better candidate, seen through readers who follow what they are shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.exposure import copied_share, flip_point, measured_difference
from pipelines.paired import mean_difference, non_inferior, superior
from pipelines.simulate.table import Row, Table, mean, share

CHAMPION, CANDIDATE, AGREEMENT = 0.85, 0.90, 0.85
CASES, BLIND, MARGIN, LEVEL = 1000, 400, 0.02, 0.90
EXPECTED: Mapping[float, float] = {0.0: 0.994, 0.2: 0.20, 0.25: 0.046, 0.5: 0.0}


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Judge the candidate on all labels and on the blind ones, for several shares of copied labels."""
    rows: list[Row] = []
    for copied, expected in EXPECTED.items():
        seen = [_sealed(copied, rng=rng) for _ in range(repeats)]
        differences = [found for found, _, _ in seen]
        passed = [superior(mean_difference(found, level=LEVEL)).verdict == "pass" for found in differences]
        rows.append(share("all labels", f"shown to be better, copied {copied:g}", passed, expected=expected))
        point = [bool(found.mean() > 0.0) for found in differences]
        rows.append(share("point estimate > champion", f"better, copied {copied:g}", point))
        measured = measured_difference(difference=CANDIDATE - CHAMPION, agreement=AGREEMENT, copied=copied)
        values = [float(found.mean()) for found in differences]
        rows.append(mean("all labels", f"difference measured, copied {copied:g}", values, expected=measured))
        estimated = [copied_share(agreed, blind) for _, agreed, blind in seen]
        rows.append(mean("estimate of the copied share", f"value, copied {copied:g}", [e.value for e in estimated]))
        rows.append(
            share(
                "estimate of the copied share",
                f"95 % interval holds {copied:g}",
                [e.low <= copied <= e.high for e in estimated],
            )
        )
    blind_only = [_truth(BLIND, rng=rng) for _ in range(repeats)]
    blind = [mean_difference(_paired(right), level=LEVEL) for right in blind_only]
    better = [superior(one).verdict == "pass" for one in blind]
    kept = [non_inferior(one, margin=MARGIN).verdict == "pass" for one in blind]
    rows.append(share(f"{BLIND} blind labels", "shown to be better", better, expected=0.82))
    rows.append(share(f"{BLIND} blind labels", "shown to be non-inferior", kept, expected=0.98))
    flip = flip_point(difference=CANDIDATE - CHAMPION, agreement=AGREEMENT)
    return Table(
        title="Contaminated labels (G5)",
        setting=(
            f"Champion {CHAMPION:g}, candidate {CANDIDATE:g} accurate, deciding alike in {AGREEMENT:g}; {CASES} "
            f"labels, one-sided 5 %, margin {MARGIN:g}. The sign flips at a copied share of {flip:g}."
        ),
        repeats=repeats,
        rows=tuple(rows),
    )


def _truth(n: int, *, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether candidate and champion are right on `n` cases, (2, n)."""
    gain, both_differ = CANDIDATE - CHAMPION, 1.0 - AGREEMENT
    kinds = rng.choice(4, n, p=_shares(gain, both_differ))
    return np.stack([np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2))])


def _shares(gain: float, differ: float) -> list[float]:
    only_candidate, only_champion = (differ + gain) / 2.0, (differ - gain) / 2.0
    both = CANDIDATE - only_candidate
    return [both, only_candidate, only_champion, 1.0 - both - differ]


def _paired(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(right[0].astype(np.float64) - right[1], dtype=np.float64)


def _sealed(
    copied: float, *, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Differences as labels show them, copied in a share of cases; and blind ones beside them, for the estimate.

    Where a label is copied the champion is right, and the candidate only where both decide alike.
    """
    right = _truth(CASES, rng=rng)
    copies = rng.random(CASES) < copied
    differs = right[0] != right[1]
    differences = np.where(copies, -differs.astype(np.float64), _paired(right))
    alone = _truth(BLIND, rng=rng)
    agreed = np.concatenate([copies | right[1], alone[1]])
    return differences, agreed, np.arange(CASES + BLIND) >= CASES
