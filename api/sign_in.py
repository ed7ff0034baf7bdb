"""Proving by password who somebody is: slow by intent, a few at a time, off the event loop, limited and audited.

Signing in and signing a candidate both come here, so that neither is a way to try passwords around the limit of the
other. What a stranger learns from a refusal is the same for every name.
"""

from __future__ import annotations

import anyio
from anyio.to_thread import run_sync
from fastapi import Request

from api.auth import Caller
from api.errors import Refusal
from api.limits import Buckets
from registry import audit, db, passwords
from registry.users import User

FRESH_SECONDS = 60
"""How long after signing in a person may sign without giving the password once more."""

_AT_ONCE = 2
"""Comparisons at a time: each takes a core for some 30 ms, and 19 MiB."""


class SignIn:
    """The one place where passwords are compared. Failures count against the name and against the address."""

    def __init__(self, pool: db.Pool) -> None:
        self._pool = pool
        self._limiter = anyio.CapacityLimiter(_AT_ONCE)
        self._names = Buckets(per_second=1 / 30, burst=5)
        self._addresses = Buckets(per_second=1 / 5, burst=20)

    async def prove(self, *, name: str, password: str, address: str) -> int | None:
        """Return the id of the user whose name and password these are, None where they are not.

        Raises Refusal (too-many-requests) without looking at the password.
        """
        self._addresses.take(address, detail="Too many failed sign-ins from this address; wait a little.")
        self._names.take(name, detail="Too many failed sign-ins under this name; wait a little.")
        credential = await run_sync(self._credential, name)
        if await run_sync(passwords.matches, credential, password, limiter=self._limiter):
            assert credential is not None
            self._addresses.give_back(address)
            self._names.give_back(name)
            return credential.user_id
        await run_sync(self._write_down, credential, address)
        return None

    async def knows(self, user: User) -> bool:
        """Say whether a user has a password at all."""
        credential = await run_sync(self._credential, user.name)
        return credential is not None and credential.hash is not None

    def _credential(self, name: str) -> passwords.Credential | None:
        with db.transaction(self._pool) as connection:
            return passwords.credential_of(connection, name)

    def _write_down(self, credential: passwords.Credential | None, address: str) -> None:
        # A name that nobody bears is not written down: people type passwords into the wrong field.
        subject = f"user/{credential.user_id}" if credential is not None else "user/unknown"
        with db.transaction(self._pool) as connection:
            audit.record(
                connection, actor=audit.SYSTEM, action="session:refuse", subject=subject, details={"address": address}
            )


async def sign_again(request: Request, *, password: str | None) -> None:
    """Make sure that the caller is at the keyboard: by their password, or by having signed in a moment ago.

    An API key alone does not sign (21 CFR Part 11 §11.200). Raises Refusal (no-password, sign-in-again,
    too-many-requests).
    """
    caller: Caller = request.state.caller
    sign_in: SignIn = request.app.state.sign_in
    if not await sign_in.knows(caller.user):
        raise Refusal(
            "no-password",
            f"{caller.user.name} has no password and cannot sign; an operator of the machine sets one: "
            f"`overread user password {caller.user.name}`",
        )
    if password is None:
        seconds = caller.signed_in_seconds if caller.password_given else None
        if seconds is None or seconds > FRESH_SECONDS:
            raise Refusal("sign-in-again")
        return
    proven = await sign_in.prove(name=caller.user.name, password=password, address=address_of(request))
    if proven != caller.user.user_id:
        raise Refusal("sign-in-again", "This is not the signer's password; nothing was signed.")


def address_of(request: Request) -> str:
    """Where a request comes from, as far as the server in front of us says so."""
    return request.client.host if request.client is not None else "unknown"
