"""The endpoints of a line: what its models are measured by, and the difference of two models on each of them.

Invariant: every endpoint is a share of cases, an AUROC or a kappa, so that more is better and a difference is candidate
minus the other; its interval is at the comparison's level, whose bounds are the one-sided tests at its alpha.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics, ordinal
from pipelines.comparison import Comparison, Scored
from pipelines.gate_rules import Margin
from pipelines.types import Estimate

Decision = Literal["sensitivity", "specificity", "accuracy"]
Measure = Literal["auroc", "kappa"]
FEW = 10
"""Decisions of the rarer kind below which they do not tell how far two findings go together."""


def measures_of(comparison: Comparison) -> tuple[Measure, ...]:
    """Name the endpoints that are no share of cases: AUROC, and for grades the weighted kappa."""
    return ("auroc", "kappa") if comparison.protocol.task == "ordinal" else ("auroc",)


def decisions_of(comparison: Comparison) -> tuple[Decision, ...]:
    """Name the endpoints that rest on decisions: two with a positive class, accuracy where decisions are by arg-max.

    Of several findings both are the mean of what they are on each.
    """
    asked = comparison.protocol
    return ("accuracy",) if asked.positive is None and not asked.several else ("sensitivity", "specificity")


def rule_of(comparison: Comparison, endpoint: str) -> Margin:
    """Return an endpoint's floor and margin; without a positive class `sensitivity` holds those of accuracy."""
    rules = comparison.protocol.gates
    if endpoint == "kappa" and rules.kappa is not None:
        return rules.kappa
    return {"auroc": rules.auroc, "specificity": rules.specificity}.get(endpoint, rules.sensitivity)


def measured(comparison: Comparison, model: Scored, measure: Measure) -> Estimate:
    """Return a model's AUROC or kappa. Raises MetricError."""
    return area(comparison, model) if measure == "auroc" else _kappa(comparison, model)


def difference(comparison: Comparison, other: Scored, endpoint: Measure | Decision) -> Estimate:
    """Return the candidate's value of an endpoint minus another model's, paired. Raises MetricError."""
    if endpoint == "auroc":
        return area_difference(comparison, other)
    return (
        _kappa_difference(comparison, other)
        if endpoint == "kappa"
        else decision_difference(comparison, other, endpoint)
    )


def area(comparison: Comparison, model: Scored) -> Estimate:
    """Return a model's AUROC; macro one-vs-rest without a positive class, the mean over several findings.

    Raises MetricError.
    """
    index, sealed = comparison.protocol.positive_index, comparison.sealed
    if index is None:
        return metrics.macro_auroc_estimate(sealed.labels, model.scores, groups=sealed.groups, level=comparison.level)
    return metrics.auroc_estimate(
        comparison.truth, model.scores[:, index], groups=sealed.groups, level=comparison.level
    )


def area_difference(comparison: Comparison, other: Scored) -> Estimate:
    """Return the candidate's AUROC minus another model's, paired. Raises MetricError."""
    index, sealed = comparison.protocol.positive_index, comparison.sealed
    first, second = comparison.candidate.scores, other.scores
    if index is None:
        return metrics.paired_macro_auroc_difference(
            sealed.labels, first, second, groups=sealed.groups, level=comparison.level
        )
    return metrics.paired_auroc_difference(
        comparison.truth, first[:, index], second[:, index], groups=sealed.groups, level=comparison.level
    )


def among(comparison: Comparison, endpoint: Decision) -> NDArray[np.bool_]:
    """Return (N,) which sealed cases an endpoint counts: positives, negatives, or all."""
    if endpoint == "accuracy":
        return np.ones(len(comparison.sealed.labels), dtype=np.bool_)
    return comparison.truth if endpoint == "sensitivity" else ~comparison.truth


def right(comparison: Comparison, model: Scored, endpoint: Decision) -> NDArray[np.bool_]:
    """Return (N,) whether a model decided rightly; only where `among` holds does it mean anything. Raises MetricError.

    Raises for a model without an operating point, whose decisions mean nothing.
    """
    if endpoint == "accuracy":
        return np.asarray(model.decided == comparison.sealed.labels)
    if model.threshold is None:
        raise metrics.MetricError(f"model {model.digest[:12]} has no operating point")
    return np.asarray((model.decided == comparison.protocol.positive_index) == (endpoint == "sensitivity"))


