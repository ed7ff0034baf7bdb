"""Looks at the champions in use: the cases that each goes by, what was seen, and when the next look is due.

Invariant: an append-only row a look, with an audit event; the first look of a champion that finds it to err too often
is the event `champion:alarm`. Cases that a champion may have learned from are not among those it is watched by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from registry import audit, candidates, jobs, lines, promotions
from registry.candidates import Candidate
from registry.db import Connection, fetch_all, fetch_one, fetch_value
from registry.lines import Line

LOOK_EVERY_SECONDS = 86_400.0
"""Between two looks at one champion under one protocol; one may look at any time, and it costs a scoring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What one look saw; `risk` is None where no case was confirmed, `risk_limit` where the sealed test told nothing.

    `lower_bound` is what the risk is shown to be above, `raised_at` after how many cases it was shown to be too high,
    `cases_to_see` the newest cases of which the champion was wrong.
    """

    watch_id: int
    line_id: int
    candidate_id: int
    protocol_id: int
    sample: int
    n: int
    errors: int
    risk: float | None
    lower_bound: float | None
    risk_limit: float | None
    raised_at: int | None
    verified_share: float | None
    weighted_risk: dict[str, Any]
    mature_after_days: float | None
    verdict: str
    reason: str
    cases_to_see: list[int]
    shadow: dict[str, Any] | None
    """What was seen of the challenger on the same cases; None where there was none to follow."""
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """How often a champion was wrong on its sealed test, of how many cases."""

    errors: int
    n: int

    @property
    def risk(self) -> float:
        """The share of wrong answers, in [0, 1]."""
        return self.errors / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCase:
    """A mature case that the champion is watched by; `said` are the blind words that stand, none if none came first.

    `delay_days` is from the case to its first word, which `first_confirmation_id` names; None where it was not blind.
    """

    case_id: int
    image_digest: str
    site: str
    age_days: float
    delay_days: float | None
    first_confirmation_id: int | None
    said: list[dict[str, Any]]


def sample(
    conn: Connection,
    *,
    line: Line,
    after_confirmation_id: int,
    maturity_days: float,
    blind_fraction: float | None,
    up_to: int,
) -> list[SampledCase]:
    """Return the mature cases of a line of which nothing was said up to `after_confirmation_id`, in order of arrival.

    A case arrives when it is both mature and confirmed; those that are not yet come last. With `blind_fraction` only
    those that are blind by lot. Nothing said after confirmation `up_to` is looked at.
    """
    return fetch_all(conn, SampledCase, _SAMPLE, {
        "line_id": line.line_id, "key": line.split_key, "after": after_confirmation_id, "up_to": up_to,
        "maturity": maturity_days, "blind_fraction": 2.0 if blind_fraction is None else blind_fraction,
    })  # fmt: skip


def record(conn: Connection, *, line_id: int, candidate_id: int, protocol_id: int, seen: Mapping[str, Any]) -> Watch:
    """Record a look; an alarm that rises is told of as one, once a champion."""
    before = latest(conn, line_id=line_id, candidate_id=candidate_id)
    watch = fetch_one(
        conn,
        Watch,
        "INSERT INTO watches (line_id, candidate_id, protocol_id, sample, n, errors, risk, lower_bound, risk_limit,"
        " raised_at, verified_share, weighted_risk, mature_after_days, verdict, reason, cases_to_see, shadow) VALUES ("
        "%(line_id)s, %(candidate_id)s, %(protocol_id)s, %(sample)s, %(n)s, %(errors)s, %(risk)s, %(lower_bound)s,"
        " %(risk_limit)s, %(raised_at)s, %(verified_share)s, %(weighted_risk)s, %(mature_after_days)s, %(verdict)s,"
        " %(reason)s, %(cases_to_see)s, %(shadow)s) RETURNING *",
        {
            **seen,
            "line_id": line_id,
            "candidate_id": candidate_id,
            "protocol_id": protocol_id,
            "weighted_risk": Jsonb(seen["weighted_risk"]),
            "cases_to_see": Jsonb(list(seen["cases_to_see"])),
            "shadow": None if seen["shadow"] is None else Jsonb(seen["shadow"]),
        },
    )
    assert watch is not None
    rises = watch.verdict == "alarm" and (before is None or before.verdict != "alarm")
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="champion:alarm" if rises else "champion:watch",
        subject=f"candidate/{candidate_id}",
        details={"watch": watch.watch_id, "verdict": watch.verdict, "reason": watch.reason, "n": watch.n},
        row=f"watches/{watch.watch_id}",
    )
    return watch


def latest(conn: Connection, *, line_id: int, candidate_id: int) -> Watch | None:
    """Return the newest look at a champion, None before the first."""
    return fetch_one(
        conn,
        Watch,
        "SELECT * FROM watches WHERE line_id = %s AND candidate_id = %s ORDER BY watch_id DESC LIMIT 1",
        (line_id, candidate_id),
    )


def list_for_line(conn: Connection, line_id: int, *, limit: int = 100) -> list[Watch]:
    """The looks at a line's champions, newest first."""
    return fetch_all(
        conn, Watch, "SELECT * FROM watches WHERE line_id = %s ORDER BY watch_id DESC LIMIT %s", (line_id, limit)
    )


