"""Once only: the stored response to each request that carried an Idempotency-Key, per principal.

`begin` first, then the work, then `finish`, all in one transaction: response and effect are committed together or not
at all (draft-ietf-httpapi-idempotency-key-header-07).

A part of a request, such as a row of an upload, may carry a key of its own, and keeps its answer in whatever company it
is sent again. Only what was done is stored of parts: one that was refused may be mended and sent under its old key.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from registry import audit
from registry.db import Connection, fetch_one
from registry.errors import IdempotencyConflict, IdempotencyInFlight

_PART = "part\n"
"""Keeps keys of parts apart from keys of requests: no header can hold a line feed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The response that was given the first time."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What was done of a part under its key: the digest of what was asked, and the answer."""

    digest: str
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
    mine = conn.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 1))", (f"idempotency {user_id} {key}",))
    stored = fetch_one(conn, _Stored, "SELECT * FROM idempotency_keys WHERE user_id = %s AND key = %s", (user_id, key))
    if mine.fetchone() != (True,):
        raise IdempotencyInFlight("the first request with this Idempotency-Key is still at work; try again in a moment")
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


def hold_parts(conn: Connection, *, user_id: int, keys: Collection[str]) -> dict[str, Part]:
    """Return what was done under the keys of parts; until this transaction ends nobody else does more under them."""
    if not keys:
        return {}
    audit.take_turn(conn)
    return find_parts(conn, user_id=user_id, keys=keys)


def find_parts(conn: Connection, *, user_id: int, keys: Collection[str]) -> dict[str, Part]:
    """Return what was done under the keys of parts; those under which nothing was done are left out."""
    found = conn.execute(
        "SELECT key, request_digest, response_body FROM idempotency_keys WHERE user_id = %s AND key = ANY(%s)",
        (user_id, [_PART + key for key in keys]),
    )
    return {key.removeprefix(_PART): Part(digest=digest, body=body) for key, digest, body in found}


def finish_parts(conn: Connection, *, user_id: int, parts: Mapping[str, Part]) -> None:
    """Store what was done under the keys of parts, in the transaction that did it."""
    if not parts:
        return
    conn.execute(
        "INSERT INTO idempotency_keys (user_id, key, request_digest, response_status, response_body)"
        " SELECT %s, key, digest, 200, body"
        " FROM unnest(%s::text[], %s::text[], %s::jsonb[]) AS part (key, digest, body)",
        (
            user_id,
            [_PART + key for key in parts],
            [part.digest for part in parts.values()],
            [Jsonb(part.body) for part in parts.values()],
        ),
    )
