"""Amendments: the one way to replace a line's protocol, and the signatures that it takes.

Invariant: a protocol comes into force with the last signature that the protocol before it asks for, in one transaction,
and only in the place of the very protocol that it was proposed against. A signature binds the digests of both. Nobody
signs what they proposed; one rejection ends an amendment. The schema refuses every other way (`check_amendment`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

from psycopg.types.json import Jsonb

from registry import audit, findings, lines, signing
from registry.db import Connection, fetch_all, fetch_one, fetch_value, lock_line
from registry.errors import (
    AlreadySigned,
    EvidenceMismatch,
    Invalid,
    NotDistinct,
    NotFound,
    ProtocolMoved,
    StateMoved,
    WrongLine,
)
from registry.signing import Decision
from registry.users import User

State = Literal["proposed", "adopted", "rejected", "outdated"]
MEANING: dict[Decision, str] = {
    "approve": "I have read what this amendment changes and approve that it takes the place of the protocol in force.",
    "reject": "I have read what this amendment changes and reject it.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """A protocol that somebody proposed in the place of another; `changes` says clause by clause what is another.

    `outdated`: another protocol is in force than the one it was proposed against; nobody can sign it any more.
    """

    amendment_id: int
    line_id: int
    protocol_id: int
    document: dict[str, Any]
    digest: str
    changes: list[str]
    reason: str
    proposed_by: int
    proposer: str
    created_at: datetime
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature on an amendment, for or against."""

    amendment_approval_id: int
    amendment_id: int
    approver_id: int
    printed_name: str
    decision: str
    meaning: str
    reason: str
    bound_digest: str
    created_at: datetime


def propose(
    conn: Connection,
    *,
    line_id: int,
    protocol_id: int,
    document: Mapping[str, Any],
    digest: str,
    changes: Sequence[str],
    reason: str,
    actor: User,
) -> Amendment:
    """Propose a protocol in the place of `protocol_id`; nothing changes until enough others have signed.

    Raises Forbidden, Invalid (without a reason or a change, where images would become volumes, or with other findings
    than those of a multilabel line), WrongLine, EvidenceMismatch if `digest` is not the document's, ProtocolMoved where
    another protocol is in force, NotFound.
    """
    actor.require("operator", "reviewer")
    if not reason.strip():
        raise Invalid("say why the protocol has to change, in a sentence that an auditor will understand")
    line, before = lines.line_by_id(conn, line_id), lines.current_protocol(conn, line_id)
    if document.get("line") != line.name:
        raise WrongLine(f"the protocol is for line {document.get('line')!r}, not {line.name!r}")
    if audit.digest_of(document) != digest:
        raise EvidenceMismatch("the digest given is not the digest of the protocol's document")
    if before.protocol_id != protocol_id:
        raise ProtocolMoved(f"version {before.version} of the protocol came into force meanwhile; compare with it")
    if before.digest == digest or not changes:
        raise Invalid(f"this is the protocol that is in force already (version {before.version}); nothing would change")
    _refuse_other_findings(before.document, document)
    if _reads_volumes(document) != _reads_volumes(before.document):
        raise Invalid(
            "input.depth: a line of images cannot become one of volumes, nor the other way round, since all its cases "
            "are of one kind; create a line of its own for the others"
        )
    amendment_id = fetch_value(
        conn,
        "INSERT INTO amendments (line_id, protocol_id, document, digest, changes, reason, proposed_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING amendment_id",
        (line_id, protocol_id, Jsonb(dict(document)), digest, Jsonb(list(changes)), reason.strip(), actor.user_id),
    )
    audit.record(
        conn,
        actor=actor.name,
        action="amendment:propose",
        subject=f"line/{line_id}",
        details={"amendment": amendment_id, "before": before.digest, "after": digest, "reason": reason.strip()},
        row=f"amendments/{amendment_id}",
    )
    return get(conn, amendment_id)


def sign(conn: Connection, *, amendment_id: int, approver: User, decision: str, reason: str) -> Signature:
    """Sign for or against an amendment; the last signature that is needed puts it in force, a rejection ends it.

    Raises Forbidden, Invalid, StateMoved (adopted or rejected), ProtocolMoved (another protocol is in force than the
    one it was proposed against), NotDistinct, AlreadySigned, NotFound.
    """
    given = signing.check_given(approver=approver, decision=decision, reason=reason)
    lock_line(conn, get(conn, amendment_id).line_id)  # nobody is promoted, and no other signature counted, meanwhile
    amendment = get(conn, amendment_id)
    check_signable(conn, amendment, approver=approver)
    before = lines.protocol(conn, amendment.protocol_id)
    # Before the new protocol is followed by the discordances: whoever confirms takes the trail first, and then those.
    audit.take_turn(conn)
    signature = fetch_one(
        conn,
        Signature,
        "INSERT INTO amendment_approvals (amendment_id, approver_id, printed_name, decision, meaning, reason,"
        " bound_digest) VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING *",
        (
            amendment_id,
            approver.user_id,
            approver.printed_name,
            given,
            MEANING[given],
            reason.strip(),
            bound_digest(before=before.digest, after=amendment.digest),
        ),
    )
    assert signature is not None
    audit.record(
        conn,
        actor=approver.name,
        action=f"amendment:{decision}",
        subject=f"line/{amendment.line_id}",
        details={"amendment": amendment_id, "bound_digest": signature.bound_digest, "reason": signature.reason},
        row=f"amendment_approvals/{signature.amendment_approval_id}",
    )
    if given == "approve" and len(signatures(conn, amendment_id)) >= before.document["approvals"]["required"]:
        _put_in_force(conn, amendment, before=before, actor=approver)
    return signature


