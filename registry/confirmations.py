"""Confirmations: what somebody says a case turned out to be, on what evidence, and whether a model had been seen first.

Append-only. A correction is a new row naming the one it supersedes: by whoever sent that one, or by a reviewer. Ids
grow in the order of commits, so "every confirmation up to N" is a settled set once N can be seen. Retractions and
adjudications (`registry.adjudications`) are rows here too: whatever changes what stands about a case is a row with a
greater id.

One and many go the same way, in the same few statements: all are judged, then those that are right are inserted
together, each with an audit event of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, LiteralString, get_args

from psycopg.types.json import Jsonb

from registry import audit, findings, rows
from registry.db import Connection, fetch_all, fetch_value, stream_all
from registry.errors import (
    AlreadySuperseded,
    Forbidden,
    FutureDate,
    Invalid,
    NotFound,
    RegistryError,
    WrongLine,
)
from registry.users import User

Evidence = Literal["report_text", "single_read", "consensus", "follow_up", "pathology"]
AiExposure = Literal["blind", "aided", "unknown"]
Kind = Literal["confirmation", "retraction", "adjudication"]

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
    reason: str | None = None
    """A note of the reader: what they saw, or why they corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row to add, judged already; see the table for what each kind has to have."""

    case_id: int
    line_id: int
    kind: Kind = "confirmation"
    finding: str | None
    evidence: str
    ai_exposure: str
    reader: str
    confirmed_at: datetime | None = None
    supersedes: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """One row; `submitter` is the name of the user who sent it, `superseded_by` the id that replaced it.

    `finding` is None in a retraction, and in an adjudication that finds the case cannot be answered.
    """

    confirmation_id: int
    case_id: int
    line_id: int
    kind: Kind
    finding: str | None
    evidence: str
    ai_exposure: str
    reader: str
    confirmed_at: datetime
    submitted_by: int
    submitter: str
    supersedes: int | None
    superseded_by: int | None
    reason: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingConfirmation:
    """A row nobody has superseded, with what the science needs of its case; `confirmed_on` is an ISO date in UTC."""

    confirmation_id: int
    kind: Kind
    finding: str | None
    evidence: str
    ai_exposure: str
    reader: str
    submitter: str
    confirmed_on: str
    reason: str | None
    case_id: int
    image_digest: str
    patient: str | None
    site: str
    scanner: str | None
    sex: str | None
    age_band: str | None
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a case asks, and the time of this transaction."""

    case_id: int
    line_id: int
    classes: list[str]
    several: bool
    """Whether the findings are each present or absent by themselves."""
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
    questions = questions_of(conn, {diagnosis.case_id for diagnosis in diagnoses})
    standing = hold(conn, {diagnosis.supersedes for diagnosis in diagnoses if diagnosis.supersedes is not None})
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
    right = [
        _entry(diagnosis, questions[diagnosis.case_id])
        for diagnosis, refusal in zip(diagnoses, refusals, strict=True)
        if refusal is None
    ]
    made = iter(insert(conn, right, actor=actor) if right else ())
    return [next(made) if refusal is None else refusal for refusal in refusals]


def insert(conn: Connection, entries: Sequence[Entry], *, actor: User) -> list[Confirmation]:
    """Add rows that were judged, each with its audit event; returns them in their order."""
    asked = [
        {
            "place": place,
            **{name: getattr(entry, name) for name in Entry.__slots__},
            "confirmed_at": None if entry.confirmed_at is None else entry.confirmed_at.isoformat(),
        }
        for place, entry in enumerate(entries)
    ]
    return fetch_all(conn, Confirmation, _INSERT, {"user_id": actor.user_id, "name": actor.name, "asked": Jsonb(asked)})


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


