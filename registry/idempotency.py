"""Once only: the stored response to each request that carried an Idempotency-Key, per principal.

`begin` first, then the work, then `finish`, all in one transaction: response and effect are committed together or not
at all (draft-ietf-httpapi-idempotency-key-header-07).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from registry.db import Connection, fetch_one, fetch_value
from registry.errors import IdempotencyConflict, IdempotencyInFlight


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The response that was given the first time."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    request_digest: str
    response_status: int
    response_body: Any


def begin(conn: Connection, *, user_id: int, key: str, request_digest: str) -> Replay | None:
    """Return the stored response to repeat, or None: do the work, then `finish`.

    Raises IdempotencyInFlight while another transaction works under this key, IdempotencyConflict if the key was used
    for another request.
    """
    mine = fetch_value(
        conn, "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 1))", (f"idempotency {user_id} {key}",)
    )
    if not mine:
        raise IdempotencyInFlight("the first request with this Idempotency-Key is still at work; try again in a moment")
    stored = fetch_one(conn, _Stored, "SELECT * FROM idempotency_keys WHERE user_id = %s AND key = %s", (user_id, key))
    if stored is None:
        return None
    if stored.request_digest != request_digest:
        raise IdempotencyConflict("this Idempotency-Key was used for another request; send a fresh key")
    return Replay(status=stored.response_status, body=stored.response_body)


def finish(conn: Connection, *, user_id: int, key: str, request_digest: str, status: int, body: Any) -> None:
    """Store the response under the key, in the transaction that did the work."""
    sys.audit("overread.fault", "idempotency.finish.before")
    conn.execute(
        "INSERT INTO idempotency_keys (user_id, key, request_digest, response_status, response_body)"
        " VALUES (%s, %s, %s, %s, %s)",
        (user_id, key, request_digest, status, Jsonb(body)),
    )
