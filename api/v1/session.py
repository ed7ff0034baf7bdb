"""Signing in and out: a name and a password for a cookie that no script can read.

Each sign-in makes a new token and ends the session whose cookie came with it, so that nobody can plant one.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from api.auth import ANYONE, COOKIE, Caller, allow, guarded_router, refuse_other_sites
from api.dependencies import CurrentCaller, Pool, Settings
from api.errors import Refusal, documented
from api.sign_in import SignIn, address_of
from api.v1 import examples
from api.v1.views import Password, Request, View, shown_as
from registry import db, sessions

_open = APIRouter(prefix="/v1", tags=["Session"])
_guarded = guarded_router(tag="Session")


class NewSession(Request):
    """A name and its password."""

    model_config = shown_as(examples.NEW_SESSION)

    name: str = Field(max_length=80, description="The user's name")
    password: Password = Field(description="As set with `overread user password NAME`")


class SessionView(View):
    """Who asks, and for how long the service will know."""

    model_config = shown_as(examples.SESSION)

    name: str
    printed_name: str = Field(description="What stands under their signatures")
    roles: tuple[str, ...]
    signed_in_seconds_ago: float | None = Field(description="Since the password was given; null for an API key")
    idle_limit_seconds: float = Field(description="A session ends after this long without a request")
    absolute_limit_seconds: float = Field(description="And in any case this long after the password was given")


@_open.post(
    "/session",
    status_code=201,
    summary="Sign in",
    response_description="Signed in; the cookie is in `Set-Cookie`",
    responses=documented(
        "sign-in-failed",
        "cross-site-request",
        "too-many-requests",
        "invalid-request",
        "record-unavailable",
        "record-busy",
    ),
)
async def sign_in(
    request: HttpRequest, response: Response, pool: Pool, settings: Settings, wish: NewSession
) -> SessionView:
    """Sign a person in and set the cookie of their session, in place of any session they come with.

    Browsers keep this cookie over TLS only, and on `localhost`. After failed attempts a name, and an address, have to
    wait. Programs do not sign in: they send an API key.
    """
    refuse_other_sites(request)
    known: SignIn = request.app.state.sign_in
    user_id = await known.prove(name=wish.name, password=wish.password.get_secret_value(), address=address_of(request))
    if user_id is None:
        raise Refusal("sign-in-failed")
    limits = settings.session_limits

    def start() -> tuple[str, Caller]:
        with db.transaction(pool) as connection:
            token, user = sessions.start(
                connection, user_id=user_id, replaces=request.cookies.get(COOKIE), limits=limits
            )
        return token, Caller(user=user, signed_in_seconds=0.0)

    token, caller = await run_in_threadpool(start)
    set_cookie(response, token)
    return _view(caller, limits)


@_guarded.get("/session", summary="Who am I?", **allow(*ANYONE))
def read_session(caller: CurrentCaller, settings: Settings) -> SessionView:
    """Say who the key or the session belongs to, which roles they have, and when they will have to sign in again."""
    return _view(caller, settings.session_limits)


@_guarded.delete("/session", status_code=204, summary="Sign out", **allow(*ANYONE, problems=("not-found",)))
def sign_out(request: HttpRequest, response: Response, pool: Pool, caller: CurrentCaller) -> None:
    """End the session of the cookie that comes with the request, at once and for good. Other sessions go on."""
    if caller.signed_in_seconds is None:
        raise Refusal("not-found", "This request came with an API key, not with a session; there is nothing to end.")
    with db.transaction(pool) as connection:
        sessions.end(connection, request.cookies[COOKIE])
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")


def set_cookie(response: Response, token: str) -> None:
    """Give a browser the token of its session: for this host alone, and for no script."""
    response.set_cookie(COOKIE, token, path="/", secure=True, httponly=True, samesite="strict")


def _view(caller: Caller, limits: sessions.Limits) -> SessionView:
    return SessionView(
        name=caller.user.name,
        printed_name=caller.user.printed_name,
        roles=caller.user.roles,
        signed_in_seconds_ago=caller.signed_in_seconds,
        idle_limit_seconds=limits.idle_seconds,
        absolute_limit_seconds=limits.absolute_seconds,
    )


router = APIRouter()
router.include_router(_open)
router.include_router(_guarded)
