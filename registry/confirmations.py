"""Confirmations: what somebody says a case turned out to be, on what evidence, and whether a model had been seen first.

Append-only. A correction is a new row naming the one it supersedes: by whoever sent that one, or by a reviewer. Ids
grow in the order of commits, so "every confirmation up to N" is a settled set once N can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_one, fetch_value
from registry.errors import AlreadySuperseded, Forbidden, FutureDate, Invalid, NotFound, UnknownFinding, WrongLine
from registry.users import User

Evidence = Literal["report_text", "single_read", "consensus", "follow_up", "pathology"]
AiExposure = Literal["blind", "aided", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """One confirmation; `submitter` is the name of the user who sent it, `superseded_by` the id that replaced it."""

    confirmation_id: int
    case_id: int
    line_id: int
    finding: str
    evidence: str
    ai_exposure: str
    reader: str
    confirmed_at: datetime
    submitted_by: int
    submitter: str
    supersedes: int | None
    superseded_by: int | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingConfirmation:
    """A confirmation nobody has superseded, with what the science needs of its case."""

    confirmation_id: int
    finding: str
    evidence: str
    ai_exposure: str
    reader: str
    submitter: str
    case_id: int
    image_digest: str
    patient: str | None
    site: str
    scanner: str | None
    sex: str | None
    age_band: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    line_id: int
    classes: list[str]


def confirm(
    conn: Connection,
    *,
    case_id: int,
    finding: str,
    evidence: str,
    ai_exposure: str,
    reader: str,
    confirmed_at: datetime | None,
    supersedes: int | None,
    actor: User,
) -> Confirmation:
    """Add a confirmation; `confirmed_at` None means now, by the database's clock.

    Raises NotFound, UnknownFinding, FutureDate, WrongLine (supersedes belongs to another case), AlreadySuperseded,
    Forbidden (supersedes somebody else's, and not a reviewer), Invalid.
    """
    asked = fetch_one(
        conn,
        _Asked,
        "SELECT line_id, ARRAY(SELECT jsonb_array_elements_text(document -> 'classes')) AS classes"
        " FROM cases JOIN protocols USING (line_id) WHERE case_id = %s ORDER BY version DESC LIMIT 1",
        (case_id,),
    )
    if asked is None:
        raise NotFound(f"there is no case {case_id}")
    if finding not in asked.classes:
        raise UnknownFinding(f"{finding!r} is not a finding of this line; it knows {', '.join(asked.classes)}")
    for name, value, known in (
        ("evidence", evidence, get_args(Evidence)),
        ("ai_exposure", ai_exposure, get_args(AiExposure)),
    ):
        if value not in known:
            raise Invalid(f"{name} {value!r} is unknown; it is one of {', '.join(known)}")
    if supersedes is not None:
        _check_supersedes(conn, supersedes, case_id=case_id, actor=actor)
    audit.take_turn(conn)
    with constraint_means(
        conn,
        confirmations_superseded_once=AlreadySuperseded(f"confirmation {supersedes} has been superseded already"),
        confirmations_not_from_the_future=FutureDate("confirmed_at lies in the future; check the clock and time zone"),
    ):
        confirmation_id = fetch_value(
            conn,
            "INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at,"
            " submitted_by, supersedes) VALUES (%s, %s, %s, %s, %s, %s, coalesce(%s, now()), %s, %s)"
            " RETURNING confirmation_id",
            (
                case_id,
                asked.line_id,
                finding,
                evidence,
                ai_exposure,
                reader,
                confirmed_at,
                actor.user_id,
                supersedes,
            ),
        )
    audit.record(
        conn,
        actor=actor.name,
        action="confirmation:add",
        subject=f"case/{case_id}",
        details={"confirmation": confirmation_id, "finding": finding, "evidence": evidence, "supersedes": supersedes},
        row=f"confirmations/{confirmation_id}",
        replaces=None if supersedes is None else f"confirmations/{supersedes}",
    )
    return get_confirmation(conn, confirmation_id)


def get_confirmation(conn: Connection, confirmation_id: int) -> Confirmation:
    """Return a confirmation by id. Raises NotFound."""
    found = fetch_one(
        conn,
        Confirmation,
        "SELECT this.*, users.name AS submitter, later.confirmation_id AS superseded_by FROM confirmations this"
        " JOIN users ON user_id = this.submitted_by LEFT JOIN confirmations later ON later.supersedes ="
        " this.confirmation_id WHERE this.confirmation_id = %s",
        (confirmation_id,),
    )
    if found is None:
        raise NotFound(f"there is no confirmation {confirmation_id}")
    return found


def list_for_case(conn: Connection, case_id: int) -> list[Confirmation]:
    """Every confirmation of a case, oldest first, superseded ones too."""
    return fetch_all(
        conn,
        Confirmation,
        "SELECT this.*, users.name AS submitter, later.confirmation_id AS superseded_by FROM confirmations this"
        " JOIN users ON user_id = this.submitted_by LEFT JOIN confirmations later ON later.supersedes ="
        " this.confirmation_id WHERE this.case_id = %s ORDER BY this.confirmation_id",
        (case_id,),
    )


def standing_for_line(conn: Connection, *, line_id: int, up_to: int) -> list[StandingConfirmation]:
    """Confirmations up to id `up_to` (inclusive) that none up to there supersedes, with their cases, by case."""
    return fetch_all(
        conn,
        StandingConfirmation,
        "SELECT cases.*, this.*, users.name AS submitter FROM confirmations this JOIN cases USING (case_id)"
        " JOIN users ON user_id = this.submitted_by WHERE this.line_id = %(line_id)s"
        " AND this.confirmation_id <= %(up_to)s AND NOT EXISTS (SELECT FROM confirmations later"
        " WHERE later.supersedes = this.confirmation_id AND later.confirmation_id <= %(up_to)s)"
        " ORDER BY this.case_id, this.confirmation_id",
        {"line_id": line_id, "up_to": up_to},
    )


def last_id(conn: Connection, line_id: int) -> int:
    """Id of the newest confirmation of a line, 0 if it has none."""
    value = fetch_value(conn, "SELECT max(confirmation_id) FROM confirmations WHERE line_id = %s", (line_id,))
    return int(value or 0)


def count_new(conn: Connection, *, line_id: int, after_confirmation_id: int) -> int:
    """Number of confirmations of a line with an id above `after_confirmation_id`."""
    value = fetch_value(
        conn,
        "SELECT count(*) FROM confirmations WHERE line_id = %s AND confirmation_id > %s",
        (line_id, after_confirmation_id),
    )
    return int(value)


def _check_supersedes(conn: Connection, supersedes: int, *, case_id: int, actor: User) -> None:
    earlier = get_confirmation(conn, supersedes)
    if earlier.case_id != case_id:
        raise WrongLine(f"confirmation {supersedes} is of case {earlier.case_id}, not of case {case_id}")
    if earlier.superseded_by is not None:
        raise AlreadySuperseded(
            f"confirmation {supersedes} has been superseded by {earlier.superseded_by}; supersede that one",
            superseded_by=earlier.superseded_by,
        )
    # Otherwise one poisoned account could quietly replace what everybody else said.
    if earlier.submitted_by != actor.user_id and "reviewer" not in actor.roles:
        raise Forbidden(f"confirmation {supersedes} was sent by somebody else; a reviewer may supersede it")
