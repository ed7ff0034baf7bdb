"""From logits to probabilities and from probabilities to a decision, both fitted on the tune split only.

Invariant: the sealed test never enters here; what is fitted is one temperature and one threshold, and a rule that no
threshold meets yields an operating point without one, which the gates fail. Networks are trained with every class drawn
evenly, so their probabilities are put back to the line's own class shares (`log_prior`) before they mean anything.

References: Guo et al., ICML 2017 (temperature); Saerens et al., Neural Computation 2002 (class shares);
Youden, Cancer 1950 (J = sensitivity + specificity - 1); Breiman et al., Classification and Regression Trees, 1984
(the one-standard-error rule); Vickers and Elkin, Medical Decision Making 2006 (net benefit); Chow, IEEE Transactions on
Information Theory 1970 (leaving the unclear ones to others).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics import Floats, MetricError, sensitivity, specificity
from pipelines.types import Estimate, OperatingPoint, Split

Rule = Literal["youden", "sensitivity_at_specificity", "specificity_at_sensitivity", "net_benefit"]
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 0.05, 20.0
FEWEST_AT_A_SITE = 10
FEWEST_FOR_A_POINT = 30
"""Cases of each class below which a site gets no operating point of its own."""
GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0

Curve = tuple[Floats, Floats, Floats]
"""Thresholds in [0, 1], from the lowest, with the sensitivity and the specificity at each; (T,) all three."""


class LogLoss(NamedTuple):
    """A mean negative log-likelihood in nats, and its standard error over the cases."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLook:
    """The scores from `low` to `high`, about a threshold, of which a model says that they need a second look.

    `share` is what the protocol asks for; the estimates are those of the cases outside the band.
    """

    share: float
    low: float
    high: float
    sensitivity: Estimate | None
    specificity: Estimate | None


def log_prior(labels: NDArray[Any], *, classes: int) -> Floats:
    """Return the logarithm of each class's share (K,) among `labels` (N,), none below that of half a case."""
    counts = np.maximum(np.bincount(labels, minlength=classes), 0.5)
    return np.asarray(np.log(counts / counts.sum()), dtype=np.float64)


