"""Confirmations: what somebody says a case turned out to be, on what evidence, and whether a model had been seen first.

Append-only. A correction is a new row naming the one it supersedes: by whoever sent that one, or by a reviewer. Ids
grow in the order of commits, so "every confirmation up to N" is a settled set once N can be seen.

One and many go the same way, in the same few statements: all are judged, then those that are right are inserted
together, each with an audit event of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, LiteralString, get_args

from psycopg.types.json import Jsonb

from registry import audit, rows
from registry.db import Connection, fetch_all, fetch_value
from registry.errors import (
    AlreadySuperseded,
    Forbidden,
    FutureDate,
    Invalid,
    NotFound,
    RegistryError,
    UnknownFinding,
    WrongLine,
)
from registry.users import User

Evidence = Literal["report_text", "single_read", "consensus", "follow_up", "pathology"]
AiExposure = Literal["blind", "aided", "unknown"]

_CLOCKS_DIFFER_BY = timedelta(days=1)  # as confirmations_not_from_the_future allows
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What somebody wants confirmed of a case; `confirmed_at` None means now, by the database's clock."""

    case_id: int
    finding: str
    evidence: str
    ai_exposure: str
    reader: str
    confirmed_at: datetime | None
    supersedes: int | None


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
class _Question:
    """What a case asks, and the time of this transaction."""

    case_id: int
    line_id: int
    classes: list[str]
    now: datetime


def confirm(conn: Connection, diagnosis: Diagnosis, *, actor: User) -> Confirmation:
    """Add a confirmation.

    Raises NotFound, UnknownFinding, FutureDate, WrongLine (supersedes belongs to another case), AlreadySuperseded,
    Forbidden (supersedes somebody else's, and not a reviewer), Invalid.
    """
    (result,) = confirm_many(conn, [diagnosis], actor=actor)
    if isinstance(result, RegistryError):
        raise result
    return result


