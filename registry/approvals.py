"""Signatures on candidates: who, when, in what meaning, and on exactly what (21 CFR Part 11 §11.50, §11.70).

A signature binds one digest over candidate, metadata, dataset version, gate report, protocol and the champion at gate
time. When any of them is another today, the digest is another and the signature no longer counts. Nobody signs for a
run they asked for, or for data of which they submitted more than the protocol's share; there is no bypass.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from registry import audit, candidates, datasets, lines, runs, signing
from registry.db import Connection, fetch_all, fetch_one, fetch_value
from registry.errors import (
    AlreadySigned,
    ApprovalMissing,
    ApprovalVoid,
    ChampionMoved,
    GateNotPassed,
    NotDistinct,
    StateMoved,
)
from registry.signing import Decision
from registry.users import User

MEANING: dict[Decision, str] = {
    "approve": "I have read the gate report and approve that this candidate becomes the champion.",
    "reject": "I have read the gate report and reject this candidate.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One signature, for or against."""

    approval_id: int
    candidate_id: int
    gate_report_id: int
    approver_id: int
    printed_name: str
    decision: str
    meaning: str
    reason: str
    bound_digest: str
    created_at: datetime


def bound_digest(conn: Connection, *, candidate_id: int) -> str:
    """Digest of all that a signature on this candidate stands for today. Raises GateNotPassed without a report."""
    candidate = candidates.get(conn, candidate_id)
    report = candidates.latest_report(conn, candidate_id)
    if report is None:
        raise GateNotPassed(f"candidate {candidate_id} has no gate report; there is nothing to sign")
    champion = None
    if report.champion_candidate_id is not None:
        champion = candidates.get(conn, report.champion_candidate_id).weights_digest
    return audit.digest_of(
        {
            "candidate": candidate.weights_digest,
            "metadata": candidate.metadata_digest,
            "dataset_version": datasets.get(conn, candidate.dataset_version_id).digest,
            "gate_report": report.digest,
            "protocol": lines.protocol(conn, report.protocol_id).digest,
            "champion": champion,
        }
    )


def sign(conn: Connection, *, candidate_id: int, approver: User, decision: str, reason: str) -> Approval:
    """Sign for or against a candidate whose gates passed; a rejection ends the candidate.

    Raises Forbidden, GateNotPassed, StateMoved, ChampionMoved (the report compares with a former champion),
    NotDistinct, AlreadySigned, Invalid.
    """
    given = signing.check_given(approver=approver, decision=decision, reason=reason)
    candidate = candidates.lock(conn, candidate_id)  # so that nobody else signs it between the check and the signature
    report = check_signable(conn, candidate, approver=approver)
    approval = fetch_one(
        conn,
        Approval,
        "INSERT INTO approvals (candidate_id, gate_report_id, approver_id, printed_name, decision, meaning, reason,"
        " bound_digest) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
        (
            candidate_id,
            report.gate_report_id,
            approver.user_id,
            approver.printed_name,
            given,
            MEANING[given],
            reason.strip(),
            bound_digest(conn, candidate_id=candidate_id),
        ),
    )
    assert approval is not None
    if decision == "reject":
        candidates.set_state(conn, candidate, "rejected")
    audit.record(
        conn,
        actor=approver.name,
        action=f"candidate:{decision}",
        subject=f"candidate/{candidate_id}",
        details={
            "approval": approval.approval_id,
            "bound_digest": approval.bound_digest,
            "reason": approval.reason,
        },
        row=f"approvals/{approval.approval_id}",
    )
    return approval


def check_signable(conn: Connection, candidate: candidates.Candidate, *, approver: User) -> candidates.GateReport:
    """Return the gate report that this person may sign on a candidate.

    Raises Forbidden, GateNotPassed, StateMoved, ChampionMoved, NotDistinct, AlreadySigned.
    """
    approver.require("approver")
    report = candidates.latest_report(conn, candidate.candidate_id)
    if candidate.state in {"trained", "gates_failed"} or report is None or report.verdict != "pass":
        raise GateNotPassed(f"candidate {candidate.number} has not passed its gates; there is nothing to sign")
    if candidate.state != "gates_passed":
        raise StateMoved(f"candidate {candidate.number} is {candidate.state}; it takes no more signatures")
    current = fetch_value(
        conn, "SELECT candidate_id FROM promotions WHERE line_id = %s AND ended_at IS NULL", (candidate.line_id,)
    )
    if report.champion_candidate_id != current:
        raise ChampionMoved(f"candidate {candidate.number} was compared with a former champion; start a new run")
    _check_distinct(conn, candidate, approver)
    given = list_for_candidate(conn, candidate.candidate_id)
    if (approver.user_id, report.gate_report_id) in {(one.approver_id, one.gate_report_id) for one in given}:
        raise AlreadySigned(f"{approver.printed_name} has signed already, on this gate report")
    return report


def list_for_candidate(conn: Connection, candidate_id: int) -> list[Approval]:
    """Every signature ever given on a candidate, oldest first, void ones too."""
    return fetch_all(
        conn, Approval, "SELECT * FROM approvals WHERE candidate_id = %s ORDER BY approval_id", (candidate_id,)
    )


def standing(conn: Connection, candidate_id: int) -> list[Approval]:
    """Signatures for a candidate that count today: bound to the digest as it is now. Empty without a gate report."""
    if candidates.latest_report(conn, candidate_id) is None:
        return []
    return fetch_all(
        conn,
        Approval,
        "SELECT * FROM approvals WHERE candidate_id = %s AND decision = 'approve' AND bound_digest = %s"
        " ORDER BY approval_id",
        (candidate_id, bound_digest(conn, candidate_id=candidate_id)),
    )


def check_enough(conn: Connection, *, candidate_id: int, required: int) -> str:
    """Return the digest that `required` distinct people have signed. Raises ApprovalVoid, ApprovalMissing."""
    people = {approval.approver_id for approval in standing(conn, candidate_id)}
    if len(people) >= required:
        return bound_digest(conn, candidate_id=candidate_id)
    given = {item.approver_id for item in list_for_candidate(conn, candidate_id) if item.decision == "approve"}
    if len(given) >= required:
        raise ApprovalVoid(
            "what was signed has changed since (candidate, data, gate report, protocol or champion);"
            " the new state needs signatures of its own"
        )
    raise ApprovalMissing(
        f"{len(people)} of {required} approvals; {required - len(people)} more people have to sign",
        given=len(people),
        required=required,
    )


def _check_distinct(conn: Connection, candidate: candidates.Candidate, approver: User) -> None:
    if runs.get(conn, candidate.run_id).requested_by == approver.user_id:
        raise NotDistinct(f"{approver.printed_name} asked for this run; somebody else has to sign")
    allowed = lines.current_protocol(conn, candidate.line_id).document["approvals"]["maximum_submitter_share"]
    share = datasets.get(conn, candidate.dataset_version_id).submitter_shares.get(approver.name, 0.0)
    if share > allowed:
        raise NotDistinct(
            f"{approver.printed_name} submitted {share:.0%} of the new labels (at most {allowed:.0%} may); "
            "somebody else has to sign"
        )