def softmax(logits: NDArray[Any], *, temperature: float = 1.0, log_prior: NDArray[Any] | None = None) -> Floats:
    """Return class probabilities (N, K): softmax(logits / temperature + log_prior). Raises MetricError on NaN."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if log_prior is not None:
        scaled = scaled + log_prior
    if not np.isfinite(scaled).all():
        raise MetricError("logits must be finite")
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def balanced(groups: Sequence[Floats]) -> LogLoss:
    """Return the mean loss of groups of cases that weigh alike; `groups` hold the losses (n,) of each, n >= 1."""
    variance = sum(float(losses.var()) / max(1, len(losses) - 1) for losses in groups)
    return LogLoss(float(np.mean([losses.mean() for losses in groups])), math.sqrt(variance) / len(groups))


def balanced_log_loss(logits: NDArray[Any], labels: NDArray[Any]) -> LogLoss:
    """Return the log-loss of `logits` (N, K) for `labels` (N,), each class weighing the same."""
    losses = _losses(softmax(logits), labels)
    return balanced([losses[labels == k] for k in np.unique(labels)])


def worst_site_log_loss(logits: NDArray[Any], labels: NDArray[Any], sites: NDArray[Any]) -> LogLoss:
    """Return `balanced_log_loss` at the site where it is highest; `logits` (N, K), `labels` and `sites` (N,).

    Only sites with at least 10 cases of each class are looked at on their own; where there is none, all cases together.
    """
    own = [sites == site for site in np.unique(sites)]
    told = [here for here in own if np.bincount(labels[here], minlength=logits.shape[1]).min() >= FEWEST_AT_A_SITE]
    return max(balanced_log_loss(logits[here], labels[here]) for here in told or [np.ones(len(labels), dtype=bool)])


def fit_temperature(logits: NDArray[Any], labels: NDArray[Any], *, log_prior: NDArray[Any] | None = None) -> float:
    """Return the temperature in [0.05, 20] of least log-loss on `logits` (N, K) and `labels` (N,), given the prior.

    The loss is convex in 1/temperature, so golden-section search over it finds the one minimum.
    """

    def loss(inverse: float) -> float:
        return float(_losses(softmax(logits, temperature=1.0 / inverse, log_prior=log_prior), labels).mean())

    low, high = 1.0 / LARGEST_TEMPERATURE, 1.0 / SMALLEST_TEMPERATURE
    for _ in range(60):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(2.0 / (low + high))


def choose_operating_point(
    labels: NDArray[Any],
    scores: NDArray[Any],
    *,
    rule: Rule,
    target: float | None = None,
    champion: NDArray[Any] | None = None,
    sites: NDArray[Any] | None = None,
    chosen_on: Split = "tune",
) -> OperatingPoint:
    """Choose the threshold on `scores` (N,) in [0, 1] for `labels` (N,) bool; a case is called at score >= threshold.

    `youden` is not the highest J itself, which jumps about with a few cases: of all thresholds whose J lies within one
    standard error of the highest (Breiman's one-standard-error rule) it is the nearest to their middle in log-odds.
    `net_benefit` is the highest share of true positives minus that of false ones times target / (1 - target), where
    `target` is the probability at which a reader is indifferent. The two others take the best threshold that keeps it.
    `threshold` is None where none does.

    `champion` (N,) bool is what the champion calls positive. The rule then chooses among those thresholds alone that
    keep the target and have the least shortfall, none where the curve allows it: how far sensitivity or specificity is
    below the champion's, the worst of both, over all cases and at each of `sites` (N,) with 10 of each class; "" is
    none. Raises MetricError unless both classes are there.
    """
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    if not truth.any() or truth.all():
        raise MetricError("an operating point needs at least one positive and one negative case")
    levels = np.unique(values)
    thresholds = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2.0])  # midway between neighbouring scores
    curve: Curve = (thresholds, *_rates(thresholds, truth, values))
    shortfall = None
    if champion is not None:
        lost = _lost(thresholds, truth, values, champion=np.asarray(champion).astype(bool), sites=sites)
        curve, shortfall = _least(curve, lost, rule=rule, target=target)
    threshold = _by_rule(curve, truth, rule=rule, target=target)
    called = None if threshold is None else values >= threshold
    return OperatingPoint(
        rule=rule,
        target=target,
        threshold=threshold,
        sensitivity=None if called is None else sensitivity(truth, called),
        specificity=None if called is None else specificity(truth, called),
        chosen_on=chosen_on,
        shortfall=None if called is None else shortfall,
    )


def points_by_site(
    labels: NDArray[Any],
    scores: NDArray[Any],
    sites: NDArray[Any],
    *,
    rule: Rule,
    target: float | None = None,
    champion: NDArray[Any] | None = None,
) -> Mapping[str, OperatingPoint]:
    """Choose an operating point for each of `sites` (N,) with at least 30 cases of each class; others have none."""
    found = {}
    for site, here in _with_cases(labels, sites, fewest=FEWEST_FOR_A_POINT):
        beside = None if champion is None else champion[here]
        found[site] = choose_operating_point(labels[here], scores[here], rule=rule, target=target, champion=beside)
    return found


def second_look(labels: NDArray[Any], scores: NDArray[Any], *, threshold: float, share: float) -> SecondLook:
    """Choose the band about `threshold`, equally wide in log-odds either way, in which `share` of `scores` (N,) lie.

    `labels` (N,) bool. The estimates are None where no case of a class is left outside.
    """
    truth, values = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    middle = _log_odds(np.array(threshold))
    reach = float(np.quantile(np.abs(_log_odds(values) - middle), share))
    low, high = (float(1.0 / (1.0 + np.exp(-(middle + side * reach)))) for side in (-1.0, 1.0))
    clear = (values < low) | (values > high)
    called = values[clear] >= threshold
    return SecondLook(
        share=share,
        low=low,
        high=high,
        sensitivity=sensitivity(truth[clear], called) if truth[clear].any() else None,
        specificity=specificity(truth[clear], called) if (~truth[clear]).any() else None,
    )


def _log_odds(scores: Floats) -> Floats:
    clipped = np.clip(scores, 1e-9, 1.0 - 1e-9)
    return np.asarray(np.log(clipped / (1.0 - clipped)), dtype=np.float64)


def _with_cases(labels: NDArray[Any], sites: NDArray[Any], *, fewest: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Each of `sites` (N,) with so many cases of each of `labels` (N,) bool, and which cases (N,) are its own."""
    for site in np.unique(sites):
        here = np.asarray(sites == site)
        if min(np.sum(labels[here]), np.sum(~labels[here])) >= fewest:
            yield str(site), here


def _rates(thresholds: Floats, truth: NDArray[np.bool_], values: Floats) -> tuple[Floats, Floats]:
    """Sensitivity and specificity (T,) at `thresholds` (T,)."""
    hits = 1.0 - np.searchsorted(np.sort(values[truth]), thresholds, "left") / truth.sum()
    return hits, np.searchsorted(np.sort(values[~truth]), thresholds, "left") / (~truth).sum()


def _lost(
    thresholds: Floats,
    truth: NDArray[np.bool_],
    values: Floats,
    *,
    champion: NDArray[np.bool_],
    sites: NDArray[Any] | None,
) -> Floats:
    """The shortfall (T,) in [0, 1] at `thresholds` (T,) beside what the champion calls (N,)."""
    looked_at = [np.ones(len(truth), dtype=bool)]
    if sites is not None:
        looked_at += [here for site, here in _with_cases(truth, sites, fewest=FEWEST_AT_A_SITE) if site]
    lost = np.zeros(len(thresholds))
    for here in looked_at:
        of, theirs = truth[here], champion[here]
        hits, correct_rejections = _rates(thresholds, of, values[here])
        lost = np.maximum(lost, np.maximum(theirs[of].mean() - hits, (~theirs[~of]).mean() - correct_rejections))
    return lost


def _least(curve: Curve, lost: Floats, *, rule: Rule, target: float | None) -> tuple[Curve, float]:
    """The part of a curve at which the least is `lost` (T,), of what keeps the rule's target; and how much that is."""
    thresholds, hits, correct_rejections = curve
    kept = {"sensitivity_at_specificity": correct_rejections, "specificity_at_sensitivity": hits}.get(rule)
    if kept is not None and target is not None:
        lost = np.where(kept >= target, lost, np.inf)
    least = lost <= lost.min() + 1e-12
    return (thresholds[least], hits[least], correct_rejections[least]), float(lost.min())


def _by_rule(curve: Curve, truth: NDArray[np.bool_], *, rule: Rule, target: float | None) -> float | None:
    thresholds, hits, correct_rejections = curve
    if rule == "youden":
        return _youden(*curve, positives=truth.sum(), negatives=(~truth).sum())
    if rule == "sensitivity_at_specificity":
        return _best(thresholds, worth=hits, kept=correct_rejections, target=target)
    if rule == "specificity_at_sensitivity":
        return _best(thresholds, worth=correct_rejections, kept=hits, target=target)
    if rule == "net_benefit":
        assert target is not None, "the protocol has checked that there is one"
        harm = (1.0 - correct_rejections) * (~truth).mean() * target / (1.0 - target)
        return _best(thresholds, worth=hits * truth.mean() - harm, kept=np.ones_like(hits), target=0.0)
    assert_never(rule)


def _youden(thresholds: Floats, hits: Floats, correct_rejections: Floats, *, positives: int, negatives: int) -> float:
    worth = hits + correct_rejections
    top = int(worth.argmax())
    variance = hits[top] * (1.0 - hits[top]) / positives
    variance += correct_rejections[top] * (1.0 - correct_rejections[top]) / negatives
    near = thresholds[worth >= worth[top] - np.sqrt(variance) - 1e-12].clip(1e-9, 1.0 - 1e-9)
    places = np.log(near / (1.0 - near))
    return float(near[np.abs(places - (places[0] + places[-1]) / 2.0).argmin()])


def _best(thresholds: Floats, *, worth: Floats, kept: Floats, target: float | None) -> float | None:
    if target is None:
        raise MetricError("this rule needs a target in (0, 1)")
    allowed = kept >= target
    if not allowed.any():
        return None
    best = thresholds[allowed & (worth >= worth[allowed].max() - 1e-12)]
    return float(best[(len(best) - 1) // 2])  # of equals, the middle one: far from either class


def _losses(probabilities: Floats, labels: NDArray[Any]) -> Floats:
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)), dtype=np.float64)
