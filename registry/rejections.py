"""What readers reject of what a model said: append-only, and no diagnosis.

Whoever was shown a prediction accepts it, says something else, or rejects it without knowing what it is. The first two
are confirmations. A rejection is kept beside them: the case goes on waiting for an answer, and no model learns from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_one, fetch_value
from registry.errors import AlreadyExists, Invalid, NotFound
from registry.users import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """One reader's rejection of one prediction; `decision` is what the model had said."""

    rejection_id: int
    prediction_id: int
    case_id: int
    user_id: int
    printed_name: str
    decision: str
    reason: str | None
    created_at: datetime


def reject(conn: Connection, *, prediction_id: int, actor: User, reason: str | None = None) -> Rejection:
    """Reject a prediction that the actor was shown. Raises NotFound, Invalid (it was not), AlreadyExists, Forbidden."""
    actor.require("submitter", "reviewer")
    row = conn.execute(
        "SELECT case_id, shown AND requested_by = %s FROM predictions WHERE prediction_id = %s",
        (actor.user_id, prediction_id),
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no prediction {prediction_id}")
    case_id, was_shown = row
    if case_id is None or not was_shown:
        raise Invalid(f"{actor.name} was not shown prediction {prediction_id} of a case; there is nothing to reject")
    twice = AlreadyExists(f"{actor.name} has rejected prediction {prediction_id} already")
    with constraint_means(conn, rejections_one_per_person=twice):
        made = conn.execute(
            "INSERT INTO rejections (prediction_id, case_id, user_id, reason) VALUES (%s, %s, %s, %s)"
            " RETURNING rejection_id",
            (prediction_id, case_id, actor.user_id, (reason or "").strip() or None),
        ).fetchone()
    assert made is not None
    audit.record(
        conn,
        actor=actor.name,
        action="prediction:reject",
        subject=f"case/{case_id}",
        details={"prediction": prediction_id},
        row=f"rejections/{made[0]}",
    )
    found = fetch_one(conn, Rejection, _REJECTIONS + " WHERE rejection_id = %s", made)
    assert found is not None
    return found


def of_case(conn: Connection, case_id: int) -> list[Rejection]:
    """Return what was rejected about a case, oldest first."""
    return fetch_all(conn, Rejection, _REJECTIONS + " WHERE rejections.case_id = %s ORDER BY rejection_id", (case_id,))


def count_of_candidate(conn: Connection, candidate_id: int) -> int:
    """Count what readers have rejected of what a model said."""
    value = fetch_value(
        conn,
        "SELECT count(*) FROM rejections JOIN predictions USING (prediction_id) WHERE candidate_id = %s",
        (candidate_id,),
    )
    return int(value)


_REJECTIONS: LiteralString = (
    "SELECT rejections.*, printed_name, decision FROM rejections JOIN users USING (user_id)"
    " JOIN predictions USING (prediction_id)"
)
