"""What people say to each other about a candidate: append-only, in their own names, beside the signatures.

Invariant: who may not read the gate report yet reads and writes nothing here either, for what is said may hold what was
measured (`registry.disclosure`). A comment may ask one person to sign; it asks only who may.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import LiteralString

from registry import approvals, audit, candidates, disclosure, signing, users
from registry.candidates import Candidate
from registry.db import Connection, fetch_all, fetch_one
from registry.errors import Forbidden, Invalid
from registry.users import User

ASK = "Please read the gate report and sign."
"""What is said where somebody is asked without a word of one's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """What one person said; `asks` is the name of whom they ask to sign, `asked` that person's printed name."""

    comment_id: int
    candidate_id: int
    author_id: int
    printed_name: str
    text: str
    asks: str | None
    asked: str | None
    created_at: datetime


def add(conn: Connection, *, candidate_id: int, author: User, text: str, asks: str | None = None) -> Comment:
    """Say something about a candidate, or ask the user of this name to sign it; then `text` may be empty.

    Raises NotFound, Forbidden (no reviewer or approver; the report is not open to them), Invalid (nothing is said, or
    whom they ask may not sign: the message says why).
    """
    author.require("reviewer", "approver")
    candidate = candidates.get(conn, candidate_id)
    if not may_read(conn, candidate, reader=author):
        raise Forbidden(
            f"the report on candidate {candidate.number} is not open to {author.name} yet, nor is what is said of it"
        )
    asked = None if asks is None else users.by_name(conn, asks)
    check = partial(approvals.check_signable, conn, candidate)
    if asked is not None and (why := signing.why_not_asked(conn, check, asked)) is not None:
        raise Invalid(f"{asked.printed_name} cannot be asked to sign: {why}")
    said = text.strip() or (ASK if asked is not None else "")
    if not said or len(said) > 2000:
        raise Invalid("say something, in 2000 characters at most")
    row = conn.execute(
        "INSERT INTO comments (candidate_id, author_id, printed_name, text, asks_id) VALUES (%s, %s, %s, %s, %s)"
        " RETURNING comment_id",
        (candidate_id, author.user_id, author.printed_name, said, asked.user_id if asked is not None else None),
    ).fetchone()
    assert row is not None
    made = fetch_one(conn, Comment, _COMMENTS + " WHERE comment_id = %s", row)
    assert made is not None
    audit.record(
        conn,
        actor=author.name,
        action="candidate:ask" if asked is not None else "candidate:comment",
        subject=f"candidate/{candidate_id}",
        details={"asks": asked.name} if asked is not None else {},
        row=f"comments/{made.comment_id}",
    )
    return made


def may_read(conn: Connection, candidate: Candidate, *, reader: User) -> bool:
    """Say whether what is said about a candidate is open to somebody now; before there is a report, to everybody."""
    report = candidates.latest_report(conn, candidate.candidate_id)
    return report is None or disclosure.may_read(conn, candidate, report=report, reader=reader)


def list_for_candidate(conn: Connection, candidate_id: int) -> list[Comment]:
    """All that was said about a candidate, oldest first."""
    return fetch_all(conn, Comment, _COMMENTS + " WHERE candidate_id = %s ORDER BY comment_id", (candidate_id,))


def may_still_sign(conn: Connection, candidate: Candidate) -> list[User]:
    """Return the people who may sign this candidate as it is now and have not, by printed name."""
    return signing.who_may(conn, partial(approvals.check_signable, conn, candidate))


def asked_of(conn: Connection, *, user_id: int) -> set[int]:
    """Return the ids of the candidates that somebody was asked to sign."""
    rows = conn.execute("SELECT DISTINCT candidate_id FROM comments WHERE asks_id = %s", (user_id,)).fetchall()
    return {int(row[0]) for row in rows}


_COMMENTS: LiteralString = (
    "SELECT comments.*, users.name AS asks, users.printed_name AS asked FROM comments"
    " LEFT JOIN users ON users.user_id = asks_id"
)