def check_signable(conn: Connection, amendment: Amendment, *, approver: User) -> None:
    """Check that this person may sign an amendment.

    Raises Forbidden, ProtocolMoved, StateMoved, NotDistinct, AlreadySigned.
    """
    approver.require("approver")
    number = amendment.amendment_id
    if amendment.state == "outdated":
        raise ProtocolMoved(f"amendment {number} was proposed to a protocol that is not in force; propose it anew")
    if amendment.state != "proposed":
        raise StateMoved(f"amendment {number} is {amendment.state}; it takes no more signatures")
    if amendment.proposed_by == approver.user_id:
        raise NotDistinct(f"{approver.printed_name} proposed this amendment; somebody else has to sign")
    if approver.user_id in {one.approver_id for one in signatures(conn, number)}:
        raise AlreadySigned(f"{approver.printed_name} has signed already, on amendment {number}")


def bound_digest(*, before: str, after: str) -> str:
    """Digest of all that a signature on an amendment stands for: the protocol before it, and the one after."""
    return audit.digest_of({"before": before, "after": after})


def get(conn: Connection, amendment_id: int) -> Amendment:
    """Return an amendment by id. Raises NotFound."""
    found = fetch_one(conn, Amendment, _AMENDMENTS + " WHERE amendment_id = %s", (amendment_id,))
    if found is None:
        raise NotFound(f"there is no amendment {amendment_id}")
    return found


def list_for_line(conn: Connection, line_id: int) -> list[Amendment]:
    """Every amendment that was ever proposed to a line, newest first."""
    return fetch_all(conn, Amendment, _AMENDMENTS + " WHERE line_id = %s ORDER BY amendment_id DESC", (line_id,))


def signatures(conn: Connection, amendment_id: int) -> list[Signature]:
    """Every signature on an amendment, oldest first."""
    return fetch_all(
        conn,
        Signature,
        "SELECT * FROM amendment_approvals WHERE amendment_id = %s ORDER BY amendment_approval_id",
        (amendment_id,),
    )


def _refuse_other_findings(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Whoever said what is present was not asked about a finding that came later, and did not say it is absent."""
    several = findings.are_several(before) or findings.are_several(after)
    if several and any(before.get(clause) != after.get(clause) for clause in ("task", "classes")):
        raise Invalid(
            "where findings do not exclude each other, `task` and `classes` stay as they are: what was said before "
            "would answer a question that nobody asked; open another line for them"
        )


def _put_in_force(
    conn: Connection, amendment: Amendment, *, before: lines.StoredProtocol, actor: User
) -> lines.StoredProtocol:
    sys.audit("overread.fault", "amendment.protocol.before")
    protocol = fetch_one(
        conn,
        lines.StoredProtocol,
        "INSERT INTO protocols (line_id, version, document, digest, created_by, amendment_id)"
        " VALUES (%s, %s, %s, %s, %s, %s) RETURNING *",
        (
            amendment.line_id,
            before.version + 1,
            Jsonb(amendment.document),
            amendment.digest,
            amendment.proposed_by,
            amendment.amendment_id,
        ),
    )
    assert protocol is not None
    sys.audit("overread.fault", "amendment.protocol.after")
    audit.record(
        conn,
        actor=actor.name,
        action="protocol:amend",
        subject=f"line/{amendment.line_id}",
        details={"amendment": amendment.amendment_id, "version": protocol.version, "protocol": protocol.digest},
        row=f"protocols/{protocol.protocol_id}",
        replaces=f"protocols/{before.protocol_id}",
    )
    return protocol


def _reads_volumes(document: Mapping[str, Any]) -> bool:
    return "depth" in document.get("input", {})


_AMENDMENTS: LiteralString = (
    "SELECT amendments.*, users.name AS proposer, CASE"
    " WHEN EXISTS (SELECT FROM protocols WHERE protocols.amendment_id = amendments.amendment_id) THEN 'adopted'"
    " WHEN EXISTS (SELECT FROM amendment_approvals WHERE amendment_approvals.amendment_id = amendments.amendment_id"
    " AND decision = 'reject') THEN 'rejected'"
    " WHEN protocol_id <> (SELECT protocol_id FROM protocols newest WHERE newest.line_id = amendments.line_id"
    " ORDER BY version DESC LIMIT 1) THEN 'outdated' ELSE 'proposed' END AS state"
    " FROM amendments JOIN users ON user_id = proposed_by"
)
