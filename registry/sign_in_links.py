"""One-time links by which a person signs in without typing a password: 256 random bits, kept as a hash, used once.

Made by whoever holds the machine, for people of a demo; whoever came by one gives a password to sign all the same.
"""

from __future__ import annotations

import hashlib
import secrets

from registry import audit
from registry.db import Connection, fetch_one, fetch_value
from registry.users import User


def make(conn: Connection, *, user: User, seconds: float) -> str:
    """Make a link's token and return it, for the only time; it works once, for `seconds`. Those that ran out go."""
    token = secrets.token_urlsafe(32)
    conn.execute("DELETE FROM sign_in_links WHERE expires_at < now()")
    conn.execute(
        "INSERT INTO sign_in_links (token_sha256, user_id, expires_at)"
        " VALUES (%s, %s, now() + make_interval(secs => %s))",
        (_hash(token), user.user_id, seconds),
    )
    audit.record(conn, actor=audit.SYSTEM, action="session:link", subject=f"user/{user.user_id}")
    return token


def whose(conn: Connection, token: str) -> User | None:
    """Return whom a link would sign in, without using it; None for one that was used, ran out or never was."""
    return fetch_one(
        conn,
        User,
        "SELECT users.* FROM sign_in_links JOIN users USING (user_id)"
        " WHERE token_sha256 = %s AND expires_at >= now() AND disabled_at IS NULL",
        (_hash(token),),
    )


def use(conn: Connection, token: str) -> int | None:
    """Use a link up and return the id of its user; None as in `whose`. Of two who use it at once, one comes in."""
    user_id = fetch_value(
        conn,
        "DELETE FROM sign_in_links USING users WHERE token_sha256 = %s AND expires_at >= now()"
        " AND users.user_id = sign_in_links.user_id AND disabled_at IS NULL RETURNING sign_in_links.user_id",
        (_hash(token),),
    )
    return None if user_id is None else int(user_id)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
