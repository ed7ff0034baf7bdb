"""What a model is worth, measured: discrimination, decisions, calibration, each with its interval.

Invariant: pure functions of arrays, no torch, nothing guessed. Labels are class indices, scores lie in [0, 1]; anything
else (NaN, a missing class, unequal lengths) raises MetricError, never a silent 0.5.

References: DeLong, DeLong, Clarke-Pearson, Biometrics 1988 (paired AUROC); Obuchowski, Biometrics 1997 (clusters);
Newcombe, Statistics in Medicine 1998, 17:2635, method 10 (paired proportions); Clopper and Pearson, Biometrika 1934;
Wilson, JASA 1927; Nixon et al., CVPR workshops 2019 (equal-mass calibration error).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines.types import Estimate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class MetricError(ValueError):
    """The metric has no value on these numbers; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Exact McNemar test of two paired yes/no series; `difference` is candidate rate minus champion rate."""

    only_candidate: int
    only_champion: int
    p_value: float
    difference: Estimate


def auroc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the area under the ROC curve, ties counted half.

    `labels` (N,) bool or 0/1, `scores` (N,) in [0, 1]. Raises MetricError unless both classes are there.
    """
    return _placements(*_binary(labels, scores))[0]


def auroc_estimate(
    labels: NDArray[Any], scores: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95
) -> Estimate:
    """Return AUROC with its DeLong interval, two-sided at `level`, cut to [0, 1].

    `groups` (N,) names the cluster (patient) of each case; the standard error is then taken over cluster totals.
    """
    area, terms = _placements(*_binary(labels, scores))
    return interval(area, terms, groups=groups, level=level, low=0.0, high=1.0)


def paired_auroc_difference(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return AUROC(candidate) - AUROC(champion) on the same cases with DeLong's paired interval, clustered by `groups`.

    A one-sided test at alpha reads the bound of `level` = 1 - 2 alpha. Identical scores give 0 [0, 0].
    """
    area, terms = _placements(*_binary(labels, candidate))
    other_area, other_terms = _placements(*_binary(labels, champion))
    return interval(area - other_area, terms - other_terms, groups=groups, level=level, low=-1.0, high=1.0)


def macro_auroc_estimate(
    labels: NDArray[Any], scores: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95
) -> Estimate:
    """Return the mean one-vs-rest AUROC of `scores` (N, K) for `labels` (N,) in 0..K-1, with its DeLong interval.

    `labels` (N, K) bool say of each column by itself which cases are positive.
    """
    area, terms = _macro(labels, scores)
    return interval(area, terms, groups=groups, level=level, low=0.0, high=1.0)


def paired_macro_auroc_difference(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
) -> Estimate:
    """Return the paired difference of the mean one-vs-rest AUROC; arguments as in `macro_auroc_estimate`."""
    area, terms = _macro(labels, candidate)
    other_area, other_terms = _macro(labels, champion)
    return interval(area - other_area, terms - other_terms, groups=groups, level=level, low=-1.0, high=1.0)


def interval(
    value: float, terms: Floats, *, groups: NDArray[Any] | None, level: float, low: float, high: float
) -> Estimate:
    """Return `value` with the normal interval at `level` of an estimator whose variance is the sum of squared `terms`.

    `terms` (N,) are summed within `groups` (N,) first, so that cases of one patient count together; the interval is cut
    to [`low`, `high`].
    """
    totals: Floats = terms
    if groups is not None:
        _same_length(terms, groups)
        _, inverse = np.unique(np.asarray(groups), return_inverse=True)
        totals = np.bincount(inverse, weights=terms).astype(np.float64)
    half = normal_quantile(0.5 + level / 2.0) * float(np.sqrt(np.sum(totals**2)))
    return Estimate(
        value=float(value),
        low=max(low, float(value - half)),
        high=min(high, float(value + half)),
        n=len(terms),
        level=level,
    )


def auroc_influence(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[float, Floats]:
    """Return AUROC and the influence (N,) of each case on it: the terms sum to 0, their squares to DeLong's variance.

    `labels` (N,) bool or 0/1, `scores` (N,) in [0, 1]. Ask once a model where many comparisons share it. Raises
    MetricError unless both classes are there.
    """
    return _placements(*_binary(labels, scores))


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Return a proportion with its exact (Clopper-Pearson) two-sided interval at `level`."""
    _check_count(successes, n)
    tail = (1.0 - level) / 2.0
    low = float(special.betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, n - successes, 1.0 - tail)) if successes < n else 1.0
    return Estimate(value=successes / n, low=low, high=high, n=n, level=level)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Estimate:
    """Return a proportion with its Wilson score interval, two-sided at `level`."""
    _check_count(successes, n)
    z, p = normal_quantile(0.5 + level / 2.0), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return Estimate(value=p, low=max(0.0, centre - half), high=min(1.0, centre + half), n=n, level=level)


