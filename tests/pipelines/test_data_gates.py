"""The gates on data: what a protocol asks of its cases is shown by a report of this very version, or the gate fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines import data_gates, gates
from pipelines.comparison import Comparison, Placement
from pipelines.gate_rules import DataQuality
from pipelines.protocol import ProtocolError, from_document
from pipelines.quality_report import QualityLine, QualityReport
from pipelines.types import Digest, GateResult
from tests.pipelines.test_gates import BETTER, DATASET, DOCUMENT, LABELS, PLACEMENTS, Sealed

NAMES = ["missing_patients", "unreadable_images", "near_duplicates", "prior_shift"]


def report(**changes: Any) -> QualityReport:
    lines = tuple(
        QualityLine(name=name, verdict="pass", reason="looked at", n=600, value=value)
        for name, value in (
            ("missing_patient", 0.1),
            ("unreadable_images", 0.01),
            ("exact_duplicates_across_splits", 0.0),
            ("near_duplicates_across_splits", 0.0),
            ("prior_shift", 0.2),
        )
    )
    values: dict[str, Any] = {
        "schema_version": 1,
        "line": "toy",
        "number": 2,
        "dataset_digest": DATASET,
        "previous_digest": Digest("c" * 64),
        "rules": DataQuality().model_dump(mode="json"),
        "lines": lines,
    }
    return QualityReport(**{**values, **changes})


def with_line(name: str, **changes: Any) -> QualityReport:
    return report(lines=tuple(replace(line, **changes) if line.name == name else line for line in report().lines))


def decide(quality: QualityReport | None, **section: Any) -> dict[str, GateResult]:
    comparison = Comparison(
        protocol=from_document({**DOCUMENT, "data_quality": section}),
        sealed=Sealed(labels=LABELS, groups=LABELS.astype(str)),
        candidate=BETTER,
        champion=None,
        opinions=(),
        placements=PLACEMENTS,
        quality=quality,
    )
    return {row.name: row for row in gates.decide(comparison, dataset_digest=DATASET).results if row.name in NAMES}


def test_each_requirement_is_a_gate_and_good_data_pass_them_all() -> None:
    assert {name: row.verdict for name, row in decide(report()).items()} == dict.fromkeys(NAMES, "pass")


def test_a_protocol_that_asks_nothing_of_the_data_has_no_such_gate() -> None:
    comparison = Comparison(
        protocol=from_document(DOCUMENT),
        sealed=Sealed(labels=LABELS, groups=LABELS.astype(str)),
        candidate=BETTER,
        champion=None,
        opinions=(),
        placements=PLACEMENTS,
    )
    assert not {row.name for row in gates.decide(comparison, dataset_digest=DATASET).results} & set(NAMES)


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (None, "no quality report"),
        (report(dataset_digest=Digest("e" * 64)), "another dataset version"),
        (report(rules={}), "other rules"),
        (report(lines=()), "no line"),
    ],
    ids=["no report", "of another version", "under other rules", "without lines"],
)
def test_without_a_report_of_this_version_under_these_rules_every_gate_fails(
    quality: QualityReport | None, words: str
) -> None:
    rows = decide(quality)
    assert {row.verdict for row in rows.values()} == {"fail"}
    assert all(words in row.reason for row in rows.values())


@pytest.mark.parametrize(
    ("gate", "line", "changes"),
    [
        ("missing_patients", "missing_patient", {"value": 0.21}),
        ("unreadable_images", "unreadable_images", {"value": 0.03}),
        ("near_duplicates", "exact_duplicates_across_splits", {"value": 1.0}),
        ("near_duplicates", "near_duplicates_across_splits", {"value": 1.0, "examples": (4, 9)}),
        ("prior_shift", "prior_shift", {"value": 0.26}),
        ("missing_patients", "missing_patient", {"value": None}),
        ("missing_patients", "missing_patient", {"n": 0}),
    ],
)
def test_what_is_beyond_the_limit_or_was_not_measured_fails_its_own_gate(
    gate: str, line: str, changes: dict[str, Any]
) -> None:
    rows = decide(with_line(line, **changes))
    assert {name for name, row in rows.items() if row.verdict != "pass"} == {gate}
    if "examples" in changes:
        assert rows[gate].details["cases"] == [4, 9]


def test_each_gate_tells_its_limit_and_just_at_it_passes() -> None:
    at_the_limit = with_line("unreadable_images", value=0.02)
    rows = decide(at_the_limit)
    assert {name: (row.requirement, row.details["maximum"]) for name, row in rows.items()} == {
        "missing_patients": ("at most 20% of the cases without a patient", 0.2),
        "unreadable_images": ("at most 2% of the confirmed cases with an image that cannot be read", 0.02),
        "near_duplicates": ("no image in two splits, nor a copy (within 6 bits, likeness 0.95)", 0.0),
        "prior_shift": ("the classes' shares changed by at most 0.25 since the version before", 0.25),
    }
    assert {row.verdict for row in rows.values()} == {"pass"}
    assert decide(with_line("unreadable_images", value=0.021))["unreadable_images"].verdict == "fail"


def test_a_report_of_any_other_version_is_named_by_its_digest() -> None:
    for other in ("c", "e"):
        row = decide(report(dataset_digest=Digest(other * 64)))["prior_shift"]
        assert row.reason == f"could not be measured: the quality report is of another dataset version ({other * 12})"


def test_what_leaks_is_counted_and_twenty_of_it_are_named() -> None:
    twice = [Placement(image_digest=f"i{k:02d}", group=f"p{k}", split=s) for k in range(25) for s in ("train", "tune")]
    comparison = Comparison(
        protocol=from_document(DOCUMENT),
        sealed=Sealed(labels=LABELS, groups=LABELS.astype(str)),
        candidate=BETTER,
        champion=None,
        opinions=(),
        placements=tuple(twice),
    )
    row = data_gates.leakage(comparison)
    assert row.reason == "25 images in more than one split; 25 patients in more than one split"
    assert row.details["images"] == [f"i{k:02d}" for k in range(20)]


def test_a_first_version_has_no_shift_to_be_held_against() -> None:
    first = replace(with_line("prior_shift", value=None, verdict="insufficient"), previous_digest=None)
    row = decide(first)["prior_shift"]
    assert (row.verdict, row.reason) == ("pass", "there is no version before")


def test_a_protocol_may_ask_only_to_be_told_of_copies() -> None:
    section = {"near_duplicates": {"action": "report"}}
    rules = DataQuality(near_duplicates={"action": "report"}).model_dump(mode="json")  # type: ignore[arg-type]
    rows = decide(report(rules=rules), **section)
    assert "near_duplicates" not in rows
    assert {row.verdict for row in rows.values()} == {"pass"}


def test_limits_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match=r"data_quality\.near_duplicates\.radius"):
        from_document({**DOCUMENT, "data_quality": {"near_duplicates": {"radius": 40}}})
