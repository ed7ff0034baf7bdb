"""Who looked at what, and what for: append-only, sealed by range into the audit chain.

A read takes no lock that a write holds: its row is outside the chain. `seal` adds an audit event `reads:seal` with the
digest of all rows since the last one; from then on a changed, missing or added row among them shows (`first_broken`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from registry import audit
from registry.db import Connection, fetch_all, fetch_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One look of one user; `reader` is their name. `case_id` None: a list, or an image that was not kept."""

    read_id: int
    at: datetime
    user_id: int
    reader: str
    action: str
    line_id: int | None
    case_id: int | None
    purpose: str | None
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seal:
    first: int
    last: int
    count: int
    sha256: str


_LAST_SEALED: LiteralString = (
    "SELECT (details ->> 'last')::bigint FROM audit_events WHERE action = 'reads:seal'"
    " ORDER BY audit_event_id DESC LIMIT 1"
)


def record(
    conn: Connection,
    *,
    user_id: int,
    action: str,
    case_id: int | None = None,
    line_id: int | None = None,
    purpose: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write down that a user sees something, `action` as `case:read`; commit before it is shown to them.

    In a transaction without an audit event: whoever held that lock would wait for a seal, and the seal for them.
    """
    conn.execute(
        "INSERT INTO reads (user_id, action, line_id, case_id, purpose, details) VALUES (%s, %s, %s, %s, %s, %s)",
        (user_id, action, line_id, case_id, purpose, Jsonb(dict(details or {}))),
    )


def list_reads(conn: Connection, *, after: int = 0, limit: int = 100, case_id: int | None = None) -> list[Read]:
    """Reads with an id above `after`, oldest first; of one case if given."""
    return fetch_all(
        conn,
        Read,
        "SELECT reads.*, users.name AS reader FROM reads JOIN users USING (user_id) WHERE read_id > %(after)s"
        " AND (%(case_id)s::bigint IS NULL OR case_id = %(case_id)s) ORDER BY read_id LIMIT %(limit)s",
        {"after": after, "limit": limit, "case_id": case_id},
    )


def cases_seen(conn: Connection, *, user_id: int, case_ids: Collection[int]) -> set[int]:
    """Return those of some cases that a user has looked at on a page of their own."""
    rows = conn.execute(
        "SELECT DISTINCT case_id FROM reads WHERE case_id = ANY(%s::bigint[]) AND user_id = %s"
        " AND action = 'case:read'",
        (list(case_ids), user_id),
    ).fetchall()
    return {int(row[0]) for row in rows}


def seal(conn: Connection) -> int:
    """Bind all reads since the last seal into the audit chain; return how many there were.

    Waits for the transactions that are adding reads, so that none comes to lie below the seal afterwards.
    """
    conn.execute("SELECT pg_advisory_xact_lock(hashtext('reads'))")
    last = fetch_value(conn, "SELECT max(read_id) FROM reads")
    if last is None:
        return 0
    after = fetch_value(conn, _LAST_SEALED) or 0
    if last == after:
        return 0
    count, digest = _digest(conn, first=after + 1, last=last)
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="reads:seal",
        subject=f"reads/{last}",
        details={"first": after + 1, "last": last, "count": count, "sha256": digest},
    )
    return count


def first_broken(conn: Connection) -> tuple[int, int] | None:
    """Recompute every seal; return the first and the last read of the first range that does not fit, or None."""
    expected = 1
    for made in _seals(conn):
        if made.first != expected or _digest(conn, first=made.first, last=made.last) != (made.count, made.sha256):
            return made.first, made.last
        expected = made.last + 1
    return None


def _seals(conn: Connection) -> list[_Seal]:
    return fetch_all(
        conn,
        _Seal,
        "SELECT (details ->> 'first')::bigint AS first, (details ->> 'last')::bigint AS last,"
        " (details ->> 'count')::bigint AS count, details ->> 'sha256' AS sha256"
        " FROM audit_events WHERE action = 'reads:seal' ORDER BY audit_event_id",
    )


def _digest(conn: Connection, *, first: int, last: int) -> tuple[int, str]:
    """Count the rows of a range and digest them: SHA-256 over a line of canonical JSON each."""
    digest, count = hashlib.sha256(), 0
    with conn.cursor() as cursor:
        query = (
            "SELECT read_id, at, user_id, action, line_id, case_id, purpose, details FROM reads"
            " WHERE read_id BETWEEN %s AND %s ORDER BY read_id"
        )
        for read_id, at, *rest in cursor.stream(query, (first, last)):
            row = [read_id, at.astimezone(UTC).isoformat(timespec="microseconds"), *rest]
            digest.update(audit.canonical_json(row).encode() + b"\n")
            count += 1
    return count, digest.hexdigest()
