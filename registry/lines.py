"""Model lines and the protocols they follow.

A line is one diagnostic question answered by a succession of models. Its protocol is stored as the normalised document
the science made of it, whole, and is known by its digest; protocols are append-only, the highest version is current.
Every version after the first came by an amendment (`registry.amendments`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_known, fetch_one, fetch_value
from registry.errors import AlreadyExists, EvidenceMismatch, Invalid, NotFound, StateMoved, WrongLine
from registry.users import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A model line; `split_key` (32 bytes) assigns patients to splits and never leaves the service."""

    line_id: int
    name: str
    split_key: bytes = field(repr=False)
    created_at: datetime
    paused_at: datetime | None
    """Since when it starts no run by itself; None: it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProtocol:
    """One version of a line's protocol."""

    protocol_id: int
    line_id: int
    version: int
    document: dict[str, Any]
    digest: str
    created_by: int
    created_at: datetime
    amendment_id: int | None = None
    """The amendment that put it in force; None: the line was made under it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The findings a confirmation may name."""
        return tuple(self.document["classes"])


def create_line(conn: Connection, *, name: str, document: Mapping[str, Any], digest: str, actor: User) -> Line:
    """Open a line under the first version of its protocol.

    Raises AlreadyExists, WrongLine if the document names another line, EvidenceMismatch if `digest` is not its digest.
    """
    if document.get("line") != name:
        raise WrongLine(f"the protocol is for line {document.get('line')!r}, not {name!r}")
    if audit.digest_of(document) != digest:
        raise EvidenceMismatch("the digest given is not the digest of the protocol's document")
    taken = f"there is a line {name!r} already; its protocol is changed by an amendment (`overread protocol amend`)"
    with constraint_means(conn, lines_name_is_taken=AlreadyExists(taken)):
        line = fetch_one(
            conn,
            Line,
            "INSERT INTO lines (name, split_key) VALUES (%s, %s) RETURNING *",
            (name, secrets.token_bytes(32)),
        )
    assert line is not None
    protocol_id = fetch_value(
        conn,
        "INSERT INTO protocols (line_id, version, document, digest, created_by) VALUES (%s, 1, %s, %s, %s)"
        " RETURNING protocol_id",
        (line.line_id, Jsonb(dict(document)), digest, actor.user_id),
    )
    audit.record(
        conn,
        actor=actor.name,
        action="line:create",
        subject=f"line/{line.line_id}",
        details={"protocol": digest},
        row=f"protocols/{protocol_id}",
    )
    return line


def pause(conn: Connection, *, line_id: int, paused: bool, reason: str, actor: User) -> Line:
    """Keep a line from starting runs by itself, or let it again; a run that is under way goes on.

    Raises Forbidden, Invalid without a reason, StateMoved where it is so already, NotFound.
    """
    actor.require("operator")
    if not reason.strip():
        raise Invalid("say why, in a sentence that an auditor will understand")
    line_by_id(conn, line_id)
    changed = fetch_one(
        conn,
        Line,
        "UPDATE lines SET paused_at = CASE WHEN %(paused)s THEN now() END"
        " WHERE line_id = %(line_id)s AND (paused_at IS NOT NULL) <> %(paused)s RETURNING *",
        {"line_id": line_id, "paused": paused},
    )
    if changed is None:
        raise StateMoved(f"the line is {'paused' if paused else 'not paused'} already")
    audit.record(
        conn,
        actor=actor.name,
        action="line:pause" if paused else "line:resume",
        subject=f"line/{line_id}",
        details={"reason": reason.strip()},
    )
    return changed


def get_line(conn: Connection, name: str) -> Line:
    """Return a line by name. Raises NotFound."""
    line = fetch_one(conn, Line, "SELECT * FROM lines WHERE name = %s", (name,))
    if line is None:
        raise NotFound(f"there is no line {name!r}; `overread line list` shows those there are")
    return line


def line_by_id(conn: Connection, line_id: int) -> Line:
    """Return a line by id. Raises NotFound."""
    return fetch_known(conn, Line, "line", line_id)


def list_lines(conn: Connection) -> list[Line]:
    """All lines, by name."""
    return fetch_all(conn, Line, "SELECT * FROM lines ORDER BY name")


def current_protocol(conn: Connection, line_id: int) -> StoredProtocol:
    """Return the protocol a line follows now. Raises NotFound."""
    found = fetch_one(
        conn, StoredProtocol, "SELECT * FROM protocols WHERE line_id = %s ORDER BY version DESC LIMIT 1", (line_id,)
    )
    if found is None:
        raise NotFound(f"there is no line {line_id}")
    return found


def protocol(conn: Connection, protocol_id: int) -> StoredProtocol:
    """Return one version of a protocol by id. Raises NotFound."""
    return fetch_known(conn, StoredProtocol, "protocol", protocol_id)
