"""The screen: what is stopped on the tune split, and that the sealed test has no part in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import gates, metrics, screen
from pipelines.comparison import Comparison, Placement, Scored, Sealed, Tuned
from pipelines.protocol import Protocol, ProtocolError, from_document
from pipelines.types import Digest, GateResult

DOCUMENT: dict[str, Any] = {
    "line": "toy",
    "title": "A toy line",
    "intended_use": "To test the screen on numbers that a computer has made.",
    "classes": ["normal", "pneumonia"],
    "input": {"rows": 28, "columns": 28},
}
SEALED = (np.arange(600) % 2).astype(np.int64)
TUNE = (np.arange(200) % 2).astype(np.int64)


def protocol(confidence: float | None = 0.9, **gates: Any) -> Protocol:
    """The toy line's protocol with a screen, unless told to have none."""
    screened = {} if confidence is None else {"screen": {"confidence": confidence}}
    return from_document({**DOCUMENT, "gates": {**screened, **gates}})


def scored(name: str, labels: Any, *, skill: float) -> Scored:
    """A model that is as good as its skill, on the same noise as every other."""
    noise = np.random.default_rng(7).normal(size=len(labels))
    own = np.random.default_rng(ord(name)).normal(size=len(labels))
    positive = 1.0 / (1.0 + np.exp(-2.0 * skill * (skill * (2 * labels - 1) + 0.8 * noise + 0.6 * own)))
    return Scored(
        digest=Digest(name * 64),
        scores=np.stack([1.0 - positive, positive], axis=1),
        decided=(positive >= 0.5).astype(np.int64),
        threshold=0.5,
    )


def cases(labels: Any, *, exposures: Any = None) -> Sealed:
    """Cases of a patient each."""
    return Sealed(labels=labels, groups=np.arange(len(labels)).astype(str), exposures=exposures)


def compare(skill: float = 2.0, *, tune: float = 1.6, champion: float = 1.2, **changes: Any) -> Comparison:
    """A candidate of `skill` on the sealed test and of another on `tune`, against its champion."""
    values: dict[str, Any] = {
        "protocol": protocol(),
        "sealed": cases(SEALED),
        "candidate": scored("b", SEALED, skill=skill),
        "champion": scored("a", SEALED, skill=champion),
        "opinions": (),
        "placements": (Placement(image_digest="i", group="p", split="train"),),
        "tuned": Tuned(
            cases=cases(TUNE),
            candidate=scored("b", TUNE, skill=tune),
            champion=scored("a", TUNE, skill=champion),
        ),
    }
    return Comparison(**{**values, **changes})


def row(comparison: Comparison, *, before_use: bool = True) -> GateResult:
    """What the screen says, as it stands in a report."""
    report = gates.decide(comparison, dataset_digest=Digest("d" * 64), before_use=before_use)
    (found,) = [row for row in report.results if row.name == "screen"]
    return found


def test_what_is_better_on_tune_is_let_through_and_asked_again_with_the_rest() -> None:
    for before_use in (True, False):
        found = row(compare(), before_use=before_use)
        assert (found.verdict, found.difference is None) == ("pass", False)
    assert gates.decide(compare(), dataset_digest=Digest("d" * 64)).verdict == "pass"


@pytest.mark.parametrize(("tune", "verdict"), [(1.2, "fail"), (1.25, "insufficient"), (0.9, "fail")])
def test_what_is_not_better_on_tune_spends_nothing_however_good_it_is_on_the_sealed_test(
    tune: float, verdict: str
) -> None:
    comparison = compare(2.5, tune=tune)
    assert comparison.tuned is not None
    if tune == 1.2:
        comparison = replace(comparison, tuned=replace(comparison.tuned, candidate=comparison.tuned.champion))
    report = gates.decide(comparison, dataset_digest=Digest("d" * 64), before_use=True)
    assert report.verdict == verdict
    assert [one.name for one in report.results if one.verdict != "pass"] == ["screen", "sealed_test"]
    assert row(comparison, before_use=False).verdict == verdict  # nor does it pass if somebody looks all the same


