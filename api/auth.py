"""Who is asking, and may they: API keys, tokens of an identity provider, sessions of people who signed in; roles.

Every route under /v1 is a `GuardedRoute`: it asks who is there, then for the role, before it reads one byte of the
body. A route that does not say who may use it cannot be made. Of keys and of session tokens the record keeps hashes.

A browser sends its cookie whoever made it ask; so with a cookie, nothing is changed for a page of another site.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from api.errors import Refusal, documented
from registry import db, sessions, users
from registry.errors import NotFound
from registry.users import Role, User

ANYONE: tuple[Role, ...] = users.ROLES
"""Whoever has a key and any role: for reading."""

ROLES_KEY = "x-overread-roles"
"""Where the OpenAPI document names an operation's roles."""

COOKIE = "__Host-overread"
"""Browsers take a cookie of this prefix only over TLS (or from localhost), for this host alone, for every path."""

BY_ITSELF = "Overread-By-Itself"
"""A header of what a page asks for without its reader: it is no use of their session."""

SECURITY_SCHEMES = {
    "API key": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "ovr_<id>_<secret>",
        "description": "A key made with `overread key create USER`, shown once. Its user's roles decide what it opens.",
    },
    "Session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "Set by `POST /v1/session`. With it, requests that change something are refused to other "
        "sites' pages.",
    },
}
"""The ways in, for the OpenAPI document. FastAPI's own way to state them runs code of its own at every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks; `signed_in_seconds` is how long ago they signed in, None without a session.

    `password_given` is false of a session that began with a link: no proof of a password.
    """

    user: User
    signed_in_seconds: float | None = None
    password_given: bool = True


class GuardedRoute(APIRoute):
    """A route that admits a caller before it reads the body, and leaves them in `request.state.caller`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler in the check of key and role. Raises TypeError for a route without declared roles."""
        handler = super().get_route_handler()
        roles = (self.openapi_extra or {}).get(ROLES_KEY)
        if not roles:
            raise TypeError(f"{self.path} does not say who may use it: add **allow(…)")

        async def guarded(request: Request) -> Response:
            await run_in_threadpool(admit, request, roles=roles)
            return await handler(request)

        return guarded


def guarded_router(*, tag: str) -> APIRouter:
    """Make a router whose every route is guarded."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=GuardedRoute)


def allow(
    *roles: Role,
    problems: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    answers: Mapping[int | str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Declare who may use a route and how it refuses, as keyword arguments of the route's decorator.

    `extra` joins the operation in the OpenAPI document, `answers` its responses.
    """
    refusals = documented(
        "unauthenticated",
        "forbidden",
        "cross-site-request",
        "too-many-requests",
        *problems,
        "invalid-request",
        "identity-provider-unavailable",
        "record-unavailable",
        "record-busy",
    )
    operation = {ROLES_KEY: list(roles), "security": [{name: []} for name in SECURITY_SCHEMES], **(extra or {})}
    return {"openapi_extra": operation, "responses": {**(answers or {}), **refusals}}


def admit(request: Request, *, roles: Sequence[Role]) -> None:
    """Find who asks, by key, token or session, and leave them in `request.state.caller`, admitted or not.

    Raises Refusal (unauthenticated, cross-site-request, too-many-requests), Forbidden.
    """
    header, token = request.headers.get("authorization"), request.cookies.get(COOKIE)
    caller = _by_session(request, token) if header is None and token else _by_bearer(request, header or "")
    request.state.caller = caller
    request.app.state.rates.take(caller.user.user_id, detail="You ask more often than a user of this service may.")
    caller.user.require(*roles)


def refuse_other_sites(request: Request) -> None:
    """Refuse a change that a page of another site asks for, as the browser tells. Raises Refusal (cross-site-request).

    A client that is no browser sends neither header, and is not led by other people's pages.
    """
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    origin = request.headers.get("origin")
    ours = origin is None or origin.partition("://")[2] == request.headers.get("host")
    if not ours or request.headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        raise Refusal("cross-site-request")


def _by_bearer(request: Request, header: str) -> Caller:
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Refusal("unauthenticated")
    if request.app.state.provider is not None and not key.lstrip().startswith("ovr_"):
        return _by_token(request, key.strip())
    with db.reading(request.app.state.pool) as connection:
        user = users.authenticate(connection, key.strip())
    if user is None:
        raise Refusal("unauthenticated", "This API key is unknown, revoked or belongs to a disabled user.")
    return Caller(user=user)


def _by_token(request: Request, token: str) -> Caller:
    identity = request.app.state.provider.identify(token)
    with db.transaction(request.app.state.pool) as connection:
        try:
            user = users.by_name(connection, identity.name)
        except NotFound:
            user = None
    if user is None or user.disabled_at is not None:
        raise Refusal("unauthenticated", "Whoever this token names is no user here, or was shut out.")
    if identity.roles is not None:
        user = replace(user, roles=tuple(role for role in user.roles if role in identity.roles))
    return Caller(user=user)


def _by_session(request: Request, token: str) -> Caller:
    refuse_other_sites(request)
    with db.transaction(request.app.state.pool) as connection:
        limits, used = request.app.state.settings.session_limits, BY_ITSELF not in request.headers
        session = sessions.find(connection, token, limits=limits, used=used)
    if session is None:
        raise Refusal("unauthenticated", "This session has ended; sign in again.")
    return Caller(user=session.user, signed_in_seconds=session.age_seconds, password_given=session.password_given)
