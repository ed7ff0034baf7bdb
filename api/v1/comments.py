"""What people say to each other about a candidate, and whom they ask to sign it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Response
from pydantic import Field

from api.auth import allow, guarded_router
from api.dependencies import CurrentUser, Id, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.views import Request, View, shown_as
from registry import candidates, comments, db
from registry.errors import Forbidden

router = guarded_router(tag="Candidates")


class NewComment(Request):
    """Something to say about a candidate, or somebody to ask for a signature."""

    model_config = shown_as(examples.NEW_COMMENT)

    text: Annotated[str, Field(max_length=2000)] = Field(
        default="", description="No names of patients: it is kept for ever. May be empty where somebody is asked"
    )
    asks: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="Name of a user who is asked to sign; one of those who still may"
    )


class CommentView(View):
    """What one person said."""

    model_config = shown_as(examples.COMMENT)

    comment_id: int
    candidate_id: int
    printed_name: str
    text: str
    asks: str | None = Field(description="Name of the user who is asked to sign; null: nobody")
    created_at: datetime


class SignerView(View):
    """Somebody who may still sign a candidate."""

    model_config = shown_as(examples.SIGNER)

    name: str
    printed_name: str


@router.get(
    "/candidates/{candidate_id}/comments",
    summary="Read the conversation",
    **allow("reviewer", "approver", "auditor", problems=("not-found",)),
)
def list_comments(user: CurrentUser, pool: Pool, candidate_id: Id) -> list[CommentView]:
    """List what was said about a candidate, oldest first. It is open to those who may read the gate report."""
    with db.transaction(pool) as connection:
        candidate = candidates.get(connection, candidate_id)
        if not comments.may_read(connection, candidate, reader=user):
            raise Forbidden(f"the report on candidate {candidate.number} is not open to {user.name} yet")
        return [CommentView.model_validate(row) for row in comments.list_for_candidate(connection, candidate_id)]


@router.post(
    "/candidates/{candidate_id}/comments",
    status_code=201,
    response_model=CommentView,
    summary="Comment on a candidate",
    response_description="Said; it is kept as it is",
    **allow("reviewer", "approver", problems=(*PROBLEMS, "not-found", "invalid")),
)
def comment(user: CurrentUser, pool: Pool, key: OptionalKey, candidate_id: Id, wish: NewComment) -> Response:
    """Say something about a candidate in your own name, or ask somebody to sign it. Nothing said is taken back.

    Refused to whoever may not read its gate report yet, for what is said may hold what was measured.
    """

    def work(connection: db.Connection) -> CommentView:
        row = comments.add(connection, candidate_id=candidate_id, author=user, text=wish.text, asks=wish.asks)
        return CommentView.model_validate(row)

    asked = f"comment {candidate_id} {wish.model_dump_json()}"
    return once(pool, user=user, key=key, request=asked, work=work)


@router.get(
    "/candidates/{candidate_id}/signers",
    summary="List who may still sign",
    **allow("reviewer", "approver", "operator", "auditor", problems=("not-found",)),
)
def list_signers(pool: Pool, candidate_id: Id) -> list[SignerView]:
    """List the people who may sign a candidate as it is now and have not."""
    with db.transaction(pool) as connection:
        found = comments.may_still_sign(connection, candidates.get(connection, candidate_id))
    return [SignerView.model_validate(person) for person in found]