def share(comparison: Comparison, model: Scored, endpoint: Decision) -> Estimate:
    """Return a model's share of right decisions, of several findings the mean over them. Raises MetricError."""
    if comparison.protocol.several:
        views = replace(comparison, candidate=model).questions().values()
        values = [right(view, view.candidate, endpoint).astype(np.float64) for view in views]
        return _mean(views, values, [share(view, view.candidate, endpoint) for view in views], endpoint, low=0.0)
    hit = right(comparison, model, endpoint)[among(comparison, endpoint)]
    return metrics.clopper_pearson(int(hit.sum()), len(hit), level=comparison.level)


def decision_difference(comparison: Comparison, other: Scored, endpoint: Decision) -> Estimate:
    """Return the candidate's share of right decisions minus another model's, paired; the mean over several findings.

    Raises MetricError.
    """
    if comparison.protocol.several:
        views = replace(comparison, champion=other).questions().values()
        values, parts = [], []
        for view in views:
            assert view.champion is not None, "it is the other model"
            own = right(view, view.candidate, endpoint).astype(np.float64)
            values.append(own - right(view, view.champion, endpoint))
            parts.append(decision_difference(view, view.champion, endpoint))
        return _mean(views, values, parts, endpoint, low=-1.0)
    counted = among(comparison, endpoint)
    return metrics.mcnemar(
        right(comparison, comparison.candidate, endpoint)[counted],
        right(comparison, other, endpoint)[counted],
        groups=comparison.sealed.groups[counted],
        level=comparison.level,
    ).difference


def _mean(
    views: Collection[Comparison],
    values: Sequence[NDArray[np.float64]],
    parts: Sequence[Estimate],
    endpoint: Decision,
    *,
    low: float,
) -> Estimate:
    """The mean over findings of shares, or of differences of shares: `values` (N,) of each case, `parts` of each view.

    Its interval is the wider of two, either way: that of its influence, patients together, which knows that findings
    of one patient go together, and that of `parts`, which is right where few decisions differ, joined as `_together`.
    """
    first = next(iter(views))
    counted = np.stack([among(view, endpoint) for view in views])  # (K, N)
    centred = np.stack([value - part.value for value, part in zip(values, parts, strict=True)])
    terms = np.where(counted, centred, 0.0) / counted.sum(axis=1, keepdims=True) / len(parts)
    mean = float(np.mean([part.value for part in parts]))
    groups, level = first.sealed.groups, first.level
    wald = metrics.interval(mean, terms.sum(axis=0), groups=groups, level=level, low=low, high=1.0)
    joint = _together(np.stack(values), counted, terms, groups=groups)
    down, up = (
        float(np.sqrt(far @ joint @ far)) / len(parts)
        for far in (np.abs([getattr(part, side) - part.value for part in parts]) for side in ("low", "high"))
    )
    n = int(counted.any(axis=0).sum())
    return replace(wald, low=max(low, min(wald.low, mean - down)), high=min(1.0, max(wald.high, mean + up)), n=n)


def _together(
    values: NDArray[np.float64], counted: NDArray[np.bool_], terms: NDArray[np.float64], *, groups: NDArray[Any]
) -> NDArray[np.float64]:
    """How far the findings' shares go together, (K, K) in [0, 1]; all (K, N) of what is `counted`.

    As their influence says, patients together; where a finding has fewer than `FEW` decisions of the rarer kind that
    says nothing, and it is taken to be as far as it can be: as far as the findings are of the same patients.
    """
    _, patient = np.unique(groups, return_inverse=True)
    seen, most = (
        _cosines(np.stack([np.bincount(patient, weights=row) for row in table])) for table in (terms, counted)
    )
    common = [np.unique(row[own], return_counts=True)[1].max() for row, own in zip(values, counted, strict=True)]
    few = counted.sum(axis=1) - common < FEW
    joint = np.where(few[:, None] | few, most, np.maximum(seen, 0.0))
    np.fill_diagonal(joint, 1.0)
    return np.asarray(joint, dtype=np.float64)


def _cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0.0)
    return np.asarray(unit @ unit.T, dtype=np.float64)


def _kappa(comparison: Comparison, model: Scored) -> Estimate:
    sealed, grades = comparison.sealed, len(comparison.protocol.classes)
    return ordinal.kappa_estimate(
        sealed.labels, model.decided, grades=grades, groups=sealed.groups, level=comparison.level
    )


def _kappa_difference(comparison: Comparison, other: Scored) -> Estimate:
    sealed, grades = comparison.sealed, len(comparison.protocol.classes)
    first, second = comparison.candidate.decided, other.decided
    return ordinal.paired_kappa_difference(
        sealed.labels, first, second, grades=grades, groups=sealed.groups, level=comparison.level
    )
