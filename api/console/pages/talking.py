"""The conversation about a candidate: something said, or somebody asked to sign."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request, Response

from api.console import forms
from api.console.pages.reviewing import show_review
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Id, Pool
from api.v1 import comments

router = pages_router()


@router.post("/candidates/{candidate_id}/comment", **people("reviewer", "approver"))
def comment(
    *,
    request: Request,
    pool: Pool,
    user: CurrentUser,
    candidate_id: Id,
    key: forms.Key,
    text: Annotated[str, Form()] = "",
    asks: Annotated[str, Form()] = "",
) -> Response:
    """Say something about a candidate, or ask somebody to sign it."""

    def work() -> str:
        wish = forms.asked(comments.NewComment, text=text, asks=asks or None)
        comments.comment(user, pool, key, candidate_id, wish)
        return f"/candidates/{candidate_id}#conversation"

    return forms.done(
        work, again=lambda refused: show_review(request, pool, user, candidate_id, refused=refused, said=text)
    )
