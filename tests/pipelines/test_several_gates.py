"""Several questions of one image: measured and gated each by itself, and none may be harmed for the others' sake."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipelines import evidence, findings, gates, metrics, quality_lines, several, several_gates
from pipelines.comparison import Comparison, Opinion, Scored, Sealed
from pipelines.endpoints import decision_difference, share
from pipelines.gate_rules import DataQuality
from pipelines.metrics import MetricError
from pipelines.near_duplicates import Pairs
from pipelines.protocol import from_document
from pipelines.types import Digest, GateReport, GateResult
from tests.pipelines.plates import CLASSES, DOCUMENT, PROTOCOL, quality_table


def _labels(n: int = 600) -> Any:
    return np.random.default_rng(3).random((n, 3)) < [0.4, 0.4, 0.25]


def _scored(name: str, labels: Any, *, skill: tuple[float, ...], threshold: float | None = 0.5) -> Scored:
    """A calibrated model of so much skill on each finding."""
    noise = np.random.default_rng(ord(name)).normal(size=labels.shape)
    scores = 1.0 / (1.0 + np.exp(-2.0 * np.array(skill) * (np.array(skill) * (2 * labels - 1) + noise)))
    thresholds = dict.fromkeys(CLASSES, threshold)
    decided = several.decided(scores, list(thresholds.values()))
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=None, thresholds=thresholds)


def _compared(*, candidate: tuple[float, ...], champion: tuple[float, ...] | None, **changes: Any) -> Comparison:
    labels = _labels()
    values: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sealed": Sealed(
            labels=labels,
            groups=np.arange(len(labels)).astype(str),
            traits={"site": np.array(["north", "south"])[np.arange(len(labels)) % 2]},
            case_ids=np.arange(len(labels)),
            batches=np.arange(len(labels)) // 300,
            exposures=np.where(np.arange(len(labels)) % 3, "blind", "aided"),
        ),
        "candidate": _scored("b", labels, skill=candidate),
        "champion": None if champion is None else _scored("a", labels, skill=champion),
        "opinions": (),
        "placements": (),
    }
    return Comparison(**{**values, **changes})


def _decide(comparison: Comparison) -> tuple[GateReport, dict[str, GateResult]]:
    report = gates.decide(comparison, dataset_digest=Digest("d" * 64))
    return report, {row.name: row for row in report.results}


GOOD, BETTER = (1.1, 1.1, 1.1), (1.3, 1.3, 1.3)


def test_a_model_that_is_good_on_every_finding_passes_and_its_auroc_is_the_mean() -> None:
    comparison = _compared(candidate=BETTER, champion=GOOD)
    report, rows = _decide(comparison)
    stopped = {name: row.reason for name, row in rows.items() if row.verdict != "pass" and name != "leakage"}
    assert stopped == {}
    assert rows["auroc"].candidate is not None
    own = roc_auc_score(comparison.sealed.labels, comparison.candidate.scores, average="macro")
    assert rows["auroc"].candidate.value == pytest.approx(own)
    assert report.summary["sealed_test"]["no ring"] + report.summary["sealed_test"]["ring"] == 600
    assert report.summary["candidate_thresholds"] == dict.fromkeys(CLASSES, 0.5)


def test_a_candidate_that_is_worse_on_one_finding_of_three_is_stopped_though_the_means_hold() -> None:
    _, rows = _decide(_compared(candidate=(1.8, 1.8, 0.75), champion=GOOD))
    assert rows["auroc"].verdict == "pass"
    assert rows["sensitivity"].difference is not None
    assert rows["sensitivity"].difference.value > 0.0
    assert rows["findings"].verdict == "fail"
    assert "band: AUROC worse than the champion's by" in rows["findings"].reason
    assert "ring" not in rows["findings"].reason
    assert len(rows["findings"].details["tests"]) == 9


def test_a_finding_that_is_given_up_step_by_step_is_held_against_who_was_approved_before() -> None:
    labels = _labels()
    first = _scored("f", labels, skill=(1.1, 1.1, 1.7))
    comparison = _compared(candidate=(1.8, 1.8, 1.2), champion=(1.5, 1.5, 1.3))
    assert several_gates.harm(comparison).verdict == "pass"
    asked = several_gates.harm(replace(comparison, approved=(first,)))
    assert asked.verdict == "fail"
    assert asked.reason.startswith("band: ")
    assert "worse than approved model ffffffffffff's by" in asked.reason
    assert "the champion's by" not in asked.reason
    assert asked.requirement.endswith("or than those of a model approved before it")
    tests = asked.details["tests"]
    assert [
        sum(test["against"] == name for test in tests) for name in ("the champion", "approved model ffffffffffff")
    ] == [9, 9]
    smallest = min(tests[9:], key=lambda test: test["p_value"])
    assert smallest["local_alpha"] == pytest.approx(PROTOCOL.gates.alpha / 9)  # the families do not thin each other


def test_equal_models_are_seldom_said_to_harm_a_finding() -> None:
    comparison, stopped = _compared(candidate=GOOD, champion=GOOD), 0
    for letter in "cdefghijklmnopqrstuv":
        other = _scored(letter, _labels(), skill=GOOD)
        stopped += several_gates.harm(replace(comparison, candidate=other)).verdict == "fail"
    assert stopped <= 3


def test_every_finding_has_to_clear_the_floor_at_its_operating_point() -> None:
    _, rows = _decide(_compared(candidate=(2.4, 2.4, 0.3), champion=None))
    assert rows["sensitivity"].verdict == "fail"
    assert "band: 0." in rows["sensitivity"].reason
    assert "is below the floor 0.7" in rows["sensitivity"].reason
    assert "findings" not in rows
    comparison = _compared(candidate=GOOD, champion=None)
    none = replace(comparison.candidate, thresholds={**comparison.candidate.thresholds, "ring": None})
    missing = _decide(replace(comparison, candidate=none))[1]["sensitivity"]
    assert missing.verdict == "fail"
    assert missing.reason == "ring has no operating point: no threshold met the rule on the tune split"


def test_the_mean_over_findings_is_as_sure_as_its_patients_and_never_surer_than_the_parts() -> None:
    comparison = _compared(candidate=BETTER, champion=GOOD)
    assert comparison.champion is not None
    whole = decision_difference(comparison, comparison.champion, "sensitivity")
    parts = [
        decision_difference(view, view.champion, "sensitivity")
        for view in comparison.questions().values()
        if view.champion is not None
    ]
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))
    assert whole.low < whole.value < whole.high
    assert whole.high - whole.low < max(part.high - part.low for part in parts)
    doubled = comparison.of(np.repeat(np.arange(600), 2))
    assert doubled.champion is not None
    again = decision_difference(doubled, doubled.champion, "sensitivity")
    assert again.high - again.low == pytest.approx(whole.high - whole.low, rel=0.12)
    labels, decided = comparison.sealed.labels, comparison.candidate.decided
    own = np.mean([(~decided[~labels[:, k], k]).mean() for k in range(3)])
    assert share(comparison, comparison.candidate, "specificity").value == pytest.approx(own)


def test_slices_calibration_and_earlier_models_are_judged_finding_by_finding() -> None:
    asked = from_document({**DOCUMENT, "gates": {"require_improvement": False, "subgroups": {}}})
    comparison = _compared(candidate=BETTER, champion=GOOD, protocol=asked)
    labels = comparison.sealed.labels
    harmed = comparison.candidate.decided.copy()
    harmed[::2, 1] &= np.random.default_rng(0).random(300) < 0.5  # rings at the north site
    bent = replace(comparison.candidate, decided=harmed, scores=comparison.candidate.scores ** [1.0, 1.0, 0.1])
    earlier = _scored("e", labels, skill=(3.0, 3.0, 3.0))
    _, rows = _decide(replace(comparison, candidate=bent, approved=(earlier,)))
    assert rows["subgroups"].verdict == "fail"
    assert "site=north sensitivity of ring" in rows["subgroups"].reason
    assert "calibration error of band" in rows["calibration"].reason
    assert rows["approved_models"].verdict == "fail"


def test_too_few_cases_with_or_without_a_finding_show_nothing() -> None:
    comparison = _compared(candidate=GOOD, champion=None)
    rare = comparison.of(np.flatnonzero(~comparison.sealed.labels[:, 2] | (np.arange(600) < 20)))
    _, rows = _decide(rare)
    assert rows["minimum_cases"].verdict == "insufficient"
    assert rows["minimum_cases"].reason.endswith("of band")
    blind = from_document({**DOCUMENT, "gates": {"evidence": "blind", "minimum_cases_per_class": 120}})
    _, rows = _decide(replace(comparison, protocol=blind))
    assert rows["auroc"].verdict == "insufficient"
    assert "of band were read blind" in rows["auroc"].reason


def test_a_submitter_who_contradicts_the_champion_on_one_finding_is_found() -> None:
    rng = np.random.default_rng(0)
    said = [findings.joined(row, CLASSES) for row in rng.random((60, 3)) < 0.4]
    turned = [findings.joined(row ^ np.array([False, True, False]), CLASSES) for row in findings.matrix(said, CLASSES)]
    opinions = [
        Opinion(submitter=who, finding=theirs, champion=ours, others=None)
        for who, answers in (("pacs-north", said), ("pacs-south", turned))
        for ours, theirs in zip(said, answers, strict=True)
    ]
    _, rows = _decide(_compared(candidate=GOOD, champion=GOOD, opinions=tuple(opinions)))
    assert rows["submitters"].verdict == "fail"
    assert rows["submitters"].reason.startswith("pacs-south contradicts the champion on ring in 60 of 60 new labels")
    assert "pacs-north" not in rows["submitters"].reason


def test_what_a_report_shows_of_several_findings_is_drawn_for_each() -> None:
    shown = evidence.gather(_compared(candidate=BETTER, champion=GOOD))
    assert {curve["class"] for curve in shown["roc"]["curves"]} == set(CLASSES)
    assert all(curve["point"]["threshold"] == 0.5 for curve in shown["roc"]["curves"])
    assert shown["reliability"]["of"] == "the findings, taken together"
    assert shown["decision_curve"] == {"missing": "a decision curve needs a positive class"}
    assert "site=north, ring" in {row["slice"] for row in shown["forest"]}
    assert shown["forgetting"]["cells"][0][0]["n"] == 150
    assert shown["flips"]["lost"][0]["finding"] in {findings.joined(row, CLASSES) for row in _labels()}
    assert "missing" not in shown["exposure"]


def test_what_takes_classes_that_exclude_each_other_refuses_several_findings() -> None:
    comparison = _compared(candidate=GOOD, champion=None)
    with pytest.raises(MetricError, match="ask about each of them"):
        _ = comparison.truth
    with pytest.raises(MetricError):
        metrics.auroc(comparison.sealed.labels, comparison.candidate.scores)
    with pytest.raises(MetricError):
        metrics.macro_auroc_estimate(comparison.sealed.labels[:, :2], comparison.candidate.scores)


def test_the_share_that_changed_most_is_what_shifted_and_copies_differ_where_any_finding_does() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((300, 3)) < [0.4, 0.4, 0.2]
    after = np.concatenate([before, rng.random((300, 3)) < [0.4, 0.4, 0.8]])
    old, new = quality_table(before, number=1), quality_table(after, number=2)
    line = quality_lines.prior_shift(new, old, DataQuality(), seed=0)
    assert line.value == pytest.approx(after[:, 2].mean() - before[:, 2].mean())
    assert line.verdict == "fail"
    assert line.reason.startswith("the findings of the whole version shifted by 0.29")
    assert "band 2" in line.reason
    calm = quality_lines.prior_shift(quality_table(np.tile(before, (2, 1)), number=2), old, DataQuality(), seed=0)
    assert calm.verdict == "pass"
    pairs = Pairs(first=np.array([0]), second=np.array([1]), distance=np.array([2]))
    twins = replace(new, labels=np.array([[True, False, True], [True, False, False]]))
    lines = {one.name: one for one in quality_lines.near_duplicates(twins, pairs, DataQuality())}
    assert lines["copies_with_two_answers"].value == 1.0


def _with(comparison: Comparison, **gates_of: Any) -> Comparison:
    """The same comparison, with other limits asked for."""
    document = comparison.protocol.document()
    return replace(comparison, protocol=from_document({**document, "gates": {**document["gates"], **gates_of}}))


def test_floors_and_margins_are_held_just_at_them_and_the_words_have_their_numbers() -> None:
    worse = _compared(candidate=(1.6, 1.6, 1.6), champion=(2.4, 2.4, 2.4))
    _, rows = _decide(worse)
    found, shown = rows["sensitivity"].difference, rows["sensitivity"].details["findings"]
    assert found is not None
    assert found.value < 0.0
    lowest = min(one["candidate"]["value"] for one in shown)
    surest = min(one["candidate"]["low"] for one in shown)

    def asked(*, floor: float, margin: float) -> GateResult:
        return _decide(_with(worse, sensitivity={"floor": floor, "margin": margin}))[1]["sensitivity"]

    assert asked(floor=surest - 1e-6, margin=-found.low + 1e-6).verdict == "pass"
    unsure = asked(floor=surest - 1e-6, margin=-found.low - 1e-6)
    assert unsure.verdict == "insufficient"
    assert unsure.reason == f"in the mean it may be {-found.low:.3f} worse than the champion"
    failed = asked(floor=surest - 1e-6, margin=-found.value - 1e-6)
    assert failed.verdict == "fail"
    assert failed.reason == f"in the mean worse than the champion by {-found.value:.3f}"
    assert f"at least {surest - 1e-6:g} at" in failed.requirement
    assert f"worse than the champion by {-found.value - 1e-6:g}" in failed.requirement
    assert asked(floor=surest + 1e-6, margin=0.4).verdict == "insufficient"
    assert f"clears {lowest - 1e-6:g}, but on" in asked(floor=lowest - 1e-6, margin=0.4).reason
    assert asked(floor=lowest + 1e-6, margin=0.4).verdict == "fail"


def test_harm_by_auroc_has_the_p_value_of_its_interval_and_is_held_at_holms_level() -> None:
    worse = _compared(candidate=(1.8, 1.8, 0.75), champion=GOOD)
    row = _decide(worse)[1]["findings"]
    for test in row.details["tests"]:
        if test["endpoint"] == "AUROC":
            spread = (test["difference"]["high"] - test["difference"]["low"]) / 2.0
            error = spread / metrics.normal_quantile(0.5 + test["difference"]["level"] / 2.0)
            z = test["difference"]["value"] / error
            assert test["p_value"] == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2.0)))
    least = min(row.details["tests"], key=lambda test: test["p_value"])
    assert least["local_alpha"] == pytest.approx(worse.protocol.gates.alpha / 9)
    assert f"by {-least['difference']['value']:.3f} on {least['difference']['n']} cases" in row.reason
