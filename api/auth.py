"""Who is asking, and may they: API keys and roles.

Every route under /v1 is a `GuardedRoute`: it asks for the key, then for the role, before it reads one byte of the
body. A route that does not say who may use it cannot be made. Keys are `ovr_<id>_<secret>`; the record keeps hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.params import Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.errors import Refusal, documented
from registry import db, users
from registry.users import Role

ANYONE: tuple[Role, ...] = users.ROLES
"""Whoever has a key and any role: for reading."""

ROLES_KEY = "x-overread-roles"
"""Where the OpenAPI document names an operation's roles."""

_bearer = HTTPBearer(
    scheme_name="API key",
    bearerFormat="ovr_<id>_<secret>",
    description="A key made with `overread key create USER`, shown once. Its user's roles decide what it opens.",
    auto_error=False,  # GuardedRoute refuses, before the body is read; this only documents
)


class GuardedRoute(APIRoute):
    """A route that admits a caller before it reads the body, and leaves the user in `request.state.user`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler in the check of key and role. Raises TypeError for a route without declared roles."""
        handler = super().get_route_handler()
        roles = (self.openapi_extra or {}).get(ROLES_KEY)
        if not roles:
            raise TypeError(f"{self.path} does not say who may use it: add **allow(…)")

        async def guarded(request: Request) -> Response:
            request.state.user = await run_in_threadpool(admit, request, roles=roles)
            return await handler(request)

        return guarded


def guarded_router(*, tag: str) -> APIRouter:
    """Make a router whose every route is guarded."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=GuardedRoute, dependencies=[Security(_bearer)])


def allow(
    *roles: Role,
    problems: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    answers: Mapping[int | str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Declare who may use a route and how it refuses, as keyword arguments of the route's decorator.

    `extra` joins the operation in the OpenAPI document, `answers` its responses.
    """
    refusals = documented("unauthenticated", "forbidden", *problems, "invalid-request", "record-unavailable")
    return {"openapi_extra": {ROLES_KEY: list(roles), **(extra or {})}, "responses": {**(answers or {}), **refusals}}


def admit(request: Request, *, roles: Sequence[Role]) -> users.User:
    """Find the user of the request's key. Raises Refusal (unauthenticated), Forbidden."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Refusal("unauthenticated")
    with db.transaction(request.app.state.pool) as connection:
        user = users.authenticate(connection, key.strip())
    if user is None:
        raise Refusal("unauthenticated", "This API key is unknown, revoked or belongs to a disabled user.")
    user.require(*roles)
    return user
