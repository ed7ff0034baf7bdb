"""The people and machines that use the service, their roles and their API keys; `registry.passwords` has the rest.

An API key reads `ovr_<id>_<secret>`; the secret is 256 random bits, shown once, and only its SHA-256 is kept. A plain
hash is enough for a secret that nobody chose: there is no dictionary to try (NIST SP 800-63B-4 §3.1.4).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal, get_args

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_known, fetch_one, fetch_value
from registry.errors import AlreadyExists, Forbidden, Invalid, NotFound

Role = Literal["submitter", "reviewer", "approver", "operator", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may ask; `printed_name` is what a signature shows."""

    user_id: int
    name: str
    printed_name: str
    roles: tuple[str, ...]
    created_at: datetime
    disabled_at: datetime | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", tuple(self.roles))  # PostgreSQL gives a list

    @staticmethod
    def of(row: User) -> User:
        """The user alone of a row that holds more."""
        return User(**{field.name: getattr(row, field.name) for field in fields(User)})

    def require(self, *roles: Role) -> None:
        """Raise Forbidden unless this person has one of `roles`."""
        if not set(roles) & set(self.roles):
            raise Forbidden(
                f"this needs the role {' or '.join(roles)}; {self.name} has {', '.join(self.roles) or 'none'}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it may be shown after its making: without its secret."""

    api_key_id: str
    user_id: int
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeyOfUser(User):
    secret_sha256: bytes
    revoked_at: datetime | None


def create_user(
    conn: Connection, *, name: str, printed_name: str, roles: Iterable[str], actor: User | None = None
) -> User:
    """Add a user. `name` is lower case, short and plain. Raises AlreadyExists, Invalid for a bad name or role."""
    wanted = sorted(set(roles))
    unknown = [role for role in wanted if role not in ROLES]
    if unknown:
        raise Invalid(f"unknown role {', '.join(unknown)}; the roles are {', '.join(ROLES)}")
    with constraint_means(
        conn,
        users_name_is_taken=AlreadyExists(f"there is a user {name!r} already"),
        users_name_is_short_and_plain=Invalid(
            f"{name!r} is not a user name: up to 80 lower-case letters, digits, dots, dashes, @ and _"
        ),
    ):
        user = fetch_one(
            conn,
            User,
            "INSERT INTO users (name, printed_name, roles) VALUES (%s, %s, %s) RETURNING *",
            (name, printed_name, wanted),
        )
    assert user is not None
    audit.record(
        conn, actor=_name(actor), action="user:create", subject=f"user/{user.user_id}", details={"roles": wanted}
    )
    return user


def get_user(conn: Connection, user_id: int) -> User:
    """Return a user by id. Raises NotFound."""
    return fetch_known(conn, User, "user", user_id)


def by_name(conn: Connection, name: str) -> User:
    """Return a user by name. Raises NotFound."""
    user = fetch_one(conn, User, "SELECT * FROM users WHERE name = %s", (name,))
    if user is None:
        raise NotFound(f"there is no user {name!r}")
    return user


def list_users(conn: Connection) -> list[User]:
    """Everyone, by name."""
    return fetch_all(conn, User, "SELECT * FROM users ORDER BY name")


def has_password(conn: Connection, user_id: int) -> bool:
    """Say whether somebody has a password, so that it is known to be a person, who can sign."""
    return bool(fetch_value(conn, "SELECT EXISTS (SELECT FROM passwords WHERE user_id = %s)", (user_id,)))


def disable_user(conn: Connection, *, user_id: int, actor: User | None = None) -> User:
    """Shut a user out at once; what they did stays. Raises NotFound."""
    user = fetch_one(
        conn,
        User,
        "UPDATE users SET disabled_at = coalesce(disabled_at, now()) WHERE user_id = %s RETURNING *",
        (user_id,),
    )
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    audit.record(conn, actor=_name(actor), action="user:disable", subject=f"user/{user_id}")
    return user


def create_api_key(conn: Connection, *, user_id: int, actor: User | None = None) -> str:
    """Make a key and return it in plain text, for the only time. Raises NotFound."""
    user = get_user(conn, user_id)
    key_id = secrets.token_hex(8)
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    conn.execute(
        "INSERT INTO api_keys (api_key_id, user_id, secret_sha256) VALUES (%s, %s, %s)",
        (key_id, user.user_id, hashlib.sha256(secret.encode()).digest()),
    )
    audit.record(
        conn, actor=_name(actor), action="api_key:create", subject=f"user/{user.user_id}", details={"api_key": key_id}
    )
    return f"ovr_{key_id}_{secret}"


def authenticate(conn: Connection, plaintext: str) -> User | None:
    """Return whose key this is; None for an unknown or revoked key and for a disabled user.

    Secrets are compared in constant time, and an unknown id costs the same comparison.
    """
    prefix, _, rest = plaintext.partition("_")
    key_id, _, secret = rest.partition("_")
    if prefix != "ovr" or not secret or not plaintext.isascii():
        return None
    found = fetch_one(
        conn,
        _KeyOfUser,
        "SELECT users.*, secret_sha256, revoked_at FROM api_keys JOIN users USING (user_id) WHERE api_key_id = %s",
        (key_id,),
    )
    right = hmac.compare_digest(
        hashlib.sha256(secret.encode()).digest(), found.secret_sha256 if found is not None else bytes(32)
    )
    if found is None or not right or found.revoked_at is not None or found.disabled_at is not None:
        return None
    return User.of(found)


def revoke_api_key(conn: Connection, *, api_key_id: str, actor: User | None = None) -> None:
    """Make a key useless at once. Raises NotFound."""
    key = fetch_one(
        conn,
        ApiKey,
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE api_key_id = %s RETURNING *",
        (api_key_id,),
    )
    if key is None:
        raise NotFound(f"there is no API key {api_key_id!r}")
    audit.record(
        conn,
        actor=_name(actor),
        action="api_key:revoke",
        subject=f"user/{key.user_id}",
        details={"api_key": api_key_id},
    )


def list_api_keys(conn: Connection, *, user_id: int) -> list[ApiKey]:
    """The keys of a user, oldest first, revoked ones too."""
    return fetch_all(conn, ApiKey, "SELECT * FROM api_keys WHERE user_id = %s ORDER BY created_at", (user_id,))


def _name(actor: User | None) -> str:
    return audit.SYSTEM if actor is None else actor.name
