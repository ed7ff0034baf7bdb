"""What to confirm next: the ranking of a line's unconfirmed cases as a worker left it, and which cases are blind.

Invariants: a ranking is replaced whole, and is a proposal, no part of the history. A confirmed or erased case is never
given out, even by a ranking that is older. Whether a case is blind follows from its lot, a keyed hash, and the
protocol's `blind_fraction` alone; until its first confirmation nobody is shown what a model says of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, LiteralString, get_args

from psycopg.types.json import Jsonb

from registry import jobs, lines, promotions
from registry.db import Connection, fetch_all, fetch_one, fetch_value
from registry.errors import BlindCase, Invalid
from registry.lines import Line

Arm = Literal["blind", "random", "uncertain", "diverse", "unlike", "coverage", "disagreement"]
ARMS: tuple[Arm, ...] = get_args(Arm)

FEWEST_NEWS, MOST_NEWS = 20, 2000
"""A ranking is made anew when a fiftieth of what it ranked is news, but not for less or more than this many cases."""

PAUSE_SECONDS = 600.0
"""A ranking that failed for good is asked for again after so long."""
KNOWN = 512
"""The newest confirmations, with whose cases others are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worklist:
    """A ranking: whose scores it used, the share of each arm, and up to where it had read the record."""

    line_id: int
    candidate_id: int | None
    protocol_id: int
    shares: dict[str, float]
    ranked: int
    left_out: int
    last_case_id: int
    last_confirmation_id: int
    ranked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A case on the list; `reason` says in words why it is there."""

    case_id: int
    place: int
    arm: str
    reason: str
    site: str
    scanner: str | None
    external_id: str | None
    created_at: datetime
    waits: bool
    """Still unconfirmed and not erased; true of every entry that is given out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A case that waits for its first confirmation; `scores` are the champion's, where it was asked."""

    case_id: int
    image_digest: str
    site: str
    age_days: float
    lot: float
    scores: dict[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A confirmed case, as far as others are compared with it."""

    image_digest: str
    site: str


def latest(conn: Connection, line_id: int) -> Worklist | None:
    """Return a line's ranking, None before the first."""
    return fetch_one(conn, Worklist, "SELECT * FROM worklists WHERE line_id = %s", (line_id,))


def entries(
    conn: Connection, *, line_id: int, after: int = 0, limit: int = 100, site: str | None = None, arm: str | None = None
) -> list[Entry]:
    """Cases still to be confirmed at places beyond `after`, most wanted first; of one site or one arm if asked.

    Raises Invalid for an arm that does not exist.
    """
    if arm is not None and arm not in ARMS:
        raise Invalid(f"no arm is called {arm!r}; there are {', '.join(ARMS)}")
    found: list[Entry] = []
    asked, size = {"line_id": line_id, "site": site, "arm": arm}, max(limit, 100)
    while len(found) < limit:
        here = {**asked, "after": after, "window": size}
        window = fetch_all(conn, Entry, _WINDOWS[site is not None, arm is not None], here)
        found += [entry for entry in window if entry.waits]
        if len(window) < size:
            break
        after = window[-1].place
    return found[:limit]


def count(conn: Connection, *, line_id: int, site: str | None = None, arm: str | None = None, most: int) -> int:
    """Count the listed cases that are still to be confirmed, of one site or arm if asked; no more than `most`.

    Raises Invalid for an arm that does not exist.
    """
    if arm is not None and arm not in ARMS:
        raise Invalid(f"no arm is called {arm!r}; there are {', '.join(ARMS)}")
    value = fetch_value(
        conn,
        "SELECT count(*) FROM (SELECT FROM worklist_cases listed WHERE line_id = %(line_id)s"
        " AND (%(site)s::text IS NULL OR site = %(site)s) AND (%(arm)s::text IS NULL OR arm = %(arm)s)"
        " AND NOT EXISTS (SELECT FROM confirmations WHERE confirmations.case_id = listed.case_id)"
        " LIMIT %(most)s) waiting",
        {"line_id": line_id, "site": site, "arm": arm, "most": most},
    )
    return int(value)


def refuse_if_blind(conn: Connection, *, line: Line, image_digest: str) -> None:
    """Refuse to show what a model says of an image that is to be read without it first. Raises BlindCase.

    That is the image of any case of the line that is blind and has no confirmation yet, so that sending the image again
    shows no more than asking for the case.
    """
    if is_blind(conn, line=line, image_digest=image_digest):
        raise BlindCase("this case is a blind audit: confirm what you see in it first, then ask again")


def is_blind(conn: Connection, *, line: Line, image_digest: str) -> bool:
    """Say whether an image waits to be read without the model."""
    return bool(fetch_value(conn, _IS_BLIND, {"line_id": line.line_id, "key": line.split_key, "digest": image_digest}))


def pool(conn: Connection, *, line: Line, candidate_id: int | None, limit: int) -> list[Unconfirmed]:
    """Return the cases of a line that wait for their first confirmation; the newest `limit` where there are more.

    Scores are those stored of the candidate; erased cases are not among them.
    """
    return fetch_all(conn, Unconfirmed, _POOL, {
        "line_id": line.line_id, "key": line.split_key, "candidate_id": candidate_id, "limit": limit,
    })  # fmt: skip


def known(conn: Connection, *, line_id: int) -> list[Known]:
    """Return confirmed cases to compare others with: those of the newest `KNOWN` confirmations."""
    return fetch_all(conn, Known, _KNOWN, {"line_id": line_id, "limit": KNOWN})


def confirmed_by_site(conn: Connection, line_id: int) -> dict[str, int]:
    """Count the confirmed cases of a line by site, the erased ones not."""
    rows = conn.execute(
        "SELECT site, count(*) FROM cases WHERE line_id = %s AND erasure_id IS NULL"
        " AND EXISTS (SELECT FROM confirmations WHERE confirmations.case_id = cases.case_id) GROUP BY 1 ORDER BY 1",
        (line_id,),
    ).fetchall()
    return {str(site): int(count) for site, count in rows}


def reach(conn: Connection, line_id: int) -> tuple[int, int]:
    """Ids of the newest case and the newest confirmation of a line, 0 where there is none."""
    row = conn.execute(
        "SELECT coalesce((SELECT max(case_id) FROM cases WHERE line_id = %(line_id)s), 0),"
        " coalesce((SELECT max(confirmation_id) FROM confirmations WHERE line_id = %(line_id)s), 0)",
        {"line_id": line_id},
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def replace(
    conn: Connection,
    *,
    line_id: int,
    candidate_id: int | None,
    protocol_id: int,
    shares: Mapping[str, float],
    left_out: int,
    last_case_id: int,
    last_confirmation_id: int,
    case_ids: Sequence[int],
    arms: Sequence[str],
    reasons: Sequence[str],
) -> int:
    """Put a ranking in the place of the one before; return how many cases it lists.

    What was confirmed or erased while it was made is left out.
    """
    conn.execute("DELETE FROM worklist_cases WHERE line_id = %s", (line_id,))
    conn.execute("DELETE FROM worklists WHERE line_id = %s", (line_id,))
    conn.execute(
        "INSERT INTO worklists (line_id, candidate_id, protocol_id, shares, ranked, left_out, last_case_id,"
        " last_confirmation_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            line_id,
            candidate_id,
            protocol_id,
            Jsonb(dict(shares)),
            len(case_ids),
            left_out,
            last_case_id,
            last_confirmation_id,
        ),
    )
    listed = conn.execute(
        "INSERT INTO worklist_cases (case_id, line_id, site, place, arm, reason)"
        " SELECT cases.case_id, line_id, site, place, arm, reason FROM unnest(%s::bigint[], %s::text[], %s::text[])"
        " WITH ORDINALITY AS ranked (case_id, arm, reason, place) JOIN cases USING (case_id)"
        " WHERE line_id = %s AND erasure_id IS NULL"
        " AND NOT EXISTS (SELECT FROM confirmations WHERE confirmations.case_id = cases.case_id)",
        (list(case_ids), list(arms), list(reasons), line_id),
    )
    return listed.rowcount


def forget(conn: Connection, *, case_ids: Sequence[int]) -> None:
    """Take cases off the list, as an erasure does."""
    conn.execute("DELETE FROM worklist_cases WHERE case_id = ANY(%s::bigint[])", (list(case_ids),))


def ask(conn: Connection, line_id: int) -> int | None:
    """Ask for a ranking; return the job's id, None where one is asked for already."""
    return jobs.enqueue(
        conn, kind="rank_worklist", line_id=line_id, payload={}, unique_key=f"rank_worklist:line:{line_id}"
    )


def due(conn: Connection) -> list[tuple[Line, str]]:
    """Lines whose ranking is missing or too old, each with the reason in words."""
    found = []
    for line in lines.list_lines(conn):
        reason = _why_due(conn, line)
        if reason is not None and not _failed_just_now(conn, line.line_id):
            found.append((line, reason))
    return found


def _why_due(conn: Connection, line: Line) -> str | None:
    ranking = latest(conn, line.line_id)
    if ranking is not None:
        champion = promotions.champion(conn, line.line_id)
        if ranking.candidate_id != (champion.candidate_id if champion else None):
            return "there is another champion"
        if ranking.protocol_id != lines.current_protocol(conn, line.line_id).protocol_id:
            return "there is another protocol"
    seen = {
        "line_id": line.line_id,
        "case_id": ranking.last_case_id if ranking else 0,
        "confirmation_id": ranking.last_confirmation_id if ranking else 0,
        "most": MOST_NEWS,
    }
    news = int(fetch_value(conn, _NEWS, seen))
    needed = min(MOST_NEWS, max(FEWEST_NEWS, (ranking.ranked if ranking else 0) // 50))
    return f"{news} cases came or were confirmed" if news >= needed else None


def _failed_just_now(conn: Connection, line_id: int) -> bool:
    failed = fetch_value(
        conn,
        "SELECT state = 'failed' AND finished_at > clock_timestamp() - make_interval(secs => %s) FROM jobs"
        " WHERE line_id = %s AND kind = 'rank_worklist' ORDER BY job_id DESC LIMIT 1",
        (PAUSE_SECONDS, line_id),
    )
    return bool(failed)


_UNCONFIRMED: LiteralString = (
    "erasure_id IS NULL AND NOT EXISTS (SELECT FROM confirmations WHERE confirmations.case_id = cases.case_id)"
)


def _window(*, site: bool, arm: bool) -> LiteralString:
    of_site: LiteralString = " AND site = %(site)s" if site else ""
    of_arm: LiteralString = " AND arm = %(arm)s" if arm else ""
    return (
        "SELECT listed.*, scanner, external_id, created_at, " + _UNCONFIRMED + " AS waits FROM"
        " (SELECT * FROM worklist_cases WHERE line_id = %(line_id)s AND place > %(after)s" + of_site + of_arm + ""
        " ORDER BY place LIMIT %(window)s) listed CROSS JOIN LATERAL"
        " (SELECT * FROM cases WHERE cases.case_id = listed.case_id OFFSET 0) cases ORDER BY place"
    )


# One text for each pair of filters, so that each finds its index. The places are cut out before anything is joined: of
# a list that was just replaced PostgreSQL has no statistics yet, and would otherwise join all of it and sort.
_WINDOWS: dict[tuple[bool, bool], LiteralString] = {
    (site, arm): _window(site=site, arm=arm) for site in (False, True) for arm in (False, True)
}

_IS_BLIND: LiteralString = (
    "WITH cases AS MATERIALIZED (SELECT case_id, line_id, erasure_id FROM cases WHERE image_digest = %(digest)s)"
    " SELECT EXISTS (SELECT FROM cases WHERE line_id = %(line_id)s AND " + _UNCONFIRMED + ""
    " AND lot_of_case(%(key)s, case_id) < (SELECT (document ->> 'blind_fraction')::double precision FROM protocols"
    " WHERE line_id = %(line_id)s ORDER BY version DESC LIMIT 1))"
)

_POOL: LiteralString = (
    "WITH newest AS (SELECT case_id, image_digest, site, created_at FROM cases WHERE line_id = %(line_id)s AND "
    + _UNCONFIRMED
    + " ORDER BY case_id DESC LIMIT %(limit)s)"
    " SELECT case_id, image_digest, site, extract(epoch FROM now() - created_at)::double precision / 86400 AS age_days,"
    " lot_of_case(%(key)s, case_id) AS lot, scores FROM newest"
    " LEFT JOIN LATERAL (SELECT scores FROM predictions WHERE predictions.case_id = newest.case_id"
    " AND candidate_id = %(candidate_id)s ORDER BY prediction_id DESC LIMIT 1) said ON true ORDER BY case_id"
)

_KNOWN: LiteralString = (
    "SELECT DISTINCT image_digest, site FROM (SELECT case_id FROM confirmations WHERE line_id = %(line_id)s"
    " ORDER BY confirmation_id DESC LIMIT %(limit)s) newest JOIN cases USING (case_id) WHERE erasure_id IS NULL"
    " ORDER BY image_digest, site"
)

# What the ranking does not know of: cases it never saw, and confirmations of cases that it may list. Only the newest
# are counted, so that asking costs the same however much there is.
_NEWS: LiteralString = (
    "SELECT (SELECT count(*) FROM (SELECT case_id, erasure_id FROM cases WHERE line_id = %(line_id)s"
    " AND case_id > %(case_id)s ORDER BY case_id DESC LIMIT %(most)s) cases WHERE " + _UNCONFIRMED + ") +"
    " (SELECT count(*) FROM (SELECT case_id FROM confirmations WHERE line_id = %(line_id)s"
    " AND confirmation_id > %(confirmation_id)s ORDER BY confirmation_id DESC LIMIT %(most)s) newest"
    " WHERE case_id <= %(case_id)s)"
)
