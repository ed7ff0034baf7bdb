"""Two models on the same cases: how much better or worse one is, whether that is shown, and how many cases that takes.

Invariant: a difference is always candidate minus champion, so that above 0 is better; cases of one patient count
together; and nothing is shown by too few cases, nor by cases on which nothing happened to differ.

References: DeLong et al., Biometrics 1988; Obuchowski, Biometrics 1997 (clusters); Lachin, Statistics in Medicine 1992,
11:1239 (sample size of paired proportions); Field and Welsh, JRSS B 2007 (cluster bootstrap); FDA, "Non-Inferiority
Clinical Trials", 2016 (margins).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines import metrics
from pipelines.metrics import Floats, MetricError
from pipelines.types import Estimate, Verdict

MINIMUM_CASES = 20
"""Below this a normal interval says nothing; the protocol asks for more than that."""
CHUNK = 32
"""Bootstrap resamples worked on at once: those of 10,000 cases then fit into a processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a comparison shows: the verdict, the reason in words, and the difference it rests on.

    `power` is the probability in [0, 1] that so many cases would have shown it, had the two models been equally good.
    """

    verdict: Verdict
    reason: str
    difference: Estimate | None = None
    power: float | None = None


def mean_difference(differences: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95) -> Estimate:
    """Return the mean of paired `differences` (N,) in [-1, 1] with its interval; the error is taken over patients.

    `groups` (N,) names the patient of each case. Where no two cases differ the error of the mean is not 0: the interval
    is then as wide as the share of patients that so many others do not rule out. Raises MetricError.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not (np.abs(values) <= 1.0).all():  # not true of NaN either
        raise MetricError("paired differences must be one-dimensional, finite and in [-1, 1]")
    clusters = len(values) if groups is None else len(np.unique(groups))
    if clusters < 2:
        raise MetricError(f"a paired comparison needs at least two patients, not {clusters}")
    mean = float(values.mean())
    if np.ptp(values) == 0.0:
        unseen = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / clusters)
        low, high = mean - unseen * (1.0 + mean), mean + unseen * (1.0 - mean)
        return Estimate(value=mean, low=low, high=high, n=len(values), level=level)
    terms = (values - mean) / len(values) * math.sqrt(clusters / (clusters - 1))
    return metrics.interval(mean, terms, groups=groups, level=level, low=-1.0, high=1.0)


def class_auroc_differences(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    level: float = 0.95,
) -> tuple[Estimate, ...]:
    """Return the paired difference of each class's one-vs-rest AUROC; `labels` (N,) in 0..K-1, scores (N, K) in [0, 1].

    `metrics.paired_macro_auroc_difference` is their mean. Raises MetricError where a class has no case.
    """
    first, second = np.asarray(candidate), np.asarray(champion)
    if first.ndim != 2 or first.shape != second.shape:
        raise MetricError("scores of many classes must have shape (cases, classes), the same for both models")
    return tuple(
        metrics.paired_auroc_difference(np.asarray(labels) == k, first[:, k], second[:, k], groups=groups, level=level)
        for k in range(first.shape[1])
    )


def non_inferior(
    difference: Estimate, *, margin: float, against: str = "the champion", minimum: int = MINIMUM_CASES
) -> Judged:
    """Judge whether the candidate is shown to be worse by less than `margin`: the lower bound is above -margin.

    A one-sided test at alpha reads an estimate of `level` = 1 - 2 alpha. Fewer than `minimum` cases show nothing.
    """
    if (refused := _unusable(difference, minimum=minimum)) is not None:
        return refused
    chance = power(difference, margin=margin)
    if difference.low > -margin:
        return Judged(verdict="pass", reason=f"not worse than {against}", difference=difference, power=chance)
    if difference.value <= -margin:
        reason = f"worse than {against} by {-difference.value:.3f}"
        return Judged(verdict="fail", reason=reason, difference=difference, power=chance)
    reason = f"on {difference.n} cases it may be {-difference.low:.3f} worse than {against}"
    return Judged(verdict="insufficient", reason=reason, difference=difference, power=chance)


def superior(difference: Estimate, *, against: str = "the champion", minimum: int = MINIMUM_CASES) -> Judged:
    """Judge whether the candidate is shown to be better: the lower bound is above 0. As `non_inferior`, no margin."""
    if (refused := _unusable(difference, minimum=minimum)) is not None:
        return refused
    if difference.low > 0.0:
        return Judged(verdict="pass", reason=f"better than {against}", difference=difference)
    if difference.value > 0.0:
        reason = f"looks better than {against}, but {difference.n} cases do not show it"
        return Judged(verdict="insufficient", reason=reason, difference=difference)
    return Judged(verdict="fail", reason=f"not better than {against}", difference=difference)


def power(difference: Estimate, *, margin: float, true_difference: float = 0.0) -> float:
    """Return the chance, in [0, 1], that a comparison as precise as this one shows non-inferiority by `margin`."""
    z = metrics.normal_quantile(0.5 + difference.level / 2.0)
    error = (difference.value - difference.low) / z if z > 0.0 else 0.0  # at level 0 the point value alone decides
    if error <= 0.0:
        return 1.0 if margin + true_difference > 0.0 else 0.0
    return float(special.ndtr((margin + true_difference) / error - z))