def confirm_many(
    conn: Connection, diagnoses: Sequence[Diagnosis], *, actor: User, line_id: int | None = None
) -> list[Confirmation | RegistryError]:
    """Add those that are right; return what became of each, in their order: a confirmation, or why there is none.

    With `line_id`, cases of other lines are refused (WrongLine).
    """
    questions = _questions_of(conn, {diagnosis.case_id for diagnosis in diagnoses})
    standing = _hold(conn, {diagnosis.supersedes for diagnosis in diagnoses if diagnosis.supersedes is not None})
    refusals: list[RegistryError | None] = []
    superseded: set[int] = set()
    for diagnosis in diagnoses:
        refusal = _judge(diagnosis, questions.get(diagnosis.case_id), line_id=line_id)
        if refusal is None and diagnosis.supersedes is not None:
            refusal = _judge_supersedes(
                diagnosis, standing.get(diagnosis.supersedes), superseded=superseded, actor=actor
            )
            superseded.update([diagnosis.supersedes] if refusal is None else [])
        refusals.append(refusal)
    right = [diagnosis for diagnosis, refusal in zip(diagnoses, refusals, strict=True) if refusal is None]
    made = iter(_insert(conn, right, questions=questions, actor=actor) if right else ())
    return [next(made) if refusal is None else refusal for refusal in refusals]


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
    """Confirmations up to id `up_to` (inclusive) that none up to there supersedes, with their cases, by case.

    Without those of erased cases: there is nothing left to learn from.
    """
    return fetch_all(
        conn,
        StandingConfirmation,
        "SELECT cases.*, this.*, users.name AS submitter FROM confirmations this JOIN cases USING (case_id)"
        " JOIN users ON user_id = this.submitted_by WHERE this.line_id = %(line_id)s"
        " AND this.confirmation_id <= %(up_to)s AND NOT EXISTS (SELECT FROM confirmations later"
        " WHERE later.supersedes = this.confirmation_id AND later.confirmation_id <= %(up_to)s)"
        " AND erasure_id IS NULL"
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


def _questions_of(conn: Connection, case_ids: Collection[int]) -> dict[int, _Question]:
    found = fetch_all(
        conn,
        _Question,
        "SELECT case_id, line_id, now() AS now,"
        " ARRAY(SELECT jsonb_array_elements_text(document -> 'classes')) AS classes"
        " FROM cases CROSS JOIN LATERAL (SELECT document FROM protocols WHERE protocols.line_id = cases.line_id"
        " ORDER BY version DESC LIMIT 1) newest WHERE case_id = ANY(%s::bigint[])",
        ([case_id for case_id in case_ids if 0 < case_id <= _LARGEST_ID],),
    )
    return {question.case_id: question for question in found}


def _hold(conn: Connection, confirmation_ids: Collection[int]) -> dict[int, Confirmation]:
    if not confirmation_ids:
        return {}
    audit.take_turn(conn)  # so that nobody else supersedes them after this look
    found = fetch_all(
        conn,
        Confirmation,
        "SELECT this.*, users.name AS submitter, later.confirmation_id AS superseded_by FROM confirmations this"
        " JOIN users ON user_id = this.submitted_by LEFT JOIN confirmations later ON later.supersedes ="
        " this.confirmation_id WHERE this.confirmation_id = ANY(%s::bigint[])",
        ([confirmation_id for confirmation_id in confirmation_ids if 0 < confirmation_id <= _LARGEST_ID],),
    )
    return {confirmation.confirmation_id: confirmation for confirmation in found}


def _judge(diagnosis: Diagnosis, question: _Question | None, *, line_id: int | None) -> RegistryError | None:
    if question is None:
        return NotFound(f"there is no case {diagnosis.case_id}")
    if line_id not in {None, question.line_id}:
        return WrongLine(f"case {diagnosis.case_id} is of another line")
    if diagnosis.finding not in question.classes:
        known = ", ".join(question.classes)
        return UnknownFinding(f"{diagnosis.finding!r} is not a finding of this line; it knows {known}")
    for name, value, words in (
        ("evidence", diagnosis.evidence, get_args(Evidence)),
        ("ai_exposure", diagnosis.ai_exposure, get_args(AiExposure)),
    ):
        if value not in words:
            return Invalid(f"{name} {value!r} is unknown; it is one of {', '.join(words)}")
    if diagnosis.confirmed_at is not None and diagnosis.confirmed_at > question.now + _CLOCKS_DIFFER_BY:
        return FutureDate("confirmed_at lies in the future; check the clock and time zone")
    return None


def _judge_supersedes(
    diagnosis: Diagnosis, earlier: Confirmation | None, *, superseded: Collection[int], actor: User
) -> RegistryError | None:
    number = diagnosis.supersedes
    if earlier is None:
        return NotFound(f"there is no confirmation {number}")
    if earlier.case_id != diagnosis.case_id:
        return WrongLine(f"confirmation {number} is of case {earlier.case_id}, not of case {diagnosis.case_id}")
    if earlier.superseded_by is not None:
        return AlreadySuperseded(
            f"confirmation {number} has been superseded by {earlier.superseded_by}; supersede that one",
            superseded_by=earlier.superseded_by,
        )
    if number in superseded:
        return AlreadySuperseded(f"confirmation {number} is superseded by another row of this upload already")
    # Otherwise one poisoned account could quietly replace what everybody else said.
    if earlier.submitted_by != actor.user_id and "reviewer" not in actor.roles:
        return Forbidden(f"confirmation {number} was sent by somebody else; a reviewer may supersede it")
    return None


_BOUND = rows.BOUND["confirmations"]

# Rows and audit events in one statement, which begins by taking the turn to write the trail: an id is given only to a
# row that is committed next. The events say what `audit.record` would; `bound` is the row that one vouches for.
_INSERT: LiteralString = f"""
WITH turn AS MATERIALIZED ({audit.TAKE_TURN}),
made AS (
    INSERT INTO confirmations
        (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, supersedes, submitted_by)
    SELECT case_id, line_id, finding, evidence, ai_exposure, reader, coalesce(confirmed_at, now()), supersedes,
        %(user_id)s
    FROM turn, jsonb_to_recordset(%(asked)s) AS asked (place integer, case_id bigint, line_id bigint, finding text,
        evidence text, ai_exposure text, reader text, confirmed_at timestamptz, supersedes bigint)
    ORDER BY place
    RETURNING *
),
events AS (
    INSERT INTO audit_events (actor, action, subject, details)
    SELECT %(name)s, 'confirmation:add', 'case/' || made.case_id, jsonb_build_object(
        'confirmation', made.confirmation_id, 'finding', made.finding, 'evidence', made.evidence,
        'supersedes', made.supersedes, 'row', 'confirmations/' || made.confirmation_id, 'new_digest', {_BOUND.digest}
    ) || coalesce((
        SELECT jsonb_build_object('old_digest', {_BOUND.digest}) FROM confirmations bound
        WHERE confirmation_id = made.supersedes
    ), '{{}}')
    FROM made CROSS JOIN LATERAL (SELECT made.*) bound
    ORDER BY made.confirmation_id
)
SELECT *, %(name)s::text AS submitter, NULL::bigint AS superseded_by FROM made ORDER BY confirmation_id
"""  # noqa: S608 - of our own constants


def _insert(
    conn: Connection, diagnoses: Sequence[Diagnosis], *, questions: Mapping[int, _Question], actor: User
) -> list[Confirmation]:
    asked = [
        {
            "place": place,
            "case_id": diagnosis.case_id,
            "line_id": questions[diagnosis.case_id].line_id,
            "finding": diagnosis.finding,
            "evidence": diagnosis.evidence,
            "ai_exposure": diagnosis.ai_exposure,
            "reader": diagnosis.reader,
            "confirmed_at": None if diagnosis.confirmed_at is None else diagnosis.confirmed_at.isoformat(),
            "supersedes": diagnosis.supersedes,
        }
        for place, diagnosis in enumerate(diagnoses)
    ]
    return fetch_all(conn, Confirmation, _INSERT, {"user_id": actor.user_id, "name": actor.name, "asked": Jsonb(asked)})
