"""The endpoints of a line: what its models are measured by, and the difference of two models on each of them.

Invariant: every endpoint is a share of cases, an AUROC or a kappa, so that more is better and a difference is candidate
minus the other; its interval is at the comparison's level, whose bounds are the one-sided tests at its alpha.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import metrics, ordinal
from pipelines.comparison import Comparison, Scored
from pipelines.gate_rules import Margin
from pipelines.types import Estimate

Decision = Literal["sensitivity", "specificity", "accuracy"]
Measure = Literal["auroc", "kappa"]


def measures_of(comparison: Comparison) -> tuple[Measure, ...]:
    """Name the endpoints that are no share of cases: AUROC, and for grades the weighted kappa."""
    return ("auroc",) if comparison.protocol.task == "nominal" else ("auroc", "kappa")


def decisions_of(comparison: Comparison) -> tuple[Decision, ...]:
    """Name the endpoints that rest on decisions: two with a positive class, accuracy where decisions are by arg-max."""
    return ("accuracy",) if comparison.protocol.positive is None else ("sensitivity", "specificity")


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
    """Return a model's AUROC, macro one-vs-rest where there is no positive class. Raises MetricError."""
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


def decision_difference(comparison: Comparison, other: Scored, endpoint: Decision) -> Estimate:
    """Return the candidate's share of right decisions minus another model's, paired. Raises MetricError."""
    counted = among(comparison, endpoint)
    return metrics.mcnemar(
        right(comparison, comparison.candidate, endpoint)[counted],
        right(comparison, other, endpoint)[counted],
        groups=comparison.sealed.groups[counted],
        level=comparison.level,
    ).difference


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
