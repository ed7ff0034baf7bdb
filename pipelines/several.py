"""Models of several findings, each present or absent by itself: how they learn, what scores mean, how they decide.

Invariant: labels are (N, K) bool, one column a finding, and never an index, so that whatever takes classes that exclude
each other refuses them. The network is one like any other, a logit a finding; each logit is taught by the log-loss of
its own question, and one temperature and an intercept a finding make the answers probabilities on `tune`: cases are
drawn so that rare findings are seen, and the share of each in a batch is not that of the line.

References: Cox, Biometrika 1958 (recalibration by slope and intercept); Guo et al., ICML 2017 (temperature);
Charte et al., Neurocomputing 2015 (imbalance of several labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines import calibrate, findings
from pipelines.calibrate import FEWEST_AT_A_SITE, GOLDEN, LARGEST_TEMPERATURE, SMALLEST_TEMPERATURE, LogLoss, balanced
from pipelines.findings import Present
from pipelines.metrics import Floats, MetricError
from pipelines.protocol import Protocol

FARTHEST = 30.0
"""An intercept beyond this changes no probability any more."""


def missing(labels: NDArray[Any], classes: Sequence[str]) -> list[str]:
    """Name the classes of which `labels` (N,) have no case, or the sides of findings of which (N, K) bool have none."""
    if labels.ndim == 1:
        return [name for index, name in enumerate(classes) if not (labels == index).any()]
    return [side for side, count in findings.counted(labels, classes).items() if count == 0]


def rarest(labels: Present) -> NDArray[np.int64]:
    """Return (N,) which stratum a case is drawn by: its rarest finding in 0..K-1, K where it has none.

    Drawing these evenly shows a rare finding as often as a frequent one, and cases without any as often as one of them.
    """
    order = np.argsort(labels.sum(axis=0), kind="stable")  # rarest first
    first = order[labels[:, order].argmax(axis=1)]
    return np.asarray(np.where(labels.any(axis=1), first, labels.shape[1]), dtype=np.int64)


def balanced_log_loss(logits: NDArray[Any], labels: Present) -> LogLoss:
    """Return the log-loss of `logits` (N, K), the two sides of each finding, and the findings, weighing alike.

    A side without a case is left out. The standard error takes a case's findings for independent.
    """
    losses = _losses(logits, labels)
    return balanced(
        [losses[side, k] for k in range(labels.shape[1]) for side in (labels[:, k], ~labels[:, k]) if side.any()]
    )


def worst_site_log_loss(logits: NDArray[Any], labels: Present, sites: NDArray[Any]) -> LogLoss:
    """Return `balanced_log_loss` at the site where it is highest.

    Of a site those findings are looked at of which it has 10 cases with and without; where no site has one, all cases
    together.
    """
    worst = []
    for site in np.unique(sites):
        here = sites == site
        told = np.minimum(labels[here].sum(axis=0), (~labels[here]).sum(axis=0)) >= FEWEST_AT_A_SITE
        if told.any():
            worst.append(balanced_log_loss(logits[here][:, told], labels[here][:, told]))
    return max(worst) if worst else balanced_log_loss(logits, labels)


def probabilities(logits: NDArray[Any], *, temperature: float = 1.0, offsets: NDArray[Any] | float = 0.0) -> Floats:
    """Return the probability of each finding (N, K): the logistic function of logits / temperature + offsets (K,)."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature + offsets
    if not np.isfinite(scaled).all():
        raise MetricError("logits must be finite")
    return np.asarray(special.expit(scaled), dtype=np.float64)


def fit_calibration(logits: NDArray[Any], labels: Present) -> tuple[float, Floats]:
    """Return the temperature in [0.05, 20] and the offsets (K,) of least log-loss on `logits` and `labels` (N, K).

    The loss is convex in them, so golden-section search finds the temperature, with the best offsets at each: those at
    which the mean probability of each finding is its share. Raises MetricError where a finding is in all cases or none.
    """
    if (labels.all(axis=0) | ~labels.any(axis=0)).any():
        raise MetricError("calibration needs cases with each finding and without")

    def loss(inverse: float) -> float:
        scaled = np.asarray(logits, dtype=np.float64) * inverse
        return float(_losses(scaled + _offsets(scaled, labels), labels).mean())

    low, high = 1.0 / LARGEST_TEMPERATURE, 1.0 / SMALLEST_TEMPERATURE
    for _ in range(40):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    inverse = (low + high) / 2.0
    return float(1.0 / inverse), _offsets(np.asarray(logits, dtype=np.float64) * inverse, labels)


def operating_points(scores: NDArray[Any], labels: Present, *, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Choose the operating point of each finding on calibrated `scores` (N, K), by name; plain values."""
    rule = protocol.operating_point
    return {
        name: asdict(calibrate.choose_operating_point(labels[:, k], scores[:, k], rule=rule.rule, target=rule.target))
        for k, name in enumerate(protocol.classes)
    }


def decided(scores: NDArray[Any], thresholds: Sequence[float | None]) -> Present:
    """Return (N, K) bool: the score of a finding reaches its threshold; never where it has none."""
    held = np.array([np.inf if threshold is None else threshold for threshold in thresholds])
    return np.asarray(scores >= held, dtype=np.bool_)


def _offsets(scaled: Floats, labels: Present) -> Floats:
    """The offsets (K,) at which the mean probability of each finding is its share, by bisection."""
    share = labels.mean(axis=0)
    low, high = (np.full(labels.shape[1], end) - np.median(scaled, axis=0) for end in (-FARTHEST, FARTHEST))
    for _ in range(50):
        middle = (low + high) / 2.0
        too_high = special.expit(scaled + middle).mean(axis=0) > share
        low, high = np.where(too_high, low, middle), np.where(too_high, middle, high)
    return np.asarray((low + high) / 2.0, dtype=np.float64)


def _losses(logits: NDArray[Any], labels: Present) -> Floats:
    """(N, K) nats; the sign of a logit is turned where the finding is present."""
    turned = np.where(labels, -1.0, 1.0) * np.asarray(logits, dtype=np.float64)
    return np.asarray(np.logaddexp(0.0, turned), dtype=np.float64)