def test_no_score_of_a_sealed_case_has_a_part_in_it() -> None:
    comparison = compare()
    nobody = scored("b", SEALED[:0], skill=1.0)
    unscored = replace(comparison, candidate=nobody, champion=nobody)
    assert row(unscored) == row(comparison)
    assert {"screen"} < gates.SPEND_NOTHING


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.99])
def test_the_bound_is_that_of_the_confidence_which_the_protocol_states(confidence: float) -> None:
    comparison = compare(protocol=protocol(confidence), tune=1.35)
    found = row(comparison).difference
    assert found is not None
    assert comparison.tuned is not None
    scores = [model.scores[:, 1] for model in (comparison.tuned.candidate, comparison.tuned.champion)]
    wide = metrics.paired_auroc_difference(TUNE, *scores, groups=np.arange(200), level=0.95)
    error = (wide.value - wide.low) / metrics.normal_quantile(0.975)
    assert found.value == pytest.approx(wide.value)
    assert found.low == pytest.approx(wide.value - metrics.normal_quantile(confidence) * error)
    assert f"confidence {confidence:g}" in row(comparison).requirement


def test_more_confidence_lets_less_through() -> None:
    verdicts = [row(compare(protocol=protocol(confidence), tune=1.28)).verdict for confidence in (0.5, 0.8, 0.9999)]
    assert verdicts == ["pass", "pass", "insufficient"]
    for wrong in (0.49, 1.0):
        with pytest.raises(ProtocolError, match=r"gates\.screen\.confidence"):
            protocol(wrong)


@pytest.mark.parametrize(("fewest", "verdict"), [(100, "pass"), (101, "insufficient")])
def test_too_few_cases_on_tune_are_told_from_a_worse_candidate(fewest: int, verdict: str) -> None:
    found = row(compare(protocol=protocol(minimum_cases_per_class=fewest)))
    assert found.verdict == verdict
    if verdict == "insufficient":
        assert found.reason == (
            "only 100 of normal, 100 of pneumonia in the tune split, at least 101 of each are needed"
        )
        assert found.difference is None


def test_a_class_that_tune_lacks_is_named() -> None:
    comparison = compare()
    assert comparison.tuned is not None
    sick = replace(comparison.tuned, cases=cases(np.ones(200, dtype=np.int64)))
    found = row(replace(comparison, tuned=sick, protocol=protocol(minimum_cases_per_class=1)))
    assert (found.verdict, found.reason.split(" in ")[0]) == ("insufficient", "only 0 of normal")


def test_where_blind_labels_decide_they_decide_here_too() -> None:
    exposures = np.where(np.arange(200) < 80, "blind", "aided")
    comparison = compare(protocol=protocol(evidence="blind"))
    assert comparison.tuned is not None
    tuned = replace(comparison.tuned, cases=cases(TUNE, exposures=exposures))
    blind = replace(comparison.sealed, exposures=np.full(600, "blind"))
    found = row(replace(comparison, sealed=blind, tuned=tuned))
    assert found.difference is not None
    assert (found.verdict, found.difference.n) == ("pass", 80)
    few = replace(tuned, cases=cases(TUNE, exposures=np.where(np.arange(200) < 30, "blind", "aided")))
    assert (
        "only 15 of normal, 15 of pneumonia in the tune split read blind"
        in row(replace(comparison, sealed=blind, tuned=few)).reason
    )