def standing_for_line(conn: Connection, *, line_id: int, up_to: int, after: int = 0) -> Iterator[StandingConfirmation]:
    """Stream the rows up to id `up_to` (inclusive) that none up to there supersedes, with their cases, by case.

    With `after`, all such rows of only those cases that have a row above `after` and up to `up_to`: whatever changed
    in between. Without those of erased cases: there is nothing left to learn from. Memory stays flat on both sides; the
    transaction has to stay open while it is read.
    """
    return stream_all(
        conn,
        StandingConfirmation,
        _STANDING_OF_CHANGED if after else _STANDING,
        {"line_id": line_id, "up_to": up_to, "after": after},
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


def questions_of(conn: Connection, case_ids: Collection[int]) -> dict[int, Question]:
    """What these cases ask, by id; those that do not exist are left out."""
    found = fetch_all(
        conn,
        Question,
        "SELECT case_id, line_id, now() AS now,"
        " ARRAY(SELECT jsonb_array_elements_text(document -> 'classes')) AS classes,"
        " coalesce(document ->> 'task', '') = 'multilabel' AS several"
        " FROM cases CROSS JOIN LATERAL (SELECT document FROM protocols WHERE protocols.line_id = cases.line_id"
        " ORDER BY version DESC LIMIT 1) newest WHERE case_id = ANY(%s::bigint[])",
        ([case_id for case_id in case_ids if 0 < case_id <= _LARGEST_ID],),
    )
    return {question.case_id: question for question in found}


def hold(conn: Connection, confirmation_ids: Collection[int]) -> dict[int, Confirmation]:
    """Rows by id; until this transaction ends nobody else supersedes them, or says anything at all."""
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


def refusal_to_replace(earlier: Confirmation, *, actor: User) -> RegistryError | None:
    """Say why this person may not put another row in the place of this one, None where they may."""
    number = earlier.confirmation_id
    if earlier.superseded_by is not None:
        return AlreadySuperseded(
            f"confirmation {number} has been superseded by {earlier.superseded_by}; supersede that one",
            superseded_by=earlier.superseded_by,
        )
    # Otherwise one poisoned account could quietly replace what everybody else said.
    if earlier.submitted_by != actor.user_id and "reviewer" not in actor.roles:
        return Forbidden(f"confirmation {number} was sent by somebody else; a reviewer may supersede it")
    return None


def _judge(diagnosis: Diagnosis, question: Question | None, *, line_id: int | None) -> RegistryError | None:
    if question is None:
        return NotFound(f"there is no case {diagnosis.case_id}")
    if line_id not in {None, question.line_id}:
        return WrongLine(f"case {diagnosis.case_id} is of another line")
    try:
        findings.canonical(diagnosis.finding, classes=question.classes, several=question.several)
    except RegistryError as refusal:
        return refusal
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
    if number in superseded:
        return AlreadySuperseded(f"confirmation {number} is superseded by another row of this upload already")
    if earlier.kind == "adjudication":
        return Invalid(f"confirmation {number} is an adjudication: adjudicate once more, or retract it")
    return refusal_to_replace(earlier, actor=actor)


def _entry(diagnosis: Diagnosis, question: Question) -> Entry:
    finding = findings.canonical(diagnosis.finding, classes=question.classes, several=question.several)
    said = {name: getattr(diagnosis, name) for name in Diagnosis.__slots__} | {"finding": finding}
    return Entry(line_id=question.line_id, **said)


_BOUND = rows.BOUND["confirmations"]

# Rows and audit events in one statement, which begins by taking the turn to write the trail: an id is given only to a
# row that is committed next. The events say what `audit.record` would; `bound` is the row that one vouches for. What an
# adjudication looked at is all that stood, for nothing newer can have come in: its event names it.
_INSERT: LiteralString = f"""
WITH turn AS MATERIALIZED ({audit.TAKE_TURN}),
made AS (
    INSERT INTO confirmations
        (case_id, line_id, kind, finding, evidence, ai_exposure, reader, confirmed_at, supersedes, reason, submitted_by)
    SELECT case_id, line_id, kind, finding, evidence, ai_exposure, reader, coalesce(confirmed_at, now()), supersedes,
        reason, %(user_id)s
    FROM turn, jsonb_to_recordset(%(asked)s) AS asked (place integer, case_id bigint, line_id bigint, kind text,
        finding text, evidence text, ai_exposure text, reader text, confirmed_at timestamptz, supersedes bigint,
        reason text)
    ORDER BY place
    RETURNING *
),
events AS (
    INSERT INTO audit_events (actor, action, subject, details)
    SELECT %(name)s, 'confirmation:' || CASE made.kind WHEN 'confirmation' THEN 'add' WHEN 'retraction' THEN 'retract'
        ELSE 'adjudicate' END, 'case/' || made.case_id, jsonb_build_object(
        'confirmation', made.confirmation_id, 'finding', made.finding, 'evidence', made.evidence,
        'supersedes', made.supersedes, 'row', 'confirmations/' || made.confirmation_id, 'new_digest', {_BOUND.digest}
    ) || coalesce((
        SELECT jsonb_build_object('old_digest', {_BOUND.digest}) FROM confirmations bound
        WHERE confirmation_id = made.supersedes
    ), '{{}}') || CASE WHEN made.kind <> 'adjudication' THEN '{{}}' ELSE jsonb_build_object('considered', (
        SELECT jsonb_agg(confirmation_id ORDER BY confirmation_id) FROM confirmations seen
        WHERE seen.case_id = made.case_id AND NOT EXISTS
            (SELECT FROM confirmations later WHERE later.supersedes = seen.confirmation_id)
    )) END
    FROM made CROSS JOIN LATERAL (SELECT made.*) bound
    ORDER BY made.confirmation_id
)
SELECT *, %(name)s::text AS submitter, NULL::bigint AS superseded_by FROM made ORDER BY confirmation_id
"""  # noqa: S608 - of our own constants

_COLUMNS: LiteralString = (
    "SELECT cases.*, this.*, users.name AS submitter,"
    " to_char(this.confirmed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS confirmed_on"
)
_STANDS: LiteralString = (
    "this.confirmation_id <= %(up_to)s AND NOT EXISTS (SELECT FROM confirmations later"
    " WHERE later.supersedes = this.confirmation_id AND later.confirmation_id <= %(up_to)s)"
)
_STANDING: LiteralString = f"""
{_COLUMNS} FROM confirmations this JOIN cases USING (case_id) JOIN users ON user_id = this.submitted_by
WHERE this.line_id = %(line_id)s AND erasure_id IS NULL AND {_STANDS}
ORDER BY this.case_id, confirmation_id
"""
# Case by case, however many the planner expects.
_STANDING_OF_CHANGED: LiteralString = f"""
{_COLUMNS} FROM (SELECT DISTINCT case_id FROM confirmations
    WHERE line_id = %(line_id)s AND confirmation_id > %(after)s AND confirmation_id <= %(up_to)s) changed
CROSS JOIN LATERAL (SELECT * FROM confirmations this WHERE this.case_id = changed.case_id AND {_STANDS} OFFSET 0) this
JOIN cases ON cases.case_id = this.case_id JOIN users ON user_id = this.submitted_by
WHERE erasure_id IS NULL ORDER BY this.case_id, confirmation_id
"""  # noqa: S608 - of our own constants
