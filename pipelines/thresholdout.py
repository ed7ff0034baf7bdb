"""The open board: scores that developers see day to day, which come from `tune`; a hold-out answers only through noise.

Invariant: a question to the hold-out is answered with the training value as long as the two agree, and with a noisy
hold-out value where they do not; only the latter tells something of the hold-out, and of those there is a budget.

Reference: Dwork, Feldman, Hardt, Pitassi, Reingold, Roth, Science 2015, 349:636 (Thresholdout).

    python -m pipelines.simulate test-reuse
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics import Floats, MetricError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Board:
    """The answers (K,), and how many answers about the hold-out are left after them."""

    values: Floats
    left: int


def answer(
    train: NDArray[Any],
    holdout: NDArray[Any],
    *,
    threshold: float,
    tolerance: float,
    left: int,
    rng: np.random.Generator,
) -> Board:
    """Answer K questions, whose values on the training data and on the hold-out are (K,), finite.

    `threshold` is how far the two may lie apart and still count as agreeing, `tolerance` the scale of the noise, both
    in the unit of the values (Dwork et al. 2015, for correlations: 4 and 1 over the root of the hold-out's size).
    `left` hold-out answers may be given; further ones are NaN, and the board has to say that only `tune` is shown.
    Raises MetricError.
    """
    first, second = np.asarray(train, dtype=np.float64), np.asarray(holdout, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not (np.isfinite(first) & np.isfinite(second)).all():
        raise MetricError("each question needs a finite value on the training data and on the hold-out")
    if threshold <= 0.0 or tolerance <= 0.0:
        raise MetricError("threshold and tolerance must be above 0: without noise the hold-out is read out")
    limits = threshold + rng.normal(0.0, tolerance, len(first))
    disagree = np.abs(first - second) > limits
    noisy = second + rng.normal(0.0, tolerance, len(first))
    told = disagree & (np.cumsum(disagree) <= left)
    values = np.where(told, noisy, np.where(disagree, np.nan, first))
    return Board(values=values, left=max(0, left - int(told.sum())))