def binomial_tail(successes: int, n: int, *, rate: float) -> float:
    """Return P(X >= successes) for X ~ Binomial(n, rate): the exact one-sided p-value against "at most `rate`"."""
    _check_count(successes, n)
    return 1.0 if successes == 0 else float(special.betainc(successes, n - successes + 1, rate))


def sensitivity(labels: NDArray[Any], called: NDArray[Any], *, level: float = 0.95) -> Estimate:
    """Return the share of positives that were called positive; `labels` and `called` (N,) bool. Clopper-Pearson."""
    truth, call = _flags(labels), _flags(called)
    _same_length(truth, call)
    if not truth.any():
        raise MetricError("sensitivity needs at least one positive case")
    return clopper_pearson(int(call[truth].sum()), int(truth.sum()), level=level)


def specificity(labels: NDArray[Any], called: NDArray[Any], *, level: float = 0.95) -> Estimate:
    """Return the share of negatives that were not called positive; `labels` and `called` (N,) bool."""
    truth, call = _flags(labels), _flags(called)
    _same_length(truth, call)
    if truth.all():
        raise MetricError("specificity needs at least one negative case")
    return clopper_pearson(int((~call[~truth]).sum()), int((~truth).sum()), level=level)


def mcnemar(
    candidate: NDArray[Any], champion: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95
) -> McNemar:
    """Compare two paired series of right/wrong (N,) bool: exact two-sided p-value, and the difference of the rates.

    The interval is Newcombe's hybrid score (method 10). With `groups` that hold several cases each, it is widened to
    hold the cluster-robust Wald interval too.
    """
    first, second = _flags(candidate), _flags(champion)
    _same_length(first, second)
    n = len(first)
    if n == 0:
        raise MetricError("a paired comparison needs at least one case")
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    p_value = min(1.0, 2.0 * binomial_tail(max(gained, lost), gained + lost, rate=0.5)) if gained + lost else 1.0
    low, high = _newcombe(first, second, level=level)
    if groups is not None and len(np.unique(groups)) < n:
        paired = first.astype(float) - second.astype(float)
        wald = interval(paired.mean(), (paired - paired.mean()) / n, groups=groups, level=level, low=-1.0, high=1.0)
        low, high = min(low, wald.low), max(high, wald.high)
    difference = Estimate(value=(gained - lost) / n, low=low, high=high, n=n, level=level)
    return McNemar(only_candidate=gained, only_champion=lost, p_value=p_value, difference=difference)


def ece(correct: NDArray[Any], confidence: NDArray[Any], *, bins: int = 10) -> float:
    """Return the expected calibration error over equal-mass bins, in [0, 1].

    `correct` (N,) bool and `confidence` (N,) in [0, 1]: for one class, "is of the class" and its score; for arg-max
    decisions, "was right" and the top score. Fewer than `bins` cases use one bin a case.
    """
    truth, score = _flags(correct), _scores(confidence)
    _same_length(truth, score)
    if len(score) == 0:
        raise MetricError("calibration needs at least one case")
    order = np.argsort(score, kind="stable")
    gaps = [
        len(part) * abs(truth[part].mean() - score[part].mean())
        for part in np.array_split(order, min(bins, len(order)))
    ]
    return float(sum(gaps) / len(score))


