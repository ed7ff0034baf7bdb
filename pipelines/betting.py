"""Evidence that may be looked at after every case: money won by betting against what is claimed.

Invariant: each bet depends only on cases before it, so that the capital of a bettor against a true claim is a
non-negative supermartingale: the chance that it ever reaches 1 / alpha is at most alpha, whenever and however often
somebody looks (Ville's inequality).

References: Waudby-Smith and Ramdas, JRSS B 2024, 86:1 (betting); Ville 1939.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics import Floats, MetricError

BOLDEST = 0.5
"""Most of the capital that may be lost on one case; below 1, so that no single case ends the game."""
HIGHEST = 700.0
"""Logarithm of the most that is counted: float64 ends at 709, and no claim needs as much to be refuted."""


def capital(
    values: NDArray[Any],
    claim: float,
    *,
    expected: float,
    spread: float,
    weight: float,
    memory: float | None = None,
) -> Floats:
    """Return the capital (N,) after each of `values` (N,) in [0, 1], bet against "the mean is at most `claim`".

    The bet before case t is (m - claim) / (v + (m - claim)^2), with m and v the mean and the variance of the cases
    before it and of `weight` cases imagined with mean `expected` and variance `spread`; never below 0, never so high
    that a case could cost more than half the capital. With `memory` m and v forget: a case counts e^-1 after so many
    more. Raises MetricError.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not ((x >= 0.0) & (x <= 1.0)).all():
        raise MetricError("values to bet on must be one-dimensional, finite and in [0, 1]")
    if not (0.0 < claim < 1.0 and spread > 0.0 and weight > 0.0):
        raise MetricError("a bet needs a claim in (0, 1), a spread and a weight above 0")
    seen, total, squares = _past(x - expected, memory=memory)
    mean = total / (weight + seen)
    variance = (weight * spread + squares) / (weight + seen) - mean**2
    edge = np.maximum(expected + mean - claim, 0.0)
    bets = np.minimum(edge / (np.maximum(variance, 1e-12) + edge**2), BOLDEST / claim)
    return np.asarray(np.exp(np.minimum(np.cumsum(np.log1p(bets * (x - claim))), HIGHEST)), dtype=np.float64)


def _past(x: Floats, *, memory: float | None) -> tuple[Floats, Floats, Floats]:
    """Count, sum and sum of squares of the cases before each case, faded by `memory`."""
    rows = np.stack([np.ones_like(x), x, x**2])
    if memory is None:
        sums = np.cumsum(rows, axis=1)
    else:
        from scipy.signal import lfilter  # noqa: PLC0415 - slow to import, and only an alarm forgets

        sums = np.asarray(lfilter([1.0], [1.0, -np.exp(-1.0 / memory)], rows, axis=1))
    before = np.concatenate([np.zeros((3, 1)), sums[:, :-1]], axis=1)
    return before[0], before[1], before[2]
