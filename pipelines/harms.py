"""The gates on harm: whom a candidate serves worse than the champion, and whose scores mean less than they say.

Invariant: nothing is averaged away. A slice is looked at among its positives and among its negatives, and calibration
is held against a limit as well as against the champion. The screen asks both of the tune split too.

References: `pipelines.subgroups`; Guo et al., ICML 2017 (calibration error).
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from pipelines import metrics, subgroups
from pipelines.comparison import Comparison, Scored
from pipelines.endpoints import among, decisions_of, right
from pipelines.types import Estimate, GateResult


def slices(comparison: Comparison) -> GateResult:
    """Look for harm in each slice, among its positives and among its negatives, against the champion."""
    rule, champion = comparison.protocol.gates.subgroups, comparison.champion
    assert rule is not None, "the protocol asks for subgroups"
    assert champion is not None, "harm is harm compared with a champion"
    asked, differences = [], np.zeros(len(comparison.sealed.labels))
    for endpoint in decisions_of(comparison):
        counted = among(comparison, endpoint)
        candidate_right = right(comparison, comparison.candidate, endpoint).astype(np.float64)
        differences[counted] = (candidate_right - right(comparison, champion, endpoint))[counted]
        asked += [
            subgroups.Slice(name=f"{name} {endpoint}", members=members & counted, tier=tier)
            for name, members, tier in subgroups.declared(comparison.sealed.traits, rule.attributes, rule.critical)
        ]
    judged = subgroups.judge(
        differences,
        asked,
        margin=rule.margin,
        alpha=comparison.alpha,
        harm_alpha=comparison.protocol.gates.alpha,
        minimum=rule.minimum_cases,
        groups=comparison.sealed.groups,
        tolerance=rule.tolerance,
    )
    beyond = f" beyond {rule.tolerance:g}" if rule.tolerance else ""
    return GateResult(
        name="subgroups",
        requirement=f"critical slices not worse by {rule.margin:g}; no significant harm{beyond} in any other",
        verdict=judged.verdict,
        reason=judged.reason,
        details={"slices": [asdict(one) for one in judged.slices]},
    )


def calibration(comparison: Comparison) -> GateResult:
    """Hold the calibration error against the protocol's limit, and against the champion's."""
    rule = comparison.protocol.gates.calibration
    candidate = calibration_error(comparison, comparison.candidate)
    champion = None if comparison.champion is None else calibration_error(comparison, comparison.champion)
    reasons = []
    if candidate.value > rule.maximum_ece:
        reasons.append(f"calibration error {candidate.value:.3f} is above {rule.maximum_ece:g}")
    if champion is not None and candidate.value > champion.value + rule.margin:
        reasons.append(f"calibration error {candidate.value:.3f} is more than {rule.margin:g} above the champion's")
    return GateResult(
        name="calibration",
        requirement=f"calibration error at most {rule.maximum_ece:g}, and at most {rule.margin:g} above the champion's",
        verdict="fail" if reasons else "pass",
        reason="; ".join(reasons) or "calibrated well enough",
        candidate=candidate,
        champion=champion,
    )


def calibration_error(comparison: Comparison, model: Scored) -> Estimate:
    """Return a model's error on the positive class, or on its likeliest class where none is positive."""
    index, rng = comparison.protocol.positive_index, np.random.default_rng(0)
    if index is None:
        right = model.scores.argmax(axis=1) == comparison.sealed.labels
        return metrics.ece_estimate(right, model.scores.max(axis=1), rng=rng)
    return metrics.ece_estimate(comparison.truth, model.scores[:, index], rng=rng)
