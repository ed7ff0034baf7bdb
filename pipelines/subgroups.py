"""Subgroups: who is harmed while the average improves, asked so that an equal model has a fair chance.

Invariant: a slice that the protocol declares safety-critical has to be shown non-inferior, and too few cases in it stop
the candidate. Every other slice is watched: it stops the candidate only where harm is significant, over all watched
slices together (Holm), and one with too few cases says so instead of passing.

Why tiers. Asking twelve slices to be shown non-inferior by .05 fails an *equal* model in 99 % of cases at 100 cases a
slice and in 74 % at 200.

References: Holm, Scand J Stat 1979; Berger, Technometrics 1982; Wang et al., NEJM 2007, 357:2189 (subgroups).

    python -m pipelines.simulate slices
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pipelines import metrics
from pipelines.metrics import MetricError
from pipelines.paired import Judged, mean_difference, non_inferior
from pipelines.types import Estimate, Verdict

Tier = Literal["critical", "watched"]
MINIMUM_CASES = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """A subgroup: which of the sealed cases are in it, (N,) bool."""

    name: str
    members: NDArray[np.bool_]
    tier: Tier = "watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """What was found in one slice; one-sided `p_value` for harm and Holm's `local_alpha`, None in critical slices."""

    name: str
    tier: Tier
    judged: Judged
    n: int
    p_value: float | None = None
    local_alpha: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgroups:
    """The verdict over all slices, the reason in words, and each slice's result in the order asked."""

    verdict: Verdict
    reason: str
    slices: tuple[SliceResult, ...]


def judge(
    differences: NDArray[Any],
    slices: Sequence[Slice],
    *,
    margin: float,
    alpha: float,
    minimum: int = MINIMUM_CASES,
    groups: NDArray[Any] | None = None,
    harm_alpha: float | None = None,
    tolerance: float = 0.0,
) -> Subgroups:
    """Judge `differences` (N,) in [-1, 1], candidate minus champion, in each slice.

    A critical slice is shown at `alpha`, harm in a watched one looked for at `harm_alpha` (None: at `alpha` too): a
    smaller level asks for more evidence of the candidate, and must not ask for more evidence of harm. `margin` is for
    critical slices; a watched one is harmed where it is shown to be worse by more than `tolerance`. `minimum` are the
    cases below which a slice is `insufficient`; a critical one then makes the whole verdict so. Without slices the
    verdict is `insufficient`: nothing was looked at.
    """
    values = np.asarray(differences, dtype=np.float64)
    names = np.arange(len(values)) if groups is None else np.asarray(groups)
    levels: dict[Tier, float] = {"critical": alpha, "watched": alpha if harm_alpha is None else harm_alpha}
    if not slices:
        return Subgroups(verdict="insufficient", reason="no slice was declared or found", slices=())
    found = [_estimated(values, one, groups=names, alpha=levels[one.tier], minimum=minimum) for one in slices]
    measured = [
        (place, harm_p_value(values[one.members], estimate, tolerance=tolerance))
        for place, (one, estimate) in enumerate(zip(slices, found, strict=True))
        if one.tier == "watched" and isinstance(estimate, Estimate)
    ]
    answers = metrics.holm([p for _, p in measured], alpha=levels["watched"])
    held = dict(zip([place for place, _ in measured], answers, strict=True))
    p_values = dict(measured)
    results = []
    for place, (one, estimate) in enumerate(zip(slices, found, strict=True)):
        harmed, local = held.get(place, (False, None))
        judged = _judged(estimate, tier=one.tier, margin=margin, minimum=minimum, harmed=harmed)
        n = int(np.count_nonzero(one.members))
        p_value = p_values.get(place)
        results.append(
            SliceResult(name=one.name, tier=one.tier, judged=judged, n=n, p_value=p_value, local_alpha=local)
        )
    return _joined(results)