def sample_size(
    *, discordance: float, margin: float, true_difference: float = 0.0, alpha: float = 0.05, target: float = 0.8
) -> int:
    """Return how many pairs show non-inferiority by `margin` with probability `target`, one-sided at `alpha`.

    `discordance` is the share of cases on which one model is right and the other wrong, `true_difference` how much
    better the candidate is. n = (z_alpha + z_beta)^2 (discordance - difference^2) / (margin + difference)^2 (Lachin
    1992). Raises MetricError where no number of cases would do.
    """
    if margin + true_difference <= 0.0 or not true_difference**2 <= discordance <= 1.0:
        raise MetricError(
            f"no number of cases shows a difference of {true_difference:g} to be above {-margin:g} "
            f"with discordance {discordance:g}"
        )
    z = metrics.normal_quantile(1.0 - alpha) + metrics.normal_quantile(target)
    return math.ceil(z**2 * (discordance - true_difference**2) / (margin + true_difference) ** 2)


def bootstrap_mean_difference(
    differences: NDArray[Any],
    *,
    rng: np.random.Generator,
    groups: NDArray[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Return the mean of paired `differences` (N,) with a percentile interval; whole patients are drawn."""
    values = np.asarray(differences, dtype=np.float64)
    clusters, count = _clusters(groups, len(values))
    totals, sizes = np.bincount(clusters, weights=values), np.bincount(clusters).astype(np.float64)
    draws = np.concatenate(
        [(totals @ drawn) / (sizes @ drawn) for drawn in _draws(count, resamples=resamples, rng=rng)]
    )
    return _percentile(float(values.mean()), draws, n=len(values), level=level)


def bootstrap_auroc_difference(
    labels: NDArray[Any],
    candidate: NDArray[Any],
    champion: NDArray[Any],
    *,
    rng: np.random.Generator,
    groups: NDArray[Any] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Return AUROC(candidate) - AUROC(champion) with a percentile interval; whole patients are drawn.

    Arguments as in `metrics.paired_auroc_difference`. A resample that lacks a class has no AUROC and is left out.
    """
    value = metrics.auroc(labels, candidate) - metrics.auroc(labels, champion)
    truth = np.asarray(labels).astype(bool)
    clusters, count = _clusters(groups, len(truth))
    first, second = _Ranked.of(truth, np.asarray(candidate)), _Ranked.of(truth, np.asarray(champion))
    draws = []
    for drawn in _draws(count, resamples=resamples, rng=rng):
        weights = drawn[clusters]  # (N, R): how often each case was drawn
        draws.append(first.aurocs(weights) - second.aurocs(weights))
    found = np.concatenate(draws)
    return _percentile(value, found[np.isfinite(found)], n=len(truth), level=level)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """Where each positive stands among the negatives, worked out once for all resamples."""

    positives: NDArray[np.intp]
    negatives: NDArray[np.intp]  # by ascending score
    below: NDArray[np.intp]  # negatives that score lower than each positive
    up_to: NDArray[np.intp]  # negatives that score no higher than each positive

    @staticmethod
    def of(truth: NDArray[np.bool_], scores: NDArray[Any]) -> _Ranked:
        """Rank `scores` (N,) of positives and negatives by `truth` (N,)."""
        positives, negatives = np.flatnonzero(truth), np.flatnonzero(~truth)
        negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        ordered = scores[negatives]
        return _Ranked(
            positives=positives,
            negatives=negatives,
            below=np.searchsorted(ordered, scores[positives], "left"),
            up_to=np.searchsorted(ordered, scores[positives], "right"),
        )

    def aurocs(self, weights: Floats) -> Floats:
        """AUROC (R,) under each column of `weights` (N, R); NaN where a class has no weight."""
        cumulative = np.zeros((len(self.negatives) + 1, weights.shape[1]))
        np.cumsum(weights[self.negatives], axis=0, out=cumulative[1:])
        ours = weights[self.positives]
        won = np.einsum("pr,pr->r", ours, cumulative[self.below] + cumulative[self.up_to]) / 2.0
        pairs = ours.sum(axis=0) * cumulative[-1]
        areas: Floats = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0.0)
        return areas


def _clusters(groups: NDArray[Any] | None, n: int) -> tuple[NDArray[np.intp], int]:
    if n == 0:
        raise MetricError("a bootstrap needs at least one case")
    if groups is None:
        return np.arange(n), n
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    return inverse, len(names)


def _draws(count: int, *, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of `count` patients is drawn in each resample, (count, R) at a time, `resamples` in all."""
    for begin in range(0, resamples, CHUNK):
        width = min(CHUNK, resamples - begin)
        patients = rng.integers(0, count, (count, width))
        drawn = np.bincount((patients * width + np.arange(width)).ravel(), minlength=count * width)
        yield drawn.reshape(count, width).astype(np.float64)


def _percentile(value: float, draws: Floats, *, n: int, level: float) -> Estimate:
    if len(draws) == 0:
        raise MetricError("no resample has a value: a class is too rare")
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=n, level=level)


def _unusable(difference: Estimate, *, minimum: int) -> Judged | None:
    if not all(map(math.isfinite, (difference.value, difference.low, difference.high))):
        return Judged(verdict="fail", reason="the difference is not a number")
    if difference.n < minimum:
        reason = f"only {difference.n} cases, at least {minimum} are needed"
        return Judged(verdict="insufficient", reason=reason, difference=difference)
    return None
