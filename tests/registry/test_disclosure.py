"""Who reads what of a gate report: whoever makes candidates learns one bit, until a person has decided."""

from __future__ import annotations

from typing import Any

import pytest

from registry import approvals, audit, candidates, disclosure, runs
from registry.candidates import Candidate
from registry.db import Connection
from registry.users import User
from tests import factories

RESULTS = [
    {"name": "auroc", "requirement": "at least 0.8", "verdict": "fail", "reason": "0.7", "candidate": {"value": 0.7}},
    {"name": "leakage", "requirement": "no image in two splits", "verdict": "pass", "reason": "none", "details": {}},
]


def judged(db: Connection, *, verdict: str = "pass", requested_by: User | None = None) -> Candidate:
    """A candidate whose report has something to hide."""
    candidate = factories.candidate(db, factories.line(db), requested_by=requested_by)
    values: dict[str, Any] = factories.gate_report_values(db, candidate, verdict=verdict)
    document = {**values["document"], "results": RESULTS, "summary": {"alpha": 0.05}}
    values |= {"document": document, "digest": audit.digest_of(document), "text": "AUROC 0.7, below the floor"}
    candidates.record_gate_report(db, **values)
    return candidates.get(db, candidate.candidate_id)


def shown(db: Connection, candidate: Candidate, reader: User) -> disclosure.Shown:
    found = disclosure.latest_report(db, candidate.candidate_id, reader=reader)
    assert found is not None
    return found


@pytest.mark.parametrize("role", ["reviewer", "approver", "auditor"])
def test_who_decides_or_audits_reads_all_of_it(db: Connection, role: str) -> None:
    found = shown(db, judged(db), factories.user(db, role))
    assert (found.withheld, found.report.document["results"]) == (False, RESULTS)


@pytest.mark.parametrize("roles", [("operator",), ("submitter",), ("operator", "submitter"), ()])
@pytest.mark.parametrize(("verdict", "bit"), [("pass", "pass"), ("fail", "not_passed"), ("insufficient", "not_passed")])
def test_others_learn_one_bit_and_what_looks_at_no_score(
    db: Connection, roles: tuple[str, ...], verdict: str, bit: str
) -> None:
    candidate = judged(db, verdict=verdict)
    found = shown(db, candidate, factories.user(db, *roles))
    assert (found.withheld, found.report.verdict, found.report.document["verdict"]) == (True, bit, bit)
    area, leakage = found.report.document["results"]
    assert area == {"name": "auroc", "requirement": "at least 0.8", "verdict": "withheld"}
    assert leakage == RESULTS[1]
    assert "0.7" not in found.report.text + str(found.report.document)
    assert "summary" not in found.report.document
    whole = candidates.latest_report(db, candidate.candidate_id)
    assert whole is not None
    assert found.report.digest == whole.digest


def test_whoever_asked_for_the_run_learns_the_bit_whatever_they_are(db: Connection) -> None:
    asked = factories.user(db, "operator", "reviewer", "approver", "auditor")
    candidate = judged(db, requested_by=asked)
    assert shown(db, candidate, asked).withheld
    assert not shown(db, candidate, factories.user(db, "reviewer")).withheld


def test_what_its_data_stopped_is_open_to_whoever_asked_for_it(db: Connection) -> None:
    asked = factories.user(db, "operator")
    candidate = factories.candidate(db, factories.line(db), requested_by=asked)
    values = factories.unused_report_values(db, candidate, results=RESULTS[1:])
    candidates.record_gate_report(db, **values)
    found = shown(db, candidates.get(db, candidate.candidate_id), asked)
    assert (found.withheld, found.report.document) == (False, values["document"])


@pytest.mark.parametrize("decision", ["reject", "promote"])
def test_once_a_person_has_decided_everybody_reads_it(db: Connection, decision: str) -> None:
    candidate, operator = judged(db), factories.user(db, "operator")
    if decision == "reject":
        approvals.sign(
            db,
            candidate_id=candidate.candidate_id,
            approver=factories.user(db, "approver"),
            decision="reject",
            reason="misses small infiltrates",
        )
    else:
        factories.signatures(db, candidate, [factories.user(db, "approver"), factories.user(db, "approver")])
        assert shown(db, candidate, operator).withheld, "signed is not decided"
        factories.promotion(db, candidate)
    assert not shown(db, candidate, operator).withheld


def test_what_failed_is_open_once_its_epoch_is_over(db: Connection) -> None:
    candidate, operator = judged(db, verdict="fail"), factories.user(db, "operator")
    assert shown(db, candidate, operator).withheld
    run = runs.get(db, candidate.run_id)
    following = factories.candidate(db, factories.lines.line_by_id(db, run.line_id))
    terms = {"epoch": 2, "after_version": 1, "wallet": "unlimited", "place": 1, "wallet_before": None, "level": 0.05}
    factories.sealed_tests.record_use(
        db,
        candidate_id=following.candidate_id,
        champion_candidate_id=None,
        protocol_id=following.protocol_id,
        **terms,  # type: ignore[arg-type]  # plain values
    )
    assert not shown(db, candidate, operator).withheld


def test_a_gate_that_is_not_known_to_look_at_no_score_is_withheld() -> None:
    row = {"name": "a new gate", "requirement": "x", "verdict": "fail", "reason": "0.7"}
    assert disclosure._open_row(row)["verdict"] == "withheld"


def test_before_the_first_report_there_is_nothing_to_show(db: Connection) -> None:
    candidate = factories.candidate(db, factories.line(db))
    reader = factories.user(db, "reviewer")
    assert disclosure.latest_report(db, candidate.candidate_id, reader=reader) is None
