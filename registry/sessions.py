"""Sessions of people who signed in: one row each while they last, the SHA-256 of a random token, and two limits.

A session ends by signing out, by a new password, after a time without use, and in any case some hours after the
password was given. All by the database's clock (OWASP Session Management Cheat Sheet).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from registry import audit
from registry.db import Connection, fetch_one
from registry.users import User, get_user

_TOUCH_SECONDS = 20
"""A use is written down only if the last one is older, so that a page with many pictures is not as many writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a session lasts: without use, and at most."""

    idle_seconds: float = 15 * 60
    absolute_seconds: float = 8 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that stands, and since when; `password_given` is false of one that began with a link."""

    user: User
    started_at: datetime
    age_seconds: float
    password_given: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _SessionOfUser(User):
    started_at: datetime
    age_seconds: float
    password_given: bool


def start(
    conn: Connection, *, user_id: int, replaces: str | None, limits: Limits, password_given: bool = True
) -> tuple[str, User]:
    """Sign a user in; return the token, for the only time, and the user. What `replaces` names is ended.

    The user's sessions that have run out go too. Raises NotFound.
    """
    user = get_user(conn, user_id)
    token = secrets.token_urlsafe(32)
    conn.execute(
        "DELETE FROM sessions WHERE token_sha256 = %(old)s OR user_id = %(user_id)s AND"
        " (last_used_at < now() - make_interval(secs => %(idle)s)"
        " OR started_at < now() - make_interval(secs => %(absolute)s))",
        {"old": _hash(replaces or ""), "user_id": user_id, **_bounds(limits)},
    )
    conn.execute(
        "INSERT INTO sessions (token_sha256, user_id, password_given) VALUES (%s, %s, %s)",
        (_hash(token), user_id, password_given),
    )
    how = {} if password_given else {"by": "link"}
    audit.record(conn, actor=user.name, action="session:start", subject=f"user/{user_id}", details=how)
    return token, user


def find(conn: Connection, token: str, *, limits: Limits, used: bool = True) -> Session | None:
    """Return the session of a token and note its use; None once it has ended, or for a user who was shut out.

    `used` is false of what a page does by itself: nobody who has left the desk stays signed in by it.
    """
    found = fetch_one(
        conn,
        _SessionOfUser,
        "WITH standing AS (SELECT * FROM sessions WHERE token_sha256 = %(token)s"
        "  AND last_used_at >= now() - make_interval(secs => %(idle)s)"
        "  AND started_at >= now() - make_interval(secs => %(absolute)s)),"
        " used AS (UPDATE sessions SET last_used_at = now() FROM standing"
        "  WHERE sessions.token_sha256 = standing.token_sha256"
        "  AND %(used)s AND standing.last_used_at < now() - make_interval(secs => %(touch)s))"
        " SELECT users.*, started_at, password_given, extract(epoch FROM now() - started_at)::float8 AS age_seconds"
        " FROM standing JOIN users USING (user_id) WHERE disabled_at IS NULL",
        {
            "token": _hash(token),
            "used": used,
            "touch": min(_TOUCH_SECONDS, limits.idle_seconds / 4),
            **_bounds(limits),
        },
    )
    if found is None:
        return None
    return Session(
        user=User.of(found),
        started_at=found.started_at,
        age_seconds=found.age_seconds,
        password_given=found.password_given,
    )


def standing(conn: Connection, tokens: Collection[str], *, limits: Limits) -> set[str]:
    """Return those of some tokens whose sessions have not ended; to ask is no use of them."""
    by_hash = {_hash(token): token for token in tokens}
    rows = conn.execute(
        "SELECT token_sha256 FROM sessions JOIN users USING (user_id) WHERE token_sha256 = ANY(%(tokens)s)"
        " AND last_used_at >= now() - make_interval(secs => %(idle)s)"
        " AND started_at >= now() - make_interval(secs => %(absolute)s) AND disabled_at IS NULL",
        {"tokens": list(by_hash), **_bounds(limits)},
    ).fetchall()
    return {by_hash[bytes(row[0])] for row in rows}


def end(conn: Connection, token: str) -> bool:
    """Sign out; return whether there was such a session."""
    ended = conn.execute("DELETE FROM sessions WHERE token_sha256 = %s RETURNING user_id", (_hash(token),)).fetchone()
    if ended is None:
        return False
    user = get_user(conn, ended[0])
    audit.record(conn, actor=user.name, action="session:end", subject=f"user/{user.user_id}")
    return True


def end_all(conn: Connection, *, user_id: int) -> None:
    """Sign a user out everywhere."""
    conn.execute("DELETE FROM sessions WHERE user_id = %s", (user_id,))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _bounds(limits: Limits) -> dict[str, float]:
    return {"idle": limits.idle_seconds, "absolute": limits.absolute_seconds}
