"""The alarm on the champion: whether it errs more, in use, than the sealed test allowed.

Invariant: the alarm may be looked at after every label, for as long as the champion serves, and goes off without cause
at most with probability alpha in all that time. Labels count in the order in which they arrived, and nothing but the
labels' order of arrival decides when it goes off.

References: Podkopaev and Ramdas, ICLR 2022 (tracking the risk of a deployed model); Shin, Ramdas, Rinaldo, 2022
(betting with a memory, for changes that come late).

    python -m pipelines.simulate alarm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import betting, metrics
from pipelines.metrics import Floats, MetricError

WEIGHT = 20.0
"""How many labels the tolerated risk counts as, before any label came."""
MEMORY = 100.0
"""After so many more labels one counts e^-1 in choosing the bets, so that a change after a good year is found too."""
GRID = np.arange(1, 200) / 200.0
"""Limits that a lower bound is chosen from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alarm:
    """Whether and when the alarm went off; `reason` says it in words, `raised_at` after how many labels."""

    raised: bool
    reason: str
    limit: float
    """Highest risk in [0, 1] that is still in order: the sealed test's upper bound and the tolerance."""
    evidence: Floats
    """(N,) capital after each label; the alarm goes off at 1 / (alpha in use)."""
    raised_at: int | None


def limit_of(*, errors: int, n: int, tolerance: float, alpha: float) -> float:
    """Return the highest risk still in order: the sealed test's exact upper bound at `alpha`, and `tolerance`.

    `errors` of `n` sealed cases were wrong. Raises MetricError.
    """
    if tolerance < 0.0:
        raise MetricError("a tolerance is 0 or more")
    return metrics.clopper_pearson(errors, n, level=1.0 - 2.0 * alpha).high + tolerance


def lower_bound(losses: NDArray[Any], *, alpha: float) -> float:
    """Return what the risk of `losses` (N,) in [0, 1] is shown to be above, valid whenever one looks; 0.0 if nothing.

    The highest of `GRID` limits below which every limit has been refuted at `alpha`: the lower end of the confidence
    sequence that `watch` stands on. Raises MetricError.
    """
    shown = 0.0
    for limit in GRID:
        if len(losses) == 0 or not watch(losses, limit=float(limit), alpha=alpha).raised:
            break
        shown = float(limit)
    return shown


def watch(losses: NDArray[Any], *, limit: float, alpha: float) -> Alarm:
    """Watch `losses` (N,) in [0, 1], 1 for a wrong decision, in order of arrival, against `limit` in (0, 1).

    Spoilt losses raise the alarm: a champion that cannot be watched is not known to be in order.
    """
    if not 0.0 < alpha < 1.0:
        raise MetricError("an alarm needs alpha in (0, 1)")
    if limit >= 1.0:
        return Alarm(
            raised=True,
            reason="the limit allows every decision to be wrong: the sealed test is too small to watch by",
            limit=limit,
            evidence=np.empty(0),
            raised_at=None,
        )
    try:
        evidence = betting.capital(
            losses, limit, expected=limit, spread=limit * (1.0 - limit), weight=WEIGHT, memory=MEMORY
        )
    except MetricError as error:
        return Alarm(
            raised=True, reason=f"could not be watched: {error}", limit=limit, evidence=np.empty(0), raised_at=None
        )
    over = np.flatnonzero(evidence >= 1.0 / alpha)
    if not len(over):
        reason = f"in order after {len(evidence)} labels: not shown to err in more than {limit:.1%}"
        return Alarm(raised=False, reason=reason, limit=limit, evidence=evidence, raised_at=None)
    at = int(over[0]) + 1
    reason = f"errs in more than {limit:.1%} of cases, shown after {at} labels"
    return Alarm(raised=True, reason=reason, limit=limit, evidence=evidence, raised_at=at)
