"""Every limit of the gates, just within and just beyond it, and the words that tell it: no sign or level may slip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import gates, harms, metrics
from pipelines.comparison import Comparison, Opinion, Scored, Sealed
from pipelines.gate_rules import Margin
from pipelines.protocol import Protocol
from pipelines.types import Digest, Estimate, GateResult
from tests.pipelines.test_gates import BETTER, DATASET, LABELS, WORSE, _compare, _model, _protocol

LEVEL = {"level": 0.02}
SITES = np.where(np.arange(600) % 3 == 0, "north", "south")
SUBGROUPS = {"attributes": ["site"], "critical": ["site=north"], "margin": 0.2, "minimum_cases": 50}


def _row(comparison: Comparison, name: str) -> GateResult:
    """One gate alone."""
    return dict(gates._gates_for(comparison))[name](comparison)


def _asking(**rules: Any) -> Protocol:
    return _protocol(gates=rules)


def _estimate(value: float, low: float) -> Estimate:
    return Estimate(value=value, low=low, high=1.0, n=100, level=0.9)


def test_every_requirement_tells_the_numbers_that_it_is_held_to() -> None:
    asked = _asking(minimum_cases_per_class=30, subgroups=SUBGROUPS)
    sealed = Sealed(labels=LABELS, groups=np.arange(600).astype(str), traits={"site": SITES})
    decided = gates.decide(_compare(protocol=asked, sealed=sealed, use=LEVEL), dataset_digest=DATASET)
    assert {row.name: row.requirement for row in decided.results} == {
        "minimum_cases": "at least 30 sealed-test cases of each class",
        "auroc": "at least 0.8, and not worse than the champion by 0.03",
        "improvement": "AUROC above the champion's (one-sided, alpha 0.02)",
        "sensitivity": "at least 0.7, and not worse than the champion by 0.06",
        "specificity": "at least 0.6, and not worse than the champion by 0.1",
        "subgroups": "critical slices not worse by 0.2; no significant harm in any other",
        "calibration": "calibration error at most 0.15, and at most 0.05 above the champion's",
        "leakage": "no image and no patient in two splits",
        "submitters": (
            "no submitter's new labels contradict the champion, or stronger evidence on the same cases, "
            "in more than 35%"
        ),
    }
    assert (decided.schema_version, decided.summary["alpha"]) == (2, 0.02)
    assert decided.summary["sealed_test"] == {"normal": 300, "pneumonia": 300}
    assert {row.reason for row in decided.results if row.name == "calibration"} == {"calibrated well enough"}


@pytest.mark.parametrize(
    ("candidate", "difference", "verdict", "reason"),
    [
        (_estimate(0.85, 0.80), None, "pass", "shown"),
        (_estimate(0.85, 0.799), None, "insufficient", "0.850 clears 0.8, but on 100 cases it may be 0.799"),
        (_estimate(0.80, 0.70), None, "insufficient", "0.800 clears 0.8, but on 100 cases it may be 0.700"),
        (_estimate(0.799, 0.70), None, "fail", "0.799 is below the floor 0.8"),
        (_estimate(0.9, 0.8), _estimate(0.01, -0.03), "pass", "shown"),
        (
            _estimate(0.9, 0.8),
            _estimate(0.01, -0.031),
            "insufficient",
            "on 100 cases it may be 0.031 worse than the champion",
        ),
        (
            _estimate(0.9, 0.8),
            _estimate(-0.03, -0.05),
            "insufficient",
            "on 100 cases it may be 0.050 worse than the champion",
        ),
        (_estimate(0.9, 0.8), _estimate(-0.031, -0.05), "fail", "worse than the champion by 0.031"),
    ],
)
def test_lower_bounds_are_held_to_floor_and_margin(
    candidate: Estimate, difference: Estimate | None, verdict: str, reason: str
) -> None:
    champion = None if difference is None else candidate
    row = gates._floor_and_margin(
        "auroc", Margin(floor=0.8, margin=0.03), candidate=candidate, champion=champion, difference=difference
    )
    assert (row.verdict, row.reason) == (verdict, reason)


@pytest.mark.parametrize(("sick", "verdict"), [(20, "pass"), (19, "insufficient"), (0, "insufficient")])
def test_as_many_cases_as_asked_for_are_enough_and_one_fewer_is_not(sick: int, verdict: str) -> None:
    labels = np.array([0] * 30 + [1] * sick)
    row = _row(_compare(sealed=Sealed(labels=labels, groups=np.arange(len(labels)).astype(str))), "minimum_cases")
    assert (row.verdict, row.details) == (verdict, {"normal": 30, "pneumonia": sick})
    assert row.reason == ("enough cases of each class" if sick == 20 else f"only {sick} of pneumonia")


def test_a_class_nobody_has_is_missing_where_one_case_is_asked_for() -> None:
    labels = np.zeros(30, dtype=np.int64)
    sealed = Sealed(labels=labels, groups=np.arange(30).astype(str))
    comparison = _compare(sealed=sealed, protocol=_asking(minimum_cases_per_class=1))
    assert _row(comparison, "minimum_cases").verdict == "insufficient"
    decided = gates.decide(comparison, dataset_digest=DATASET, before_use=True)
    assert decided.summary["sealed_test"] == {"normal": 30, "pneumonia": 0}


@pytest.mark.parametrize(
    ("candidate", "champion", "verdict", "reason"),
    [
        (BETTER, WORSE, "pass", "better than the champion"),
        (_model("b", LABELS, skill=1.24, seed=9), WORSE, "insufficient", "looks better, but this many"),
        (WORSE, BETTER, "fail", "not better than the champion"),
        (WORSE, WORSE, "fail", "not better than the champion"),
    ],
)
def test_better_is_shown_looks_so_or_is_not_so(candidate: Scored, champion: Scored, verdict: str, reason: str) -> None:
    row = _row(_compare(candidate=candidate, champion=champion), "improvement")
    assert row.verdict == verdict
    assert row.reason.startswith(reason)
    assert row.difference is not None
    if verdict == "insufficient":
        assert row.difference.low < 0.0 < row.difference.value


def test_without_an_operating_point_the_reason_is_that_and_nothing_else() -> None:
    for name, floor in (("sensitivity", 0.7), ("specificity", 0.6)):
        row = _row(_compare(candidate=replace(BETTER, threshold=None)), name)
        assert row.requirement == f"{name} at the operating point at least {floor:g}"
        assert row.reason == "the candidate has no operating point: no threshold met the rule on the tune split"


OFF = [(2.0 + k / 50.0, BETTER.scores[:, 1] ** (2.0 + k / 50.0)) for k in range(40)]
"""The better model's scores, made too small by more and more."""


