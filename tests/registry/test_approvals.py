"""Who may sign, what a signature stands for, and when it stops counting."""

from __future__ import annotations

import pytest
from psycopg import sql

from registry import approvals, candidates
from registry.db import Connection
from registry.errors import (
    AlreadySigned,
    ApprovalVoid,
    ChampionMoved,
    EvidenceMismatch,
    Forbidden,
    GateNotPassed,
    Invalid,
    NotDistinct,
    StateMoved,
)
from registry.users import User
from tests import factories


def _sign(db: Connection, candidate_id: int, approver: User, decision: str = "approve", reason: str = "good") -> None:
    approvals.sign(db, candidate_id=candidate_id, approver=approver, decision=decision, reason=reason)


def test_a_signature_shows_name_meaning_and_what_it_is_bound_to(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db))
    ada = factories.user(db, "approver", printed_name="Ada Lovelace, MD")
    _sign(db, candidate.candidate_id, ada, reason="  sensitivity holds  ")
    (approval,) = approvals.standing(db, candidate.candidate_id)
    assert (approval.printed_name, approval.reason) == ("Ada Lovelace, MD", "sensitivity holds")
    assert "approve" in approval.meaning
    assert approval.created_at.utcoffset() is not None
    assert approval.bound_digest == approvals.bound_digest(db, candidate_id=candidate.candidate_id)


def test_whoever_asked_for_the_run_cannot_sign(db: Connection) -> None:
    requester = factories.user(db, "approver", "operator")
    candidate = factories.gated_candidate(db, factories.line(db), requested_by=requester)
    with pytest.raises(NotDistinct, match="asked for this run"):
        _sign(db, candidate.candidate_id, requester)


@pytest.mark.parametrize(("share", "allowed"), [(0.2, True), (0.21, False), (1.0, False)])
def test_whoever_submitted_much_of_the_new_data_cannot_sign(db: Connection, share: float, allowed: bool) -> None:
    submitter = factories.user(db, "approver", "submitter")
    candidate = factories.gated_candidate(db, factories.line(db), submitter_shares={submitter.name: share})
    if allowed:
        _sign(db, candidate.candidate_id, submitter)
    else:
        with pytest.raises(NotDistinct, match="submitted"):
            _sign(db, candidate.candidate_id, submitter)


def test_the_same_person_does_not_count_twice(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db))
    approver = factories.user(db, "approver")
    _sign(db, candidate.candidate_id, approver)
    with pytest.raises(AlreadySigned):
        _sign(db, candidate.candidate_id, approver)
    assert len(approvals.standing(db, candidate.candidate_id)) == 1  # and the transaction goes on


def test_only_approvers_sign_and_they_say_why(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db))
    with pytest.raises(Forbidden):
        _sign(db, candidate.candidate_id, factories.user(db, "operator", "reviewer", "submitter", "auditor"))
    approver = factories.user(db, "approver")
    with pytest.raises(Invalid, match="reason"):
        _sign(db, candidate.candidate_id, approver, reason=" ")
    with pytest.raises(Invalid, match="approve or reject"):
        _sign(db, candidate.candidate_id, approver, decision="abstain")


@pytest.mark.parametrize("verdict", ["fail", "insufficient"])
def test_a_candidate_that_did_not_pass_takes_no_signature(db: Connection, verdict: str) -> None:
    line = factories.line(db)
    stopped = factories.gated_candidate(db, line, verdict=verdict)
    ungated = factories.candidate(db, line)
    for candidate in (stopped, ungated):
        with pytest.raises(GateNotPassed):
            _sign(db, candidate.candidate_id, factories.user(db, "approver"))


def test_one_rejection_ends_a_candidate(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db))
    _sign(db, candidate.candidate_id, factories.user(db, "approver"), decision="reject")
    assert candidates.get(db, candidate.candidate_id).state == "rejected"
    with pytest.raises(StateMoved):
        _sign(db, candidate.candidate_id, factories.user(db, "approver"))


