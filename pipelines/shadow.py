"""A candidate in the shadow of the champion: both score what comes in, and one may look after every case.

Invariant: a pass is valid whenever somebody looks (`pipelines.betting`); more cases can only add evidence, and cases
count in the order in which their labels came.

References: Waudby-Smith and Ramdas, JRSS B 2024; Duan, Ramdas, Wasserman, 2022 (non-inferiority by betting).

    python -m pipelines.simulate shadow
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import betting
from pipelines.metrics import Floats, MetricError
from pipelines.types import Verdict

WEIGHT = 50.0
"""How many cases the planned discordance counts as, before any case was seen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shadow:
    """What the shadow has shown so far. `passed_at` is how many cases that took, None while it has not."""

    verdict: Verdict
    reason: str
    evidence: Floats
    """(N,) capital after each case; evidence of 1 / alpha passes."""
    passed_at: int | None


def follow(differences: NDArray[Any], *, margin: float, alpha: float, discordance: float = 0.06) -> Shadow:
    """Judge by `differences` (N,) in [-1, 1], candidate minus champion in order of arrival, if it is not inferior.

    With x = (d + 1) / 2 the claim to refute is that the mean of x is at most (1 - margin) / 2. `discordance` in (0, 1]
    is the share of cases planned to differ; it decides how soon evidence comes, never whether it is valid. Before
    evidence reaches 1 / alpha the verdict is `insufficient`; spoilt input fails.
    """
    try:
        evidence = _evidence(differences, margin=margin, alpha=alpha, discordance=discordance)
    except MetricError as error:
        return Shadow(verdict="fail", reason=f"could not be measured: {error}", evidence=np.empty(0), passed_at=None)
    there = np.flatnonzero(evidence >= 1.0 / alpha)
    if len(there):
        at = int(there[0]) + 1
        return Shadow(verdict="pass", reason=f"not worse, shown after {at} cases", evidence=evidence, passed_at=at)
    best = float(evidence.max()) if len(evidence) else 1.0
    reason = f"evidence {best:.1f} of {1.0 / alpha:.0f} after {len(evidence)} cases"
    return Shadow(verdict="insufficient", reason=reason, evidence=evidence, passed_at=None)


def _evidence(differences: NDArray[Any], *, margin: float, alpha: float, discordance: float) -> Floats:
    if not (0.0 < margin < 1.0 and 0.0 < alpha < 1.0 and 0.0 < discordance <= 1.0):
        raise MetricError("a shadow needs margin and alpha in (0, 1) and a planned discordance in (0, 1]")
    x = (np.asarray(differences, dtype=np.float64) + 1.0) / 2.0
    return betting.capital(x, (1.0 - margin) / 2.0, expected=0.5, spread=discordance / 4.0, weight=WEIGHT)