def with_a_site(right_of: int, of: int = 50, **gates: Any) -> Comparison:
    """A candidate that is better on the whole, and right of so many sick at the small site; the champion is of all."""
    rows = np.arange(400)
    labels = (rows % 2).astype(np.int64)
    site = np.where(rows < 2 * of, "small", "large")
    champion = np.where(labels == 1, 0.9, 0.1)
    champion[(rows >= 2 * of) & (rows % 10 < 4)] = 0.5  # what the champion cannot tell apart, elsewhere
    candidate = np.where(labels == 1, 0.9, 0.1)
    sick = np.flatnonzero((labels == 1) & (site == "small"))
    candidate[sick[: of - right_of]] = 0.4

    def model(name: str, positive: Any) -> Scored:
        decided = (positive >= 0.5).astype(np.int64)
        return Scored(
            digest=Digest(name * 64), scores=np.stack([1 - positive, positive], axis=1), decided=decided, threshold=0.5
        )

    on_tune = Sealed(labels=labels, groups=rows.astype(str), traits={"site": site})
    tuned = Tuned(cases=on_tune, candidate=model("b", candidate), champion=model("a", champion))
    sliced = {"subgroups": {"attributes": ["site"], "minimum_cases": 20, **gates}}
    return compare(tuned=tuned, protocol=protocol(**sliced, calibration={"maximum_ece": 0.5, "margin": 0.4}))


def test_a_slice_that_is_harmed_on_tune_stops_a_candidate_that_is_better_on_the_whole() -> None:
    found = row(with_a_site(42))
    assert found.difference is not None
    assert found.difference.low > 0.0
    assert found.verdict == "fail"
    assert found.reason == (
        "subgroups on the tune split: site=small sensitivity: harmed: worse than the champion by 0.160 on 50 cases"
    )
    assert row(with_a_site(50)).verdict == "pass"


def test_harm_within_the_tolerance_and_what_too_few_cases_cannot_show_stop_nobody() -> None:
    assert row(with_a_site(42, tolerance=0.1)).verdict == "pass"
    assert row(with_a_site(42, minimum_cases=51)).verdict == "pass"
    critical = {"critical": ["site=small"], "margin": 0.1}
    assert row(with_a_site(47, **critical)).verdict == "pass"  # not shown, and not asked to be shown here
    assert row(with_a_site(45, **critical)).verdict == "fail"


def test_a_candidate_whose_scores_mean_less_than_the_champions_is_stopped() -> None:
    comparison = compare(protocol=protocol(calibration={"maximum_ece": 0.5, "margin": 0.05}))
    assert comparison.tuned is not None
    assert row(comparison).verdict == "pass"
    timid = 0.5 + (comparison.tuned.candidate.scores[:, 1] - 0.5) / 3.0
    softened = replace(comparison.tuned.candidate, scores=np.stack([1.0 - timid, timid], axis=1))
    found = row(replace(comparison, tuned=replace(comparison.tuned, candidate=softened)))
    assert found.verdict == "fail"
    assert found.reason.startswith("calibration on the tune split: calibration error")


def test_every_reason_is_told() -> None:
    comparison = with_a_site(42)
    assert comparison.tuned is not None
    worse = replace(comparison.tuned.candidate, scores=np.full((400, 2), 0.5))
    found = row(replace(comparison, tuned=replace(comparison.tuned, candidate=worse)))
    assert found.reason.startswith("not better than the champion on the tune split; subgroups on the tune split: ")


def test_a_screen_without_scores_of_tune_fails_closed() -> None:
    found = row(compare(tuned=None))
    assert (found.verdict, found.reason) == ("fail", "could not be measured: nobody scored the tune split")


def test_the_first_model_has_nobody_to_beat_and_a_protocol_may_ask_for_no_screen() -> None:
    for comparison in (compare(champion=1.2, protocol=protocol(None)), replace(compare(), champion=None)):
        report = gates.decide(comparison, dataset_digest=Digest("d" * 64), before_use=True)
        assert "screen" not in [one.name for one in report.results]
        assert report.verdict == "pass"


def test_a_protocol_without_the_section_keeps_its_digest() -> None:
    assert "screen" not in protocol(None).document()["gates"]
    assert protocol(None).digest == from_document(DOCUMENT).digest
    assert from_document({**DOCUMENT, "gates": {"screen": {}}}).document()["gates"]["screen"] == {"confidence": 0.9}
    assert screen.gate(compare()).name == "screen"
