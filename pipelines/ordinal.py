"""Grades: classes in an order, of which a miss by two is worse than a miss by one. How they are decided and measured.

Invariant: an ordinal model is one like any other, a logit a class and softmax over them, taught by the log-loss, so
that calibration, heat maps, teaching and growth by a class need know nothing of grades. What differs is how it decides,
and that its decisions are also measured by how far they are from the answers (docs/decisions/0021).

A decision is the median of the probabilities: of all grades the one of least expected distance from the answer.

References: Cohen, Psychological Bulletin 1968 (weighted kappa); Fleiss, Cohen, Everitt, Psychological Bulletin 1969
(its large-sample variance).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics import Floats, MetricError, interval
from pipelines.types import Estimate


def decided(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Return the median grade (N,) of each row of `scores` (N, K): the first that half of the probability reaches."""
    return np.asarray((np.cumsum(scores, axis=1) >= 0.5).argmax(axis=1), dtype=np.int64)


def kappa_estimate(
    labels: NDArray[Any],
    decided: NDArray[Any],
    *,
    grades: int,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the quadratic weighted kappa, in [-1, 1], of `decided` and `labels` (N,), with its interval.

    Both in 0..grades-1; `groups` (N,) names the cluster (patient) of each case. Raises MetricError where both are all
    of one and the same grade.
    """
    value, terms = _influence(labels, decided, grades=grades)
    return interval(value, terms, groups=groups, level=level, low=-1.0, high=1.0)


def paired_kappa_difference(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    grades: int,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the candidate's weighted kappa minus the champion's on the same cases; arguments as in `kappa_estimate`.

    Identical decisions give 0 [0, 0].
    """
    value, terms = _influence(labels, candidate, grades=grades)
    other, other_terms = _influence(labels, champion, grades=grades)
    return interval(value - other, terms - other_terms, groups=groups, level=level, low=-2.0, high=2.0)


def _influence(labels: NDArray[Any], decided: NDArray[Any], *, grades: int) -> tuple[float, Floats]:
    """Kappa, and each case's term of its influence: the squared terms sum to its variance (Fleiss, Cohen, Everitt)."""
    truth, call = (np.asarray(values).astype(np.int64) for values in (labels, decided))
    if truth.shape != call.shape or truth.ndim != 1 or not len(truth):
        raise MetricError(f"{len(truth)} answers and {len(call)} decisions cannot be compared")
    if min(truth.min(), call.min()) < 0 or max(truth.max(), call.max()) >= grades:
        raise MetricError(f"grades must lie in 0..{grades - 1}")
    places = np.arange(grades)
    worth = 1.0 - (places[:, None] - places) ** 2 / (grades - 1) ** 2  # 1 on the diagonal, 0 at the far ends
    rows, columns = (np.bincount(values, minlength=grades) / len(truth) for values in (truth, call))
    by_answer, by_call = worth @ columns, worth @ rows  # expected worth of each answer, and of each decision
    observed, expected = float(worth[truth, call].mean()), float(rows @ worth @ columns)
    if expected >= 1.0 - 1e-12:
        raise MetricError("weighted kappa needs more than one grade")
    kappa = (observed - expected) / (1.0 - expected)
    terms = worth[truth, call] - (by_answer[truth] + by_call[call]) * (1.0 - kappa)
    terms = (terms - (kappa - expected * (1.0 - kappa))) / ((1.0 - expected) * len(truth))
    return kappa, np.asarray(terms, dtype=np.float64)
