"""Pages are routes like those of the API: first who is there, then the role is asked; a refusal is a page.

Every page is a `PageRoute`. One that does not say who may see it cannot be made; `OPEN` says that anybody may. Where
the API would answer 401 a person is led to sign in, and back to where they wanted to go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from api.auth import ROLES_KEY, admit, refuse_other_sites
from api.console.frame import page
from api.errors import Refusal
from registry.users import Role

PREFIX = "/console"
OPEN = "anybody"
"""Instead of roles: a page without a name, such as the one to sign in at."""


class PageRoute(APIRoute):
    """A page: admits a caller as the API does, and shows every refusal as a page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler. Raises TypeError for a page that does not say who may see it."""
        handler = super().get_route_handler()
        roles = (self.openapi_extra or {}).get(ROLES_KEY)
        if not roles:
            raise TypeError(f"{self.path} does not say who may see it: add **people(…)")

        async def guarded(request: Request) -> Response:
            try:
                if OPEN in roles:
                    refuse_other_sites(request)
                else:
                    await run_in_threadpool(admit, request, roles=roles)
                return await handler(request)
            except Exception as error:  # noqa: BLE001 - what nobody knows is raised again
                if isinstance(error, Refusal) and error.problem.slug == "unauthenticated":
                    return _to_sign_in(request)
                return await _refusal(request, error)

        return guarded


def pages_router(*, prefix: str = "") -> APIRouter:
    """Make a router whose every route is a page."""
    return APIRouter(
        prefix=PREFIX + prefix, include_in_schema=False, route_class=PageRoute, default_response_class=HTMLResponse
    )


def people(*roles: Role) -> dict[str, Any]:
    """Declare who may see a page, as keyword arguments of the route's decorator; nobody named: anybody at all."""
    return {"openapi_extra": {ROLES_KEY: list(roles) or [OPEN]}}


def see(path: str) -> RedirectResponse:
    """Lead a browser on after a form: what it shows then can be loaded again without sending the form again."""
    return RedirectResponse(PREFIX + path, status_code=303)


def _to_sign_in(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    back = f"?back={quote(wanted, safe='')}" if request.method == "GET" and wanted != PREFIX else ""
    return see(f"/sign-in{back}")


async def _refusal(request: Request, error: Exception) -> Response:
    """What the API would answer, as a page. What it would not expect either is raised again, and logged there."""
    handlers = request.app.exception_handlers
    known = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers and kind is not Exception), None)
    if known is None:
        raise error
    answer = known(request, error)
    if not isinstance(answer, Response):
        answer = await answer
    return page(
        request,
        "problem.html",
        status=answer.status_code,
        headers={name: answer.headers[name] for name in ("retry-after",) if name in answer.headers},
        problem=json.loads(bytes(answer.body)),
    )