def test_a_report_on_a_former_champion_takes_no_signature(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.gated_candidate(db, line)
    factories.champion(db, line)
    with pytest.raises(ChampionMoved):
        _sign(db, candidate.candidate_id, factories.user(db, "approver"))


@pytest.mark.parametrize("column", ["weights_digest", "metadata_digest"])
def test_signatures_are_void_when_the_candidate_changes(owner_db: Connection, column: str) -> None:
    candidate = factories.approved_candidate(owner_db, factories.line(owner_db))
    before = approvals.bound_digest(owner_db, candidate_id=candidate.candidate_id)
    owner_db.execute(
        sql.SQL("UPDATE candidates SET {} = %s WHERE candidate_id = %s").format(sql.Identifier(column)),
        (factories.blob(owner_db), candidate.candidate_id),
    )
    _assert_void(owner_db, candidate.candidate_id, before)


def test_signatures_are_void_when_the_data_changes(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    candidate = factories.approved_candidate(owner_db, line)
    before = approvals.bound_digest(owner_db, candidate_id=candidate.candidate_id)
    owner_db.execute(
        "UPDATE candidates SET dataset_version_id = %s WHERE candidate_id = %s",
        (factories.dataset_version(owner_db, line).dataset_version_id, candidate.candidate_id),
    )
    _assert_void(owner_db, candidate.candidate_id, before)


def test_signatures_are_void_when_gates_were_run_again_against_another_champion(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.approved_candidate(db, line)
    before = approvals.bound_digest(db, candidate_id=candidate.candidate_id)
    factories.champion(db, line)
    factories.gate_report(db, candidate)
    _assert_void(db, candidate.candidate_id, before)


def test_signatures_are_void_when_gates_were_run_again_under_another_protocol(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.approved_candidate(db, line)
    before = approvals.bound_digest(db, candidate_id=candidate.candidate_id)
    factories.new_protocol(db, line, title="Pneumonia, more strictly")
    factories.gate_report(db, candidate)
    _assert_void(db, candidate.candidate_id, before)


def test_people_sign_again_after_new_gates(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.gated_candidate(db, line)
    signers = [factories.user(db, "approver"), factories.user(db, "approver")]
    factories.signatures(db, candidate, signers)
    factories.new_protocol(db, line, title="Pneumonia, more strictly")
    factories.gate_report(db, candidate)
    factories.signatures(db, candidate, signers)
    assert len(approvals.standing(db, candidate.candidate_id)) == 2
    assert len(approvals.list_for_candidate(db, candidate.candidate_id)) == 4


def test_a_gate_report_about_something_else_is_not_recorded(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.gated_candidate(db, line)
    report = candidates.latest_report(db, candidate.candidate_id)
    assert report is not None
    values = {
        "champion_candidate_id": None,
        "dataset_version_id": report.dataset_version_id,
        "protocol_id": report.protocol_id,
        "verdict": "pass",
        "text": "",
        "sealed_test_use_id": report.sealed_test_use_id,
    }
    dearer = {**report.document["sealed_test"], "level": 0.5}
    for name, value in (
        *(("candidate_digest", "0" * 64), ("verdict", "fail"), ("champion_digest", "0" * 64)),
        ("sealed_test", dearer),
    ):
        document = {**report.document, name: value}
        with pytest.raises(EvidenceMismatch, match=name):
            candidates.record_gate_report(
                db,
                candidate_id=candidate.candidate_id,
                document=document,
                digest=factories.audit.digest_of(document),
                **values,
            )
    with pytest.raises(EvidenceMismatch, match="digest"):
        candidates.record_gate_report(
            db, candidate_id=candidate.candidate_id, document=report.document, digest="0" * 64, **values
        )


def _assert_void(db: Connection, candidate_id: int, before: str) -> None:
    assert approvals.bound_digest(db, candidate_id=candidate_id) != before
    assert approvals.standing(db, candidate_id) == []
    with pytest.raises(ApprovalVoid):
        approvals.check_enough(db, candidate_id=candidate_id, required=2)
