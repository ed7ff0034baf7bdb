"""Labels that the champion has written on: how far readers follow what they are shown, and what that does to a gate.

Invariant: a label given after its reader saw the prediction is never mixed in silence with one given blind. Gates are
run on blind evidence, the verdict on all evidence stands beside it, and where the two part the reader is told.

Why it matters. If readers copy the champion in a share pi of cases, the measured difference is
(1 - pi) (a2 - a1) - pi (1 - agreement): from pi* = (a2 - a1) / (a2 - a1 + 1 - agreement) on, a better candidate looks
worse than the champion it would replace.

References: Adam et al., ICML 2020 (feedback loops of clinical models); Clin Chem 2026, PMID 41627192 (a better model
scored 10 % below its predecessor on labels that the predecessor had influenced).

    python -m pipelines.simulate contamination
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics
from pipelines.metrics import MetricError
from pipelines.paired import MINIMUM_CASES, Judged, mean_difference, non_inferior
from pipelines.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The same question asked of blind labels and of all labels; `blind` is the one that a gate uses."""

    blind: Judged
    everything: Judged
    copied: Estimate | None
    """Share of aided labels that were copied from the champion; None where it cannot be estimated."""
    warning: str | None
    """What a reviewer has to know before trusting the difference on all labels; None where the two agree."""


def measured_difference(*, difference: float, agreement: float, copied: float) -> float:
    """Return the difference in accuracy that labels copied in a share `copied` in [0, 1] will show.

    `difference` is candidate minus champion on the truth, `agreement` how often the two decide alike.
    """
    return (1.0 - copied) * difference - copied * (1.0 - agreement)


def flip_point(*, difference: float, agreement: float) -> float:
    """Return the share of copied labels from which on a better candidate looks worse, in (0, 1]."""
    if not 0.0 < difference <= 1.0 - agreement:
        raise MetricError("a candidate is better by more than 0 and at most by the share of cases on which they differ")
    return difference / (difference + 1.0 - agreement)


def copied_share(
    agreed: NDArray[Any], blind: NDArray[Any], *, groups: NDArray[Any] | None = None, level: float = 0.95
) -> Estimate:
    """Estimate which share of aided labels was copied from the champion, in [0, 1], with a delta-method interval.

    `agreed` (N,) bool: the label is what the champion said; `blind` (N,) bool: its reader had not seen that. Aided
    labels agree in pi + (1 - pi) b of cases where blind ones agree in b, so pi = (a - b) / (1 - b). Needs cases that
    were read blind at random, or the harder ones will differ. Raises MetricError without both kinds of label.
    """
    same, unseen = np.asarray(agreed).astype(bool), np.asarray(blind).astype(bool)
    if same.shape != unseen.shape or same.ndim != 1:
        raise MetricError("each label needs both: whether it agrees with the champion, and whether it was blind")
    with_it, without = int((~unseen).sum()), int(unseen.sum())
    if min(with_it, without) < MINIMUM_CASES:
        raise MetricError(
            f"copying can be told from {MINIMUM_CASES} blind and {MINIMUM_CASES} aided labels on, not from fewer"
        )
    aided, alone = float(same[~unseen].mean()), float(same[unseen].mean())
    if alone == 1.0:
        raise MetricError("blind readers agree with the champion always; copying cannot be told from being right")
    slope_aided, slope_alone = 1.0 / (1.0 - alone), (aided - 1.0) / (1.0 - alone) ** 2
    terms = np.where(
        unseen,
        slope_alone * (same - alone) / np.sqrt(without * (without - 1)),
        slope_aided * (same - aided) / np.sqrt(with_it * (with_it - 1)),
    )
    value = min(1.0, max(0.0, (aided - alone) / (1.0 - alone)))
    return metrics.interval(value, terms, groups=groups, level=level, low=0.0, high=1.0)


def on_both(
    differences: NDArray[Any],
    agreed: NDArray[Any],
    blind: NDArray[Any],
    *,
    margin: float,
    groups: NDArray[Any] | None = None,
    level: float = 0.9,
) -> Evidence:
    """Judge non-inferiority on blind labels and on all of them, and say where aided readers followed the champion.

    `differences` (N,) in [-1, 1] candidate minus champion, `agreed` and `blind` as in `copied_share`. Too few blind
    labels make the verdict `insufficient`, whatever all labels say.
    """
    values, unseen = np.asarray(differences, dtype=np.float64), np.asarray(blind).astype(bool)
    if values.shape != unseen.shape:
        raise MetricError("each difference needs to be marked as blind or aided")
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    alone = _judge(values[unseen], names[unseen], margin=margin, level=level, kind="blind labels")
    everything = _judge(values, names, margin=margin, level=level, kind="labels")
    try:
        copied = copied_share(agreed, unseen, groups=groups, level=level)
    except MetricError:
        copied = None
    return Evidence(blind=alone, everything=everything, copied=copied, warning=_warning(alone, everything, copied))


def _judge(values: NDArray[Any], groups: NDArray[Any], *, margin: float, level: float, kind: str) -> Judged:
    if len(values) < MINIMUM_CASES:
        return Judged(verdict="insufficient", reason=f"only {len(values)} {kind}, at least {MINIMUM_CASES} are needed")
    try:
        return non_inferior(mean_difference(values, groups=groups, level=level), margin=margin)
    except MetricError as error:
        return Judged(verdict="fail", reason=f"could not be measured: {error}")


def _warning(alone: Judged, everything: Judged, copied: Estimate | None) -> str | None:
    found = []
    if alone.verdict != everything.verdict:
        found.append(f"blind labels say {alone.verdict} where all labels say {everything.verdict}")
    if copied is not None and copied.low > 0.0:
        found.append(
            f"aided readers copied the champion in about {copied.value:.0%} of cases, at least {copied.low:.0%}"
        )
    return "; ".join(found) or None