def declared(
    traits: Mapping[str, NDArray[Any]], attributes: Sequence[str], critical: Sequence[str]
) -> list[tuple[str, NDArray[np.bool_], Tier]]:
    """Name the slices of a sealed test: each value of each attribute that has several, and every critical one.

    `traits` holds, by attribute, (N,) the value in each case, "" where it is unknown; `critical` names slices as
    `attribute=value`. A critical slice in which nobody is stays, empty, so that it is insufficient and not forgotten.
    """
    wanted = dict.fromkeys(critical, True)
    for attribute in attributes:
        values = [value for value in np.unique(traits.get(attribute, np.array([""]))).tolist() if value]
        if len(values) > 1:
            wanted |= {f"{attribute}={value}": f"{attribute}={value}" in critical for value in values}
    n = len(next(iter(traits.values()), ()))
    found = []
    for name, is_critical in sorted(wanted.items()):
        attribute, _, value = name.partition("=")
        members = np.asarray(traits[attribute] == value) if attribute in traits else np.zeros(n, dtype=np.bool_)
        tier: Tier = "critical" if is_critical else "watched"
        found.append((name, members, tier))
    return found


def harm_p_value(differences: NDArray[Any], estimate: Estimate, *, tolerance: float = 0.0) -> float:
    """Return the one-sided p-value of "worse by no more than `tolerance`": small means harm.

    The larger of the normal one from `estimate`, whose error is over patients, and, for decisions (-1, 0, 1), the exact
    sign test of any harm at all: neither few discordant cases nor many cases of few patients make harm out of nothing.
    """
    error = (estimate.high - estimate.low) / 2.0 / metrics.normal_quantile(0.5 + estimate.level / 2.0)
    normal = float(special.ndtr((estimate.value + tolerance) / error)) if error > 0.0 else 1.0
    if not np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return normal
    lost, gained = int((differences < 0.0).sum()), int((differences > 0.0).sum())
    exact = metrics.binomial_tail(lost, lost + gained, rate=0.5) if lost + gained else 1.0
    return max(normal, exact)


def _estimated(
    values: NDArray[Any], one: Slice, *, groups: NDArray[Any], alpha: float, minimum: int
) -> Estimate | Judged:
    """The difference in a slice at the two-sided level of its one-sided test, or why there is none."""
    if one.members.shape != values.shape or one.members.dtype != np.bool_:
        return Judged(verdict="fail", reason="the slice does not say of each case whether it is in it")
    n = int(one.members.sum())
    if n < minimum:
        return Judged(verdict="insufficient", reason=f"insufficient data: {n} of at least {minimum} cases")
    try:
        return mean_difference(values[one.members], groups=groups[one.members], level=1.0 - 2.0 * alpha)
    except MetricError as error:
        return Judged(verdict="fail", reason=f"could not be measured: {error}")


def _judged(estimate: Estimate | Judged, *, tier: Tier, margin: float, minimum: int, harmed: bool) -> Judged:
    if isinstance(estimate, Judged):
        return estimate
    if tier == "critical":
        return non_inferior(estimate, margin=margin, minimum=minimum)
    if harmed:
        reason = f"harmed: worse than the champion by {-estimate.value:.3f} on {estimate.n} cases"
        return Judged(verdict="fail", reason=reason, difference=estimate)
    return Judged(verdict="pass", reason="no significant harm", difference=estimate)


def _joined(results: list[SliceResult]) -> Subgroups:
    failed = [one for one in results if one.judged.verdict == "fail"]
    unknown = [one for one in results if one.judged.verdict == "insufficient"]
    stopping = [one for one in unknown if one.tier == "critical"]
    measured = len(results) - len(failed) - len(unknown)
    verdict: Verdict = "fail" if failed else "insufficient" if stopping or not measured else "pass"
    told = [f"{one.name}: {one.judged.reason}" for one in [*failed, *stopping]]
    if unknown:
        told.append(f"{len(unknown)} of {len(results)} slices have too few cases to say")
    return Subgroups(verdict=verdict, reason="; ".join(told) or "no slice is harmed", slices=tuple(results))
