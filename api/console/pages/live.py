"""What keeps the live parts of pages as they are: one address for all of them (`api.live`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from api.auth import ANYONE, COOKIE
from api.console.frame import HEADERS
from api.console.route import pages_router, people
from api.dependencies import CurrentCaller
from api.live import Live
from registry import changes
from registry.errors import Invalid

router = pages_router()


@router.get("/live", **people(*ANYONE))
async def follow(
    *,
    request: Request,
    caller: CurrentCaller,
    of: Annotated[str, Query(max_length=40)],
    mark: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """Tell a page when what it shows of a subject (`run/17`) is no longer what it was made with.

    `changed`: ask for the page again; `ended`: the session is over; `later`: come back in a while.
    """
    if caller.signed_in_seconds is None:
        raise Invalid("pages follow for people who have signed in; a program asks again, GET /v1/runs/{run_id}")
    try:
        changes.split(of)
    except ValueError as error:
        raise Invalid(str(error)) from None
    live: Live = request.app.state.live
    token = request.cookies[COOKIE]
    return live.follow(user_id=caller.user.user_id, token=token, subject=of, mark=mark, headers=HEADERS)
