"""What overrules confirmations: an adjudication decides over what stands, a retraction takes one row back.

Both are rows of `confirmations`, with a reason. An adjudication is a named person's, who has seen all that was said: it
is refused where more has come in since. It leaves the others standing. A retraction says that a row should never have
been said; it takes its place, and counts for nothing itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from registry import audit, confirmations, findings, users
from registry.confirmations import AiExposure, Confirmation, Entry, Evidence, Question
from registry.db import Connection, fetch_all, fetch_value
from registry.errors import Forbidden, Invalid, NotFound, RecordMoved, WrongLine
from registry.users import User

_RANK = {tier: rank for rank, tier in enumerate(get_args(Evidence))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an adjudicator wants recorded; `finding` None: the case cannot be answered.

    `last_seen` is the newest confirmation of the case that they have looked at.
    """

    case_id: int
    finding: str | None
    ai_exposure: str
    reason: str
    last_seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Discordance:
    """A case that waits for an adjudication, and what stands about it.

    `since` is the confirmation with which it began; `last_confirmation` the newest, which an adjudication has to name.
    """

    case_id: int
    since: int
    since_at: datetime
    last_confirmation: int
    standing: tuple[Confirmation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    case_id: int
    since: int
    since_at: datetime
    last_confirmation: int


def adjudicate(conn: Connection, decision: Decision, *, actor: User) -> Confirmation:
    """Decide over all that stands about a case, in the actor's own name.

    Its evidence is the strongest that stands, and a single read at least, for the adjudicator reads the case. Raises
    Forbidden (no reviewer, or no person), NotFound, WrongLine, UnknownFinding, Invalid, RecordMoved.
    """
    question = _check(conn, decision, actor=actor)
    audit.take_turn(conn)  # so that nothing more is said after this look
    evidence = _strongest(confirmations.list_for_case(conn, decision.case_id), decision=decision)
    (made,) = confirmations.insert(
        conn,
        [
            Entry(
                case_id=decision.case_id,
                line_id=question.line_id,
                kind="adjudication",
                finding=_answer(decision, question),
                evidence=evidence,
                ai_exposure=decision.ai_exposure,
                reader=actor.name,
                reason=_given(decision.reason),
            )
        ],
        actor=actor,
    )
    return made


def retract(conn: Connection, *, confirmation_id: int, reason: str, actor: User) -> Confirmation:
    """Take a confirmation or an adjudication back: by whoever sent it, or by a reviewer.

    Raises NotFound, AlreadySuperseded, Forbidden, Invalid (it is a retraction itself, or there is no reason).
    """
    earlier = confirmations.hold(conn, [confirmation_id]).get(confirmation_id)
    if earlier is None:
        raise NotFound(f"there is no confirmation {confirmation_id}")
    if earlier.kind == "retraction":
        raise Invalid(f"confirmation {confirmation_id} is a retraction; confirm what is right, superseding it")
    refusal = confirmations.refusal_to_replace(earlier, actor=actor)
    if refusal is not None:
        raise refusal
    (made,) = confirmations.insert(
        conn,
        [
            Entry(
                case_id=earlier.case_id,
                line_id=earlier.line_id,
                kind="retraction",
                finding=None,
                evidence=earlier.evidence,
                ai_exposure=earlier.ai_exposure,
                reader=earlier.reader,
                supersedes=confirmation_id,
                reason=_given(reason),
            )
        ],
        actor=actor,
    )
    return made


def discordances(conn: Connection, *, line_id: int, after: int = 0, limit: int = 100) -> list[Discordance]:
    """Cases whose votes at the deciding tier differ and that no adjudication settles, the longest waiting first.

    Those that began after confirmation `after`. Costs what is listed, however many cases are settled.
    """
    queued = fetch_all(
        conn,
        _Queued,
        "SELECT case_id, since, (SELECT created_at FROM confirmations WHERE confirmation_id = since) AS since_at,"
        " (SELECT max(confirmation_id) FROM confirmations WHERE confirmations.case_id = discordances.case_id)"
        " AS last_confirmation FROM discordances JOIN cases USING (case_id) WHERE discordances.line_id = %s"
        " AND since > %s AND erasure_id IS NULL ORDER BY since LIMIT %s",
        (line_id, after, limit),
    )
    standing = _standing(conn, [case.case_id for case in queued])
    return [
        Discordance(
            case_id=case.case_id,
            since=case.since,
            since_at=case.since_at,
            last_confirmation=case.last_confirmation,
            standing=tuple(row for row in standing if row.case_id == case.case_id),
        )
        for case in queued
    ]


def is_discordant(conn: Connection, case_id: int) -> bool:
    """Say whether a case waits for an adjudication."""
    return bool(fetch_value(conn, "SELECT EXISTS (SELECT FROM discordances WHERE case_id = %s)", (case_id,)))


def count_discordances(conn: Connection, line_id: int, *, most: int = 100) -> int:
    """Number of cases of a line that wait for an adjudication; more than `most` are not counted."""
    value = fetch_value(
        conn,
        "SELECT count(*) FROM (SELECT FROM discordances JOIN cases USING (case_id) WHERE discordances.line_id = %s"
        " AND erasure_id IS NULL LIMIT %s) first",
        (line_id, most),
    )
    return int(value)


def _check(conn: Connection, decision: Decision, *, actor: User) -> Question:
    actor.require("reviewer")
    if not users.has_password(conn, actor.user_id):
        raise Forbidden(
            f"{actor.name} has no password, so it is not known to be a person; an adjudication is a named person's: "
            f"`overread user password {actor.name}`"
        )
    question = confirmations.questions_of(conn, [decision.case_id]).get(decision.case_id)
    if question is None:
        raise NotFound(f"there is no case {decision.case_id}")
    _answer(decision, question)
    if decision.ai_exposure not in (words := get_args(AiExposure)):
        raise Invalid(f"ai_exposure {decision.ai_exposure!r} is unknown; it is one of {', '.join(words)}")
    return question


def _answer(decision: Decision, question: Question) -> str | None:
    if decision.finding is None:
        return None
    return findings.canonical(
        decision.finding, classes=question.classes, several=question.several, others=", or null for none"
    )


def _standing(conn: Connection, case_ids: Collection[int]) -> list[Confirmation]:
    return fetch_all(
        conn,
        Confirmation,
        "SELECT this.*, users.name AS submitter, NULL::bigint AS superseded_by FROM confirmations this"
        " JOIN users ON user_id = this.submitted_by WHERE case_id = ANY(%s::bigint[]) AND kind <> 'retraction' AND"
        " NOT EXISTS (SELECT FROM confirmations later WHERE later.supersedes = this.confirmation_id)"
        " ORDER BY confirmation_id",
        (list(case_ids),),
    )


def _strongest(said: list[Confirmation], *, decision: Decision) -> str:
    """Evidence of an adjudication over all that was said about a case, if its maker has seen all of it."""
    if decision.last_seen not in {row.confirmation_id for row in said}:
        raise WrongLine(f"confirmation {decision.last_seen} is not of case {decision.case_id}; name the newest you saw")
    newest = said[-1].confirmation_id
    if newest != decision.last_seen:
        raise RecordMoved(
            f"confirmation {newest} of case {decision.case_id} has come in since {decision.last_seen}; look at it, "
            f"then adjudicate with last_seen {newest}",
            last_confirmation=newest,
        )
    tiers = [row.evidence for row in said if row.superseded_by is None and row.kind == "confirmation"]
    if not tiers:
        raise Invalid(f"nothing stands about case {decision.case_id} to decide over; confirm it instead")
    return max([*tiers, "single_read"], key=lambda tier: _RANK[tier])


def _given(reason: str) -> str:
    if not reason.strip():
        raise Invalid("say why, in a sentence that an auditor will understand")
    return reason.strip()
