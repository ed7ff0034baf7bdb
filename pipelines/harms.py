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
    asked, questions = [], comparison.questions()
    differences = np.zeros((len(questions), len(comparison.sealed.labels)))  # of several findings one row each
    declared = subgroups.declared(comparison.sealed.traits, rule.attributes, rule.critical)
    for place, (finding, view) in enumerate(questions.items()):
        assert view.champion is not None, "each question is asked of both models"
        for endpoint in decisions_of(view):
            counted = among(view, endpoint)
            candidate_right = right(view, view.candidate, endpoint).astype(np.float64)
            differences[place, counted] = (candidate_right - right(view, view.champion, endpoint))[counted]
            for name, members, tier in declared:
                within = np.zeros_like(differences, dtype=np.bool_)
                within[place] = members & counted
                words = f"{name} {endpoint}" + (f" of {finding}" if finding else "")
                asked.append(subgroups.Slice(name=words, members=within.ravel(), tier=tier))
    judged = subgroups.judge(
        differences.ravel(),
        asked,
        margin=rule.margin,
        alpha=comparison.alpha,
        harm_alpha=comparison.protocol.gates.alpha,
        minimum=rule.minimum_cases,
        groups=np.tile(comparison.sealed.groups, len(questions)),
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
    """Hold the calibration error against the protocol's limit, and against the champion's; of each finding its own.

    Of several findings the estimates are those on which the candidate's error is largest.
    """
    rule = comparison.protocol.gates.calibration
    reasons, found = [], []
    for finding, view in comparison.questions().items():
        error = "calibration error" + (f" of {finding}" if finding else "")
        candidate = calibration_error(view, view.candidate)
        champion = None if view.champion is None else calibration_error(view, view.champion)
        found.append((candidate, champion))
        if candidate.value > rule.maximum_ece:
            reasons.append(f"{error} {candidate.value:.3f} is above {rule.maximum_ece:g}")
        if champion is not None and candidate.value > champion.value + rule.margin:
            reasons.append(f"{error} {candidate.value:.3f} is more than {rule.margin:g} above the champion's")
    each = [
        {"finding": finding, "candidate": asdict(pair[0])}
        for finding, pair in zip(comparison.questions(), found, strict=True)
    ]
    candidate, champion = max(found, key=lambda pair: pair[0].value)
    return GateResult(
        name="calibration",
        requirement=f"calibration error at most {rule.maximum_ece:g}, and at most {rule.margin:g} above the champion's",
        verdict="fail" if reasons else "pass",
        reason="; ".join(reasons) or "calibrated well enough",
        candidate=candidate,
        champion=champion,
        details={"findings": each} if comparison.protocol.several else {},
    )


def calibration_error(comparison: Comparison, model: Scored) -> Estimate:
    """Return a model's error on the positive class, or on its likeliest class where none is positive."""
    index, rng = comparison.protocol.positive_index, np.random.default_rng(0)
    if index is None:
        right = model.scores.argmax(axis=1) == comparison.sealed.labels
        return metrics.ece_estimate(right, model.scores.max(axis=1), rng=rng)
    return metrics.ece_estimate(comparison.truth, model.scores[:, index], rng=rng)