def promised(conn: Connection, champion: Candidate) -> Promised | None:
    """Return what a champion's gate report says of its wrong answers, None where it does not tell."""
    report = candidates.latest_report(conn, champion.candidate_id)
    rows = [] if report is None else report.document["results"]
    shares = {row["name"]: row["candidate"] for row in rows if row.get("candidate") is not None}
    found = [shares[name] for name in ("sensitivity", "specificity", "accuracy") if name in shares]
    if not found:
        return None
    return Promised(
        errors=sum(round((1.0 - share["value"]) * share["n"]) for share in found),
        n=sum(share["n"] for share in found),
    )


def what_to_do(watch: Watch, *, line: str) -> str | None:
    """Say what an alarm asks for, None where there is no alarm."""
    if watch.verdict != "alarm":
        return None
    seen = ", ".join(map(str, watch.cases_to_see)) or "none was wrong"
    return (
        f"look at the newest cases of which it was wrong ({seen}); unless they are explained, "
        f'`overread roll-back --line {line} --reason "…"`'
    )


def ask(conn: Connection, *, line_id: int, candidate_id: int, protocol_id: int) -> int | None:
    """Ask for a look; return the job's id, None where one is asked for already."""
    return jobs.enqueue(
        conn,
        kind="watch_champion",
        line_id=line_id,
        payload={"candidate_id": candidate_id, "protocol_id": protocol_id},
        unique_key=f"watch_champion:line:{line_id}",
    )


def due(conn: Connection) -> Sequence[tuple[Line, Candidate, int]]:
    """Lines whose protocol has the champion watched and that it is time for, with champion and id of the protocol."""
    found = []
    for line in lines.list_lines(conn):
        protocol, champion = lines.current_protocol(conn, line.line_id), promotions.champion(conn, line.line_id)
        if champion is None or protocol.document.get("monitoring") is None:
            continue
        asked = {"candidate_id": champion.candidate_id, "protocol_id": protocol.protocol_id}
        recent = fetch_value(
            conn,
            "SELECT EXISTS (SELECT FROM jobs WHERE line_id = %s AND kind = 'watch_champion' AND payload @> %s"
            " AND created_at > now() - make_interval(secs => %s))",
            (line.line_id, Jsonb(asked), LOOK_EVERY_SECONDS),
        )
        if not recent:
            found.append((line, champion, protocol.protocol_id))
    return found


# The first word about a case decides whether it was read blind. Of the blind words those stand that no other blind one
# replaced, and that were not taken back: what a reader corrected after having seen the model replaces nothing here.
_SAMPLE: LiteralString = """
    SELECT cases.case_id, image_digest, site, extract(epoch FROM now() - cases.created_at)::float8 / 86400 AS age_days,
        extract(epoch FROM first.created_at - cases.created_at)::float8 / 86400 AS delay_days,
        first.confirmation_id AS first_confirmation_id, coalesce(words.said, '[]') AS said
    FROM cases LEFT JOIN LATERAL (
        SELECT * FROM (SELECT confirmation_id, created_at, ai_exposure FROM confirmations
            WHERE confirmations.case_id = cases.case_id AND confirmation_id <= %(up_to)s
            ORDER BY confirmation_id LIMIT 1) word WHERE ai_exposure = 'blind') first ON true
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object('confirmation_id', confirmation_id, 'kind', kind, 'finding', finding,
            'evidence', evidence, 'ai_exposure', ai_exposure, 'submitter', users.name, 'reader', reader,
            'confirmed_on', to_char(confirmed_at, 'YYYY-MM-DD'), 'reason', reason) ORDER BY confirmation_id) AS said
        FROM confirmations this JOIN users ON user_id = submitted_by
        WHERE this.case_id = cases.case_id AND confirmation_id <= %(up_to)s AND first.created_at IS NOT NULL
            AND ai_exposure = 'blind' AND kind <> 'retraction' AND NOT EXISTS (
                SELECT FROM confirmations later WHERE later.supersedes = this.confirmation_id
                AND later.confirmation_id <= %(up_to)s AND (later.ai_exposure = 'blind' OR later.kind = 'retraction'))
    ) words ON true
    WHERE line_id = %(line_id)s AND erasure_id IS NULL
        AND cases.created_at <= now() - make_interval(secs => %(maturity)s * 86400)
        AND lot_of_case(%(key)s, cases.case_id) < %(blind_fraction)s
        AND NOT EXISTS (SELECT FROM confirmations known WHERE known.case_id = cases.case_id
            AND confirmation_id <= %(after)s)
    ORDER BY greatest(first.created_at, CASE WHEN first.created_at IS NOT NULL
        THEN cases.created_at + make_interval(secs => %(maturity)s * 86400) END) NULLS LAST, cases.case_id"""
