"""The audit trail: who did what to what, each event carrying the digest of the one before it.

The chain is made by a trigger (`chain_audit_event` in the schema); `first_broken` recomputes it here, in another
language, so that a rewritten or missing row shows. An event holds ids and words of the service, never a patient.

Making an event takes a lock that is held until the transaction ends: record it last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from registry import rows
from registry.db import Connection, fetch_all

SYSTEM = "overread"
"""The actor of what the service does by itself."""

GENESIS = "0" * 64
"""What the first event names as the digest of the one before it."""
TAKE_TURN: LiteralString = "SELECT pg_advisory_xact_lock(hashtext('audit_events'))"
_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One row of the trail; `details` as stored."""

    audit_event_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    previous_digest: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An event as the chain has it: `text` is what its digest is taken over, and the leaf of the Merkle tree."""

    audit_event_id: int
    at: datetime
    text: str
    previous_digest: str
    digest: str

    def follows(self, audit_event_id: int, digest: str) -> bool:
        """Say whether this is the event after that one, and as it was written."""
        return (
            self.audit_event_id == audit_event_id + 1
            and self.previous_digest == digest
            and self.digest == hashlib.sha256(self.text.encode()).hexdigest()
        )


def canonical_json(value: Any) -> str:
    """Write `value` in the one form that digests are taken over. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def record(
    conn: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
    row: str | None = None,
    replaces: str | None = None,
) -> None:
    """Add an event: `action` as `subject:verb` (e.g. `candidate:promote`), `subject` as `kind/id`.

    `row` names the row that the event vouches for (see `registry.rows`), as it stands now: its digest is stored as
    `new_digest`, and that of the row it takes the place of, if any, as `old_digest`.
    """
    stored: LiteralString = "%s"
    values: list[Any] = [actor, action, subject, Jsonb({**(details or {}), **({"row": row} if row else {})})]
    for name, meant in (("new_digest", row), ("old_digest", replaces)):
        if meant is not None:
            bound, number = rows.split(meant)
            stored += " || jsonb_build_object(%s::text, " + bound.digest_by_id + ")"
            values += [name, number]
    conn.execute(
        "INSERT INTO audit_events (actor, action, subject, details) VALUES (%s, %s, %s, " + stored + ")", values
    )


def take_turn(conn: Connection) -> None:
    """Wait for the turn to write the trail; held until the transaction ends.

    Rows inserted after this get ids in the order in which they are committed.
    """
    conn.execute(TAKE_TURN)


def list_events(conn: Connection, *, after: int = 0, limit: int = 100, subject: str | None = None) -> list[AuditEvent]:
    """Events with an id above `after`, oldest first; of one subject if given."""
    return fetch_all(
        conn,
        AuditEvent,
        "SELECT * FROM audit_events WHERE audit_event_id > %(after)s"
        " AND (%(subject)s::text IS NULL OR subject = %(subject)s) ORDER BY audit_event_id LIMIT %(limit)s",
        {"after": after, "limit": limit, "subject": subject},
    )


def find_events(
    conn: Connection,
    *,
    before: int | None = None,
    limit: int = 100,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
) -> list[AuditEvent]:
    """Events with an id below `before`, newest first: of an actor, an action (`case:` is all of cases), a subject."""
    return fetch_all(
        conn,
        AuditEvent,
        "SELECT * FROM audit_events WHERE (%(before)s::bigint IS NULL OR audit_event_id < %(before)s)"
        " AND (%(actor)s::text IS NULL OR actor = %(actor)s)"
        " AND (%(action)s::text IS NULL OR starts_with(action, %(action)s))"
        " AND (%(subject)s::text IS NULL OR subject = %(subject)s) ORDER BY audit_event_id DESC LIMIT %(limit)s",
        {"before": before, "limit": limit, "actor": actor, "action": action, "subject": subject},
    )


def chain(conn: Connection, *, after: int = 0) -> Iterator[Link]:
    """Stream the events with an id above `after` as the chain has them, oldest first."""
    query = (
        "SELECT audit_event_id, at, actor, action, subject, details::text, previous_digest, digest"
        " FROM audit_events WHERE audit_event_id > %s ORDER BY audit_event_id"
    )
    with conn.cursor() as cursor:
        for event_id, at, actor, action, subject, details, previous, digest in cursor.stream(query, (after,)):
            stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            text = _SEPARATOR.join((str(event_id), stamp, actor, action, subject, details, previous))
            yield Link(audit_event_id=event_id, at=at, text=text, previous_digest=previous, digest=digest)


def first_broken(conn: Connection) -> int | None:
    """Recompute the chain from its first event; return the id of the first that does not fit, or None.

    A missing event shows as the first one after it. A cut-off end cannot show here: `registry.checkpoints` keeps what
    shows it.
    """
    last, digest = 0, GENESIS
    for link in chain(conn):
        if not link.follows(last, digest):
            return link.audit_event_id
        last, digest = link.audit_event_id, link.digest
    return None
