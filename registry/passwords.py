"""Passwords: what people chose, kept as argon2id and compared outside of any transaction.

Nobody has one by default. `matches` takes as long for a name that nobody bears as for a wrong password, and is slow by
intent: keep it off the event loop and off the path of API keys (OWASP Password Storage Cheat Sheet: 19 MiB, 2 passes).
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from registry import audit, sessions
from registry.db import Connection, fetch_one
from registry.errors import Invalid
from registry.users import User

MINIMUM_LENGTH = 12
MAXIMUM_LENGTH = 200

_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_NOBODYS = "$argon2id$v=19$m=19456,t=2,p=1$+kQiD6X8azHxo+AqvOmh/g$y4WItjPP9T0X3on5jOg4bed9OlJjRD4u9Vl+oJprEZ8"
"""Hash of a random text that was thrown away; made with the parameters above, so that it costs the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user and the hash of their password; `hash` is None where they have none."""

    user_id: int
    hash: str | None = field(repr=False)


def set_password(conn: Connection, *, user: User, password: str, actor: User | None = None) -> None:
    """Give a user a password in place of any earlier one; who was signed in with that is signed out. Raises Invalid."""
    if not MINIMUM_LENGTH <= len(password) <= MAXIMUM_LENGTH:
        raise Invalid(f"a password has {MINIMUM_LENGTH} to {MAXIMUM_LENGTH} characters; three or four words do well")
    if password.casefold() in {user.name.casefold(), user.printed_name.casefold()} or len(set(password)) < 4:
        raise Invalid("this password is the first that somebody would try; choose another")
    conn.execute(
        "INSERT INTO passwords (user_id, hash) VALUES (%s, %s)"
        " ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, set_at = now()",
        (user.user_id, _HASHER.hash(_normal(password))),
    )
    sessions.end_all(conn, user_id=user.user_id)
    audit.record(
        conn,
        actor=audit.SYSTEM if actor is None else actor.name,
        action="user:set_password",
        subject=f"user/{user.user_id}",
    )


def credential_of(conn: Connection, name: str) -> Credential | None:
    """Return what to compare a password with, None for a name that nobody bears or that was shut out."""
    return fetch_one(
        conn,
        Credential,
        "SELECT user_id, hash FROM users LEFT JOIN passwords USING (user_id) WHERE name = %s AND disabled_at IS NULL",
        (name,),
    )


def matches(credential: Credential | None, password: str) -> bool:
    """Say whether this is the password; takes some 30 ms and 19 MiB, whether or not there is one to compare with."""
    known = credential.hash if credential is not None else None
    try:
        right = _HASHER.verify(known or _NOBODYS, _normal(password))
    except (Argon2Error, InvalidHashError):
        return False
    return right and known is not None


def _normal(password: str) -> str:
    """One form for what looks the same, however a keyboard composes it (RFC 8265 §4.2)."""
    return unicodedata.normalize("NFC", password)
