"""The gates: what passes, what is stopped, and that everything odd is stopped."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import data_gates, gates, report
from pipelines.comparison import Comparison, Opinion, Placement, Scored, Sealed
from pipelines.evaluate import outweighing
from pipelines.protocol import Protocol, from_document
from pipelines.types import Confirmation, Digest, GateResult, digest_of

DOCUMENT: dict[str, Any] = {
    "line": "toy",
    "title": "A toy line",
    "intended_use": "To test the gates on numbers that a computer has made.",
    "classes": ["normal", "pneumonia"],
    "input": {"channels": 1, "rows": 28, "columns": 28},
    "recipe": {"epochs": 4, "threads": 1},
}
PROTOCOL = from_document(DOCUMENT)
DATASET = Digest("d" * 64)
PLACEMENTS = tuple(Placement(image_digest=f"i{k}", group=f"p{k}", split="train") for k in range(10))


def _model(name: str, labels: Any, *, skill: float, seed: int, threshold: float | None = 0.5) -> Scored:
    """A calibrated model: its scores are the true probabilities of the class given a noisy reading."""
    shared = np.random.default_rng(99).normal(size=len(labels))
    own = np.random.default_rng(seed).normal(size=len(labels))
    reading = skill * (2 * labels - 1) + 0.8 * shared + 0.6 * own
    positive = 1 / (1 + np.exp(-2 * skill * reading))
    decided = (positive >= (0.5 if threshold is None else threshold)).astype(np.int64)
    scores = np.stack([1 - positive, positive], axis=1)
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=threshold)


LABELS = (np.arange(600) % 2).astype(np.int64)
BETTER = _model("b", LABELS, skill=2.0, seed=1)
WORSE = _model("a", LABELS, skill=1.2, seed=2)


def _compare(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sealed": Sealed(labels=LABELS, groups=np.arange(600).astype(str)),
        "candidate": BETTER,
        "champion": WORSE,
        "opinions": (),
        "placements": PLACEMENTS,
    }
    return Comparison(**{**values, **changes})


def _protocol(**section: Any) -> Protocol:
    return from_document({**DOCUMENT, **section})


def _row(comparison: Comparison, name: str) -> GateResult:
    (row,) = [row for row in gates.decide(comparison, dataset_digest=DATASET).results if row.name == name]
    return row


def test_a_better_candidate_passes_every_gate() -> None:
    decided = gates.decide(_compare(), dataset_digest=DATASET)
    assert decided.verdict == "pass"
    assert [row.name for row in decided.results] == [
        *["minimum_cases", "auroc", "improvement", "sensitivity", "specificity", "calibration", "leakage"],
        "submitters",
    ]
    assert (decided.candidate_digest, decided.champion_digest) == ("b" * 64, "a" * 64)
    assert (decided.dataset_digest, decided.protocol_digest) == (DATASET, PROTOCOL.digest)


def test_the_same_comparison_gives_the_same_report() -> None:
    first, again = (digest_of(gates.decide(_compare(), dataset_digest=DATASET).document()) for _ in range(2))
    assert first == again


def test_a_worse_candidate_fails_and_the_report_says_where() -> None:
    decided = gates.decide(_compare(candidate=WORSE, champion=BETTER), dataset_digest=DATASET)
    assert decided.verdict == "fail"
    assert {"auroc", "improvement"} <= set(decided.summary["not_passed"])
    assert "worse than the champion" in _row(_compare(candidate=WORSE, champion=BETTER), "auroc").reason


def test_the_champion_itself_is_no_improvement() -> None:
    row = _row(_compare(candidate=WORSE), "improvement")
    assert row.verdict == "fail"
    unasked = _protocol(gates={"require_improvement": False})
    decided = gates.decide(_compare(candidate=WORSE, protocol=unasked), dataset_digest=DATASET)
    assert "improvement" not in [row.name for row in decided.results]
    assert "auroc" not in decided.summary["not_passed"]


def test_too_few_cases_to_show_it_is_told_from_worse() -> None:
    few = LABELS[:60]
    comparison = _compare(
        sealed=Sealed(labels=few, groups=np.arange(60).astype(str)),
        candidate=_model("b", few, skill=1.25, seed=1),
        champion=_model("a", few, skill=1.2, seed=2),
    )
    row = _row(comparison, "auroc")
    assert row.verdict == "insufficient"
    assert "may be" in row.reason


def test_a_class_with_too_few_cases_is_never_a_pass() -> None:
    labels = np.array([0] * 300 + [1] * 12)
    comparison = _compare(
        sealed=Sealed(labels=labels, groups=np.arange(312).astype(str)),
        candidate=_model("b", labels, skill=3.0, seed=1),
        champion=None,
    )
    row = _row(comparison, "minimum_cases")
    assert (row.verdict, row.reason) == ("insufficient", "only 12 of pneumonia")
    assert gates.decide(comparison, dataset_digest=DATASET).verdict != "pass"


def test_the_first_model_is_held_against_the_floors_alone() -> None:
    decided = gates.decide(_compare(champion=None), dataset_digest=DATASET)
    assert decided.verdict == "pass"
    assert decided.champion_digest is None
    assert "improvement" not in [row.name for row in decided.results]
    weak = _compare(champion=None, candidate=_model("w", LABELS, skill=0.3, seed=3))
    assert _row(weak, "auroc").verdict == "fail"


def test_a_candidate_without_an_operating_point_fails() -> None:
    candidate = _model("b", LABELS, skill=2.0, seed=1, threshold=None)
    for name in ("sensitivity", "specificity"):
        row = _row(_compare(candidate=candidate), name)
        assert row.verdict == "fail"
        assert "no operating point" in row.reason


def test_a_shifted_threshold_that_costs_sensitivity_fails_though_the_auroc_is_better() -> None:
    strict = replace(BETTER, decided=(BETTER.scores[:, 1] >= 0.995).astype(np.int64), threshold=0.995)
    comparison = _compare(candidate=strict)
    assert _row(comparison, "auroc").verdict == "pass"
    row = _row(comparison, "sensitivity")
    assert row.verdict == "fail"
    assert row.details["only_champion_right"] > row.details["only_candidate_right"]


def test_overconfident_scores_fail_calibration() -> None:
    positive = (BETTER.scores[:, 1] * 0.2 + 0.8).clip(0, 1)
    candidate = replace(BETTER, scores=np.stack([1 - positive, positive], axis=1))
    assert _row(_compare(candidate=candidate), "calibration").verdict == "fail"


@pytest.mark.parametrize("spoilt", [float("nan"), 1.5, -0.1])
def test_scores_that_are_no_probabilities_fail_closed(spoilt: float) -> None:
    scores = BETTER.scores.copy()
    scores[3, 1] = spoilt
    decided = gates.decide(_compare(candidate=replace(BETTER, scores=scores)), dataset_digest=DATASET)
    assert decided.verdict == "fail"
    assert "could not be measured" in _row(_compare(candidate=replace(BETTER, scores=scores)), "auroc").reason
    digest_of(decided.document())


def test_an_error_nobody_thought_of_is_a_failed_gate_and_not_a_crash() -> None:
    broken = replace(BETTER, scores=np.zeros((3, 2)))
    decided = gates.decide(_compare(candidate=broken), dataset_digest=DATASET)
    assert decided.verdict == "fail"
    assert decided.results[0].verdict == "pass"


def test_an_empty_sealed_test_passes_nothing_that_is_measured() -> None:
    none = np.empty(0, dtype=np.int64)
    empty = Scored(digest=Digest("e" * 64), scores=np.empty((0, 2)), decided=none, threshold=0.5)
    sealed = Sealed(labels=none, groups=none.astype(str))
    decided = gates.decide(_compare(sealed=sealed, candidate=empty, champion=None), dataset_digest=DATASET)
    assert {"minimum_cases", "auroc", "sensitivity", "specificity", "calibration"} <= set(decided.summary["not_passed"])


@pytest.mark.parametrize("what", ["image_digest", "group"])
def test_an_image_or_a_patient_in_two_splits_is_leakage(what: str) -> None:
    twin = replace(PLACEMENTS[0], image_digest="other", group="other", split="sealed_test")
    twin = replace(twin, **{what: getattr(PLACEMENTS[0], what)})
    row = _row(_compare(placements=(*PLACEMENTS, twin)), "leakage")
    assert row.verdict == "fail"
    assert "1 " in row.reason


def _said(submitter: str, n: int, *, wrong: int, others: str | None = None) -> list[Opinion]:
    return [
        Opinion(
            submitter=submitter, finding="normal" if k < wrong else "pneumonia", champion="pneumonia", others=others
        )
        for k in range(n)
    ]


def test_a_submitter_who_flips_labels_is_named_and_the_candidate_stopped() -> None:
    said = (*_said("north", 200, wrong=24), *_said("mallory", 60, wrong=52))
    row = _row(_compare(opinions=said), "submitters")
    assert row.verdict == "fail"
    assert "mallory contradicts the champion in 52 of 60" in row.reason
    assert "north" not in row.reason


def test_an_honest_reader_who_is_right_six_times_in_seven_is_hardly_ever_named() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        said = tuple(o for name in "abcde" for o in _said(name, 50, wrong=int(rng.binomial(50, 0.22))))
        refused += _row_of_submitters(said).verdict == "fail"
    assert refused <= 0.05 * 200


def _row_of_submitters(said: tuple[Opinion, ...]) -> GateResult:
    return data_gates.submitters(_compare(opinions=said))


def test_few_labels_are_not_judged_and_the_report_says_so() -> None:
    row = _row(_compare(opinions=tuple(_said("new", 9, wrong=9))), "submitters")
    assert row.verdict == "pass"
    assert row.details["not_judged"] == {"new": 9}


def test_without_a_champion_stronger_evidence_still_catches_a_submitter() -> None:
    said = tuple(replace(o, champion=None, others="pneumonia") for o in _said("mallory", 40, wrong=36))
    row = _row(_compare(opinions=said, champion=None), "submitters")
    assert row.verdict == "fail"
    assert "stronger evidence" in row.reason


def test_many_classes_are_gated_by_macro_auroc_and_accuracy() -> None:
    protocol = _protocol(classes=["a", "b", "c"])
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    logits = 3.0 * np.eye(3)[labels] + rng.normal(size=(600, 3))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    candidate = Scored(digest=Digest("c" * 64), scores=scores, decided=scores.argmax(axis=1), threshold=None)
    comparison = _compare(protocol=protocol, sealed=Sealed(labels=labels, groups=np.arange(600).astype(str)))
    decided = gates.decide(replace(comparison, candidate=candidate, champion=None), dataset_digest=DATASET)
    assert [row.name for row in decided.results][:3] == ["minimum_cases", "auroc", "accuracy"]
    assert decided.results[2].verdict == "pass"


def test_copied_patients_do_not_make_a_difference_significant() -> None:
    first, second = _model("b", LABELS[:80], skill=1.3, seed=1), _model("a", LABELS[:80], skill=1.2, seed=2)
    copies = [
        replace(model, scores=np.tile(model.scores, (20, 1)), decided=np.tile(model.decided, 20))
        for model in (first, second)
    ]
    groups = np.tile(np.arange(80), 20).astype(str)
    grouped = _compare(sealed=Sealed(labels=np.tile(LABELS[:80], 20), groups=groups))
    row = _row(replace(grouped, candidate=copies[0], champion=copies[1]), "improvement")
    assert row.difference is not None
    assert row.difference.low < 0


def test_the_text_names_every_gate_fits_a_terminal_and_says_why_not() -> None:
    comparison = _compare(opinions=tuple(_said("mallory", 60, wrong=52)))
    text = report.render_text(gates.decide(comparison, dataset_digest=DATASET))
    assert max(map(len, text.splitlines())) <= 100
    assert "FAIL" in text.splitlines()[1]
    assert "mallory contradicts the champion" in " ".join(text.split())
    for row in gates.decide(comparison, dataset_digest=DATASET).results:
        assert f"\n{row.name} " in text


def test_the_gates_can_be_decided_without_torch() -> None:
    code = "import sys, pipelines.gates, pipelines.metrics, pipelines.calibrate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_candidate_that_saw_new_cases_only_is_never_promoted() -> None:
    decided = gates.decide(_compare(fine_tuned=True), dataset_digest=DATASET)
    assert decided.verdict == "fail"
    assert decided.summary["not_passed"] == ["strategy"]


def _voice(submitter: str, finding: str, evidence: Any, kind: Any = "confirmation") -> Confirmation:
    return Confirmation(
        confirmation_id=1,
        kind=kind,
        finding=finding,
        evidence=evidence,
        ai_exposure="blind",
        submitter=submitter,
        reader="r",
        confirmed_on="2026-03-02",
    )


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], None),
        ([("b", "pneumonia", "single_read")], None),  # of two equal voices nobody can say which is wrong
        ([("b", "pneumonia", "single_read"), ("c", "pneumonia", "single_read")], "pneumonia"),
        ([("b", "pneumonia", "single_read"), ("c", "normal", "single_read")], None),
        ([("b", "pneumonia", "pathology"), ("c", "normal", "single_read")], "pneumonia"),
        ([("b", "pneumonia", "report_text"), ("c", "pneumonia", "report_text")], None),
        ([("b", "normal", "pathology"), ("c", "pneumonia", "single_read", "adjudication")], "pneumonia"),
    ],
)
def test_only_weightier_evidence_counts_against_a_submitter(others: list[Any], expected: str | None) -> None:
    mine = _voice("a", "normal", "single_read")
    assert outweighing(mine, others=[_voice(*other) for other in others]) == expected