def _darkened(positive: Any) -> Scored:
    return replace(BETTER, scores=np.stack([1.0 - positive, positive], axis=1))


def test_calibration_is_held_to_its_limit_and_to_the_champions() -> None:
    error, theirs = (harms.calibration_error(_compare(), model).value for model in (_darkened(OFF[0][1]), BETTER))
    assert error > theirs > 0.0

    def row(maximum: float, margin: float) -> GateResult:
        asked = _asking(calibration={"maximum_ece": maximum, "margin": margin})
        return _row(_compare(candidate=_darkened(OFF[0][1]), champion=BETTER, protocol=asked), "calibration")

    assert row(error, 0.4).verdict == "pass"
    assert row(0.9 * error, 0.4).reason == f"calibration error {error:.3f} is above {0.9 * error:g}"
    assert row(error - 1e-9, 0.4).verdict == "fail"
    gap = error - theirs
    assert row(1.0, 1.01 * gap).verdict == "pass"
    beyond = row(1.0, 0.9 * gap)
    words = f"calibration error {error:.3f} is more than {0.9 * gap:g} above the champion's"
    assert (beyond.verdict, beyond.reason) == ("fail", words)


def test_just_as_far_above_the_champions_calibration_error_as_allowed_is_allowed() -> None:
    theirs = harms.calibration_error(_compare(), BETTER).value
    found = ((positive, harms.calibration_error(_compare(), _darkened(positive)).value) for _, positive in OFF)
    positive, error = next((one, error) for one, error in found if theirs + (error - theirs) == error)
    asked = _asking(calibration={"maximum_ece": 1.0, "margin": error - theirs})
    comparison = _compare(candidate=_darkened(positive), champion=BETTER, protocol=asked)
    assert _row(comparison, "calibration").verdict == "pass"


