"""Labels that come late, and labels that come only for some: scoring what has been confirmed without being misled.

Invariant: a label's absence is never read as a finding. Where diseased cases are confirmed within days and healthy ones
within months, young cases show mostly disease; where only suspicious cases are verified, the rest are not all healthy.
Either cases wait until they are mature, or those that have a label are weighted for those that have none.

References: Lagakos, Barraj, De Gruttola, Biometrika 1988 (delays seen only if they are over by now); Begg and Greenes,
Biometrics 1983 (verification bias); Horvitz and Thompson, JASA 1952; Hajek 1971 (weighted shares).

    python -m pipelines.simulate delay
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics
from pipelines.metrics import Floats, MetricError
from pipelines.types import Estimate

MATURE_SHARE = 0.95
"""A case counts as mature once so many of the labels of each class have come at its age."""
MINIMUM_VERIFIED = 10
"""A stratum with fewer verified cases cannot stand for its unverified ones."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrivals:
    """How many of one class's labels have come after so many days; (K,) ascending days and shares in (0, 1]."""

    days: Floats
    shares: Floats

    def at(self, ages: NDArray[Any]) -> Floats:
        """Return the share (N,) in [0, 1] of labels that come within each of `ages` (N,), in days."""
        position = np.searchsorted(self.days, np.asarray(ages, dtype=np.float64), "right")
        return np.concatenate([[0.0], self.shares])[position]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verified:
    """Weights (N,) that let verified cases stand for all, 0 for those unverified, and the share that was verified."""

    weights: Floats
    share: float


def arrivals(delays: NDArray[Any], ages: NDArray[Any]) -> Arrivals:
    """Estimate how soon one class's labels come, from the labelled cases alone.

    `delays` (N,) days from prediction to label, `ages` (N,) days from prediction to now. A label that is still to come
    is not among them; the reverse-time product-limit estimator (Lagakos 1988) allows for it. Shares are of the labels
    that come within the oldest age. Raises MetricError.
    """
    late, age = np.asarray(delays, dtype=np.float64), np.asarray(ages, dtype=np.float64)
    if late.ndim != 1 or late.shape != age.shape or len(late) == 0:
        raise MetricError("each labelled case needs its delay and its age, and there must be one")
    if not (np.isfinite(age).all() and ((late >= 0.0) & (late <= age)).all()):
        raise MetricError("a delay is at least 0 days and at most the age of its case")
    days, counts = np.unique(late, return_counts=True)
    # at risk at u, backwards in time: labelled by u, and old enough to have been seen at u
    at_risk = np.searchsorted(np.sort(late), days, "right") - np.searchsorted(np.sort(age), days, "left")
    factors = 1.0 - counts / at_risk
    after = np.concatenate([np.cumprod(factors[::-1])[::-1][1:], [1.0]])
    return Arrivals(days=days, shares=after)


def maturity_day(classes: Mapping[str, Arrivals], *, share: float = MATURE_SHARE) -> float:
    """Return the age in days at which `share` of the labels of every class have come; score only cases as old.

    Raises MetricError where a class never gets there, or none is given.
    """
    if not classes:
        raise MetricError("maturity needs the arrivals of each class")
    found = []
    for name, one in classes.items():
        enough = one.days[one.shares >= share]
        if not len(enough):
            raise MetricError(f"labels of {name} never reach {share:.0%}: no age is mature")
        found.append(float(enough[0]))
    return max(found)


def delay_weights(ages: NDArray[Any], findings: NDArray[Any], classes: Mapping[Any, Arrivals]) -> Floats:
    """Return the weight 1 / F_y(age) (N,) of each labelled case, so that it stands for those still to come.

    `ages` (N,) days, `findings` (N,) class of each, `classes` the arrivals of every class there is. Raises MetricError
    where a class has none, or a case is younger than any label of its class.
    """
    age, finding = np.asarray(ages, dtype=np.float64), np.asarray(findings)
    if age.shape != finding.shape:
        raise MetricError("each labelled case needs its age and its finding")
    weights = np.empty(len(age))
    for name in np.unique(finding).tolist():
        if name not in classes:
            raise MetricError(f"how soon labels of {name} come is not known")
        shares = classes[name].at(age[finding == name])
        if (shares <= 0.0).any():
            raise MetricError(f"a case of {name} is younger than any label of its class")
        weights[finding == name] = 1.0 / shares
    return weights


def verification_weights(
    verified: NDArray[Any], scores: NDArray[Any], sites: NDArray[Any], *, bins: int = 5, minimum: int = MINIMUM_VERIFIED
) -> Verified:
    """Weight verified cases by 1 / P(verified | score, site), estimated in strata of `bins` equal score ranges a site.

    `verified` (N,) bool, `scores` (N,) in [0, 1], `sites` (N,). Raises MetricError naming the stratum that has fewer
    than `minimum` verified cases: nothing can stand for what was never looked at.
    """
    seen, score, site = np.asarray(verified).astype(bool), np.asarray(scores, dtype=np.float64), np.asarray(sites)
    if not len(score):
        raise MetricError("there is no case yet")
    if not seen.shape == score.shape == site.shape or not ((score >= 0.0) & (score <= 1.0)).all():
        raise MetricError("each case needs its score in [0, 1], its site, and whether it was verified")
    bin_of = np.minimum((score * bins).astype(int), bins - 1)
    names, site_of = np.unique(site, return_inverse=True)
    stratum = site_of * bins + bin_of
    cases, looked_at = np.bincount(stratum), np.bincount(stratum, weights=seen)
    for poor in np.flatnonzero((cases > 0) & (looked_at < np.minimum(minimum, cases))).tolist():
        low = poor % bins / bins
        raise MetricError(
            f"only {looked_at[poor]:.0f} of {cases[poor]} cases of {names[poor // bins]} with scores "
            f"{low:.2f} to {low + 1 / bins:.2f} were verified: have more of them read"
        )
    share = looked_at[stratum] / cases[stratum]
    return Verified(weights=np.where(seen, 1.0 / share, 0.0), share=float(seen.mean()))


def weighted_share(
    hits: NDArray[Any], weights: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95
) -> Estimate:
    """Return the weighted share of `hits` (N,) bool, with its linearised interval; `weights` (N,) 0 or more.

    PPV is the share of positives among called cases, sensitivity that of called cases among positives. `n` counts
    cases of weight above 0. Raises MetricError where there is none.
    """
    hit, weight = np.asarray(hits).astype(np.float64), np.asarray(weights, dtype=np.float64)
    if hit.shape != weight.shape or not (np.isfinite(weight) & (weight >= 0.0)).all() or not weight.any():
        raise MetricError("a weighted share needs a weight of 0 or more for each case, and one above 0")
    value = float((weight * hit).sum() / weight.sum())
    counted = weight > 0.0
    terms = weight[counted] * (hit[counted] - value) / weight.sum()
    within = None if groups is None else np.asarray(groups)[counted]
    return metrics.interval(value, terms, groups=within, level=level, low=0.0, high=1.0)