def ece_estimate(
    correct: NDArray[Any],
    confidence: NDArray[Any],
    *,
    rng: np.random.Generator,
    bins: int = 10,
    resamples: int = 300,
    level: float = 0.95,
) -> Estimate:
    """Return `ece` with a percentile bootstrap interval over cases (stretched, if need be, to hold the value)."""
    truth, score = _flags(correct), _scores(confidence)
    value = ece(truth, score, bins=bins)
    draws = rng.integers(0, len(score), (resamples, len(score)))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile([ece(truth[d], score[d], bins=bins) for d in draws], [tail, 1.0 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=len(score), level=level)


def holm(p_values: list[float], *, alpha: float) -> list[tuple[bool, float]]:
    """Return for each p-value whether Holm's step-down rejects it, and the local alpha it was held against."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    answers = [(False, alpha)] * len(p_values)
    rejecting = True
    for step, position in enumerate(order):
        local = alpha / (len(p_values) - step)
        rejecting = rejecting and p_values[position] <= local
        answers[position] = (rejecting, local)
    return answers


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile of `probability` in (0, 1)."""
    return float(special.ndtri(probability))


def _placements(positive: Bools, scores: Floats) -> tuple[float, Floats]:
    """AUROC and each case's term of its influence: the squared terms sum to DeLong's variance.

    One sort does it: a case's placement is the share of the other class that scores lower, those tied counted half.
    """
    order = np.argsort(scores)
    ordered, truth = scores.take(order), positive.take(order)
    cases, controls = np.flatnonzero(truth), np.flatnonzero(~truth)  # places in the order
    m, n = len(cases), len(controls)
    if (ordered[1:] == ordered[:-1]).any():
        lower = _lower(ordered, truth)
        above, below = lower[0].take(cases) / n, 1 - lower[1].take(controls) / m
    else:
        above, below = (cases - np.arange(m)) / n, 1 - (controls - np.arange(n)) / m
    area = float(above.mean())
    terms = np.empty(m + n)
    # m (m - 1): each class's sample variance over its size. A class of one case has none and adds nothing.
    terms[order.take(cases)] = (above - area) / np.sqrt(m * max(m - 1, 1))
    terms[order.take(controls)] = (below - area) / np.sqrt(n * max(n - 1, 1))
    return area, terms


def _lower(ordered: Floats, truth: Bools) -> tuple[Floats, Floats]:
    """For each place in the order, how many controls and how many cases score lower, those tied counted half."""
    bounds = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))  # of runs of equal scores
    run = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    controls = np.concatenate([[0], np.cumsum(~truth)])[bounds]
    before = np.stack([controls, bounds - controls])
    first, second = ((before[:, :-1] + before[:, 1:]) / 2).take(run, axis=1)
    return first, second


def _macro(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[float, Floats]:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2:
        raise MetricError("scores of many classes must have shape (cases, classes)")
    truth = np.asarray(labels)
    if truth.ndim == 2 and truth.shape != table.shape:
        raise MetricError("labels of several findings must have the shape of their scores")
    positives = truth.T if truth.ndim == 2 else [truth == k for k in range(table.shape[1])]
    parts = [_placements(*_binary(positive, table[:, k])) for k, positive in enumerate(positives)]
    return float(np.mean([area for area, _ in parts])), np.mean([terms for _, terms in parts], axis=0)


def _newcombe(first: Bools, second: Bools, *, level: float) -> tuple[float, float]:
    """Newcombe 1998 method 10: Wilson limits of the two rates, joined through their correlation."""
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    one, two = wilson(both + gained, n, level=level), wilson(both + lost, n, level=level)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    cross = float(both * neither - gained * lost)
    if cross > 0:  # continuity correction of the correlation, as published
        cross = max(cross - n / 2, 0.0)
    phi = cross / float(np.sqrt(product)) if product else 0.0
    difference = one.value - two.value
    down = (one.value - one.low) ** 2 - 2 * phi * (one.value - one.low) * (two.high - two.value)
    up = (two.value - two.low) ** 2 - 2 * phi * (two.value - two.low) * (one.high - one.value)
    low = difference - float(np.sqrt(max(0.0, down + (two.high - two.value) ** 2)))
    high = difference + float(np.sqrt(max(0.0, up + (one.high - one.value) ** 2)))
    return max(-1.0, low), min(1.0, high)


def _binary(labels: NDArray[Any], scores: NDArray[Any]) -> tuple[Bools, Floats]:
    positive, values = _flags(labels), _scores(scores)
    _same_length(positive, values)
    if not positive.any() or positive.all():
        raise MetricError("AUROC needs at least one positive and one negative case")
    return positive, values


def _flags(values: NDArray[Any]) -> Bools:
    array = np.asarray(values)
    if array.ndim != 1 or not ((array == 0) | (array == 1)).all():
        raise MetricError("labels and decisions must be one-dimensional, 0 or 1")
    return array.astype(bool)


def _scores(values: NDArray[Any]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():  # not true of NaN either
        raise MetricError("scores must be one-dimensional, finite and in [0, 1]")
    return array


def _same_length(first: NDArray[Any], second: NDArray[Any]) -> None:
    if len(first) != len(second):
        raise MetricError(f"{len(first)} and {len(second)} values cannot be paired")


def _check_count(successes: int, n: int) -> None:
    if n <= 0 or not 0 <= successes <= n:
        raise MetricError(f"{successes} of {n} is not a proportion")
