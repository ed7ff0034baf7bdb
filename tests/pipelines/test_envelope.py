"""The envelope: a candidate outside is stopped with the clause named, whatever it measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines import gates
from pipelines.protocol import from_document
from pipelines.types import Digest, GateResult
from tests.pipelines.test_evidence import DOCUMENT, comparison

MADE = {"strategy": "replay", "parameters": 1000}
DATASET = Digest("d" * 64)


def envelope(made: dict[str, Any] | None = None, threshold: float | None = 0.5, **clauses: Any) -> GateResult:
    asked = from_document(
        {**DOCUMENT, "recipe": {"strategy": "replay"}, "envelope": {"strategies": ["replay", "full"], **clauses}}
    )
    one = comparison(protocol=asked, made=MADE if made is None else made)
    one = replace(one, candidate=replace(one.candidate, threshold=threshold))
    decided = gates.decide(one, dataset_digest=DATASET)
    (row,) = [row for row in decided.results if row.name == "envelope"]
    return row


@pytest.mark.parametrize("most", [1000, 1001])
@pytest.mark.parametrize("threshold", [0.25, 0.375, 0.5, 0.75])
def test_a_candidate_within_passes(most: int, threshold: float) -> None:
    row = envelope(threshold=threshold, maximum_parameters=most, maximum_threshold_change=0.25)
    assert (row.verdict, row.reason) == ("pass", "every change is one that the protocol allows")


def test_what_is_asked_names_every_clause_and_no_other() -> None:
    first = "within the envelope of the protocol: strategies replay, full"
    clauses = {"maximum_parameters": 1000, "maximum_threshold_change": 0.25}
    told = {"maximum_parameters": ", at most 1000 parameters", "maximum_threshold_change": ", a threshold within 0.25"}
    assert envelope().requirement == first
    assert envelope(**clauses).requirement == first + "".join(told.values()) + " of the champion's"
    for name, limit in clauses.items():
        assert envelope(**{name: limit}).requirement.startswith(first + told[name])


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"made": {**MADE, "strategy": "warm"}}, "envelope.strategies: warm is not one of replay, full"),
        ({"maximum_parameters": 999}, "envelope.maximum_parameters: 1000 are more than 999"),
        ({"made": {"strategy": "replay"}, "maximum_parameters": 999}, "envelope.maximum_parameters: None"),
        ({"threshold": 0.7, "maximum_threshold_change": 0.1}, "envelope.maximum_threshold_change: 0.5 to 0.7"),
        ({"threshold": None, "maximum_threshold_change": 0.1}, "envelope.maximum_threshold_change: 0.5 to None"),
        ({"made": {}}, "envelope.strategies: None"),
    ],
)
def test_a_candidate_outside_is_stopped_with_the_clause_named(changes: dict[str, Any], clause: str) -> None:
    row = envelope(**changes)
    assert row.verdict == "fail"
    assert clause in row.reason


def test_without_an_envelope_there_is_no_such_gate() -> None:
    decided = gates.decide(comparison(made={"strategy": "magic"}), dataset_digest=DATASET)
    assert "envelope" not in [row.name for row in decided.results]
