"""In and out: a name and a password, or a link that works once. The files that every page loads are open too."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Form, Request, Response
from starlette.concurrency import run_in_threadpool

from api.auth import ANYONE, COOKIE
from api.console import forms
from api.console.frame import page, static_files
from api.console.route import PREFIX, pages_router, people, see
from api.dependencies import CurrentCaller, Pool, Settings
from api.errors import Refusal
from api.v1 import session
from registry import db, sessions, sign_in_links
from registry.errors import NotFound

router = pages_router()

_TYPES = {"css": "text/css; charset=utf-8", "mjs": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@router.get("/sign-in", **people())
def sign_in_page(request: Request, back: str = "") -> Response:
    """Ask for a name and a password."""
    return page(request, "sign_in.html", back=back, name="", refused=None)


@router.post("/sign-in", **people())
async def sign_in(
    *,
    request: Request,
    pool: Pool,
    settings: Settings,
    name: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    back: Annotated[str, Form()] = "",
) -> Response:
    """Sign in, and go on to where the person wanted to go."""
    response = see(_inside(back))
    try:
        wish = forms.asked(session.NewSession, name=name, password=password)
        await session.sign_in(request, response, pool, settings, wish)
    except Refusal as refused:
        document = forms.refusal(refused)
        return page(request, "sign_in.html", status=document["status"], back=back, name=name, refused=document)
    return response


@router.post("/sign-out", **people(*ANYONE))
def sign_out(request: Request, pool: Pool, caller: CurrentCaller) -> Response:
    """End the session."""
    response = see("/sign-in")
    session.sign_out(request, response, pool, caller)
    return response


@router.get("/link/{token}", **people())
def link_page(request: Request, pool: Pool, token: str) -> Response:
    """Say whom a link signs in. Looking does not use it up: mail programs and browsers look ahead."""
    with db.transaction(pool) as connection:
        user = sign_in_links.whose(connection, token)
    if user is None:
        raise NotFound("this link was used, or ran out; `overread user link NAME` makes another")
    return page(request, "link.html", user=user)


@router.post("/link/{token}", **people())
async def use_link(request: Request, pool: Pool, settings: Settings, token: str) -> Response:
    """Use a link up and sign its person in, in place of whoever is signed in."""
    response = see("")

    def use() -> str:
        with db.transaction(pool) as connection:
            user_id = sign_in_links.use(connection, token)
            if user_id is None:
                raise NotFound("this link was used, or ran out; `overread user link NAME` makes another")
            made, _ = sessions.start(
                connection,
                user_id=user_id,
                replaces=request.cookies.get(COOKIE),
                limits=settings.session_limits,
                password_given=False,
            )
        return made

    session.set_cookie(response, await run_in_threadpool(use))
    return response


@router.get("/static/{name}", **people())
def static(name: str) -> Response:
    """Give a file that pages load; its address carries a digest of it, so it may be kept."""
    data, digest = static_files().get(name, (None, ""))
    if data is None:
        raise NotFound("there is no such file")
    return Response(
        data,
        media_type=_TYPES[name.rpartition(".")[2]],
        headers={"Cache-Control": "public, max-age=31536000, immutable", "ETag": f'"{digest}"'},
    )


def _inside(back: str) -> str:
    """Where to go on to, below the console; nowhere else, whatever a link to the sign-in page says."""
    parts = urlsplit(back)
    if parts.scheme or parts.netloc or "\\" in back or not parts.path.startswith(f"{PREFIX}/"):
        return ""
    return back.removeprefix(PREFIX)