def test_the_calibration_error_is_that_of_the_class_or_of_the_likeliest_class() -> None:
    found = harms.calibration_error(_compare(), BETTER)
    assert found == metrics.ece_estimate(LABELS == 1, BETTER.scores[:, 1], rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    labels, scores = np.arange(300) % 3, rng.dirichlet(np.ones(3), 300)
    many = _compare(
        protocol=_protocol(classes=["a", "b", "c"]), sealed=Sealed(labels=labels, groups=np.arange(300).astype(str))
    )
    model = Scored(digest=Digest("c" * 64), scores=scores, decided=scores.argmax(axis=1), threshold=None)
    right, confidence = scores.argmax(axis=1) == labels, scores.max(axis=1)
    assert harms.calibration_error(many, model) == metrics.ece_estimate(right, confidence, rng=np.random.default_rng(0))


def test_the_margins_of_approved_models_are_those_of_the_protocol_and_no_larger() -> None:
    original = _model("0", LABELS, skill=1.25, seed=7)
    free = {name: {"floor": 0.0, "margin": 0.49} for name in ("auroc", "sensitivity", "specificity")}
    comparison = _compare(candidate=WORSE, champion=WORSE, approved=(original,), protocol=_asking(**free))
    (bound,) = [
        -one["difference"]["low"]
        for one in _row(comparison, "approved_models").details["comparisons"]
        if one["endpoint"] == "auroc"
    ]
    assert bound > 0.0
    for share, verdict in ((1.01, "pass"), (0.9, "insufficient")):
        asked = _asking(**{**free, "auroc": {"floor": 0.0, "margin": share * bound}})
        assert _row(replace(comparison, protocol=asked), "approved_models").verdict == verdict


def test_critical_slices_are_shown_at_the_level_paid_for_and_harm_is_looked_for_at_alpha() -> None:
    sealed = Sealed(labels=LABELS, groups=np.arange(600).astype(str), traits={"site": SITES})

    def row(margin: float) -> GateResult:
        asked = _asking(subgroups={**SUBGROUPS, "margin": margin})
        return _row(_compare(candidate=WORSE, champion=WORSE, protocol=asked, sealed=sealed, use=LEVEL), "subgroups")

    shown = {one["name"]: one for one in row(0.2).details["slices"]}
    critical, watched = shown["site=north sensitivity"], shown["site=south sensitivity"]
    assert critical["judged"]["difference"]["level"] == pytest.approx(1.0 - 2.0 * 0.02)
    assert {one["local_alpha"] for one in shown.values() if one["tier"] == "watched"} == {0.05 / 2, 0.05}
    assert watched["tier"] == "watched"
    bound = -critical["judged"]["difference"]["low"]
    assert row(1.01 * bound).verdict == "pass"
    assert row(0.9 * bound).verdict == "insufficient"


def _said(submitter: str, n: int, *, wrong: int, others: int = 0) -> tuple[Opinion, ...]:
    """Findings of one submitter, `wrong` of them against the champion; `others` of stronger evidence agree."""
    findings = ("normal", "pneumonia")
    return tuple(
        Opinion(
            submitter=submitter,
            finding=findings[k % 2],
            champion=findings[(k + (k < wrong)) % 2],
            others=findings[k % 2] if k < others else None,
        )
        for k in range(n)
    )


def test_each_submitter_is_tested_by_the_exact_binomial_and_holm() -> None:
    said = (*_said("anna", 40, wrong=30, others=20), *_said("bert", 15, wrong=4), *_said("cleo", 14, wrong=14))
    row = _row(_compare(opinions=said), "submitters")
    tests = [("anna", "the champion", 30, 40), ("anna", "stronger evidence on the same cases", 0, 20)]
    tests += [("bert", "the champion", 4, 15)]
    p_values = [metrics.binomial_tail(k, n, rate=0.35) for _, _, k, n in tests]
    assert row.details["tests"] == [
        {
            "submitter": submitter,
            "against": against,
            "disagreements": k,
            "labels": n,
            "p": p_value,
            "lower_bound": metrics.clopper_pearson(k, n, level=1.0 - 2.0 * local).low,
            "local_alpha": local,
            "refused": rejected,
        }
        for (submitter, against, k, n), p_value, (rejected, local) in zip(
            tests, p_values, metrics.holm(p_values, alpha=0.05), strict=True
        )
    ]
    assert [test["refused"] for test in row.details["tests"]] == [True, False, False]
    assert row.details["not_judged"] == {"cleo": 14}
    low = row.details["tests"][0]["lower_bound"]
    words = f"anna contradicts the champion in 30 of 40 new labels (at least {low:.0%}): have these cases read again"
    assert (row.verdict, row.reason) == ("fail", words)


def test_calm_submitters_are_counted_and_so_are_those_with_too_few_labels() -> None:
    said = (*_said("anna", 40, wrong=4, others=30), *_said("bert", 15, wrong=4), *_said("cleo", 14, wrong=2))
    row = _row(_compare(opinions=said), "submitters")
    assert (row.verdict, row.reason) == ("pass", "2 judged, 1 with too few labels to judge")


def test_a_submitter_is_stopped_from_alpha_on_and_not_before() -> None:
    p_values = {k: metrics.binomial_tail(k, 40, rate=0.35) for k in range(41)}
    first = next(k for k in range(41) if p_values[k] <= 0.05)
    for wrong, verdict in ((first, "fail"), (first - 1, "pass")):
        assert _row(_compare(opinions=_said("anna", 40, wrong=wrong)), "submitters").verdict == verdict
    loose = next(k for n in range(15, 200) for k in [_between(n)] if k is not None)
    assert _row(_compare(opinions=_said("anna", loose[1], wrong=loose[0])), "submitters").verdict == "pass"


def _between(n: int) -> tuple[int, int] | None:
    """So many contradictions in n labels that they are significant at a quarter more than alpha, and not at alpha."""
    return next(((k, n) for k in range(n + 1) if 0.05 < metrics.binomial_tail(k, n, rate=0.35) <= 0.0625), None)


def test_what_could_not_be_measured_is_told_from_what_nobody_thought_of() -> None:
    spoilt = replace(BETTER, scores=np.full((600, 2), np.nan))
    decided = gates.decide(_compare(candidate=spoilt), dataset_digest=DATASET)
    (row,) = [row for row in decided.results if row.name == "auroc"]
    assert row.reason.startswith("could not be measured: ")
    broken = replace(BETTER, scores=np.zeros(600))
    decided = gates.decide(_compare(candidate=broken), dataset_digest=DATASET)
    (row,) = [row for row in decided.results if row.name == "auroc"]
    assert row.reason.startswith("could not be measured (IndexError): ")


def test_before_a_level_is_spent_only_what_looks_at_no_score_is_asked() -> None:
    calm = gates.decide(_compare(), dataset_digest=DATASET, before_use=True)
    assert calm.verdict == "pass"
    assert [row.name for row in calm.results] == ["minimum_cases", "leakage", "submitters"]
    poisoned = gates.decide(_compare(opinions=_said("anna", 60, wrong=52)), dataset_digest=DATASET, before_use=True)
    assert poisoned.verdict == "fail"
    assert poisoned.results[-1].name == "sealed_test"
    assert (poisoned.results[-1].verdict, poisoned.sealed_test) == ("fail", None)
    assert {row.name for row in poisoned.results} <= {*gates.SPEND_NOTHING, "sealed_test"}
