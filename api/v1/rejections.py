"""Rejecting what a model said, by whoever was shown it and does not know what it is instead."""

from __future__ import annotations

from datetime import datetime

from fastapi import Response
from pydantic import Field

from api.auth import allow, guarded_router
from api.dependencies import CurrentUser, Id, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.views import Request, View, shown_as
from registry import db, rejections

router = guarded_router(tag="Predictions")


class NewRejection(Request):
    """A rejection, with a word about it if the reader likes."""

    model_config = shown_as(examples.NEW_REJECTION)

    reason: str | None = Field(
        default=None, min_length=1, max_length=2000, description="No names of patients: it is kept for ever"
    )


class RejectionView(View):
    """What one reader rejected."""

    model_config = shown_as(examples.REJECTION)

    rejection_id: int
    prediction_id: int
    case_id: int
    printed_name: str
    decision: str = Field(description="What the model had said")
    reason: str | None
    created_at: datetime


@router.post(
    "/predictions/{prediction_id}/rejection",
    status_code=201,
    response_model=RejectionView,
    summary="Reject a prediction",
    response_description="Rejected; it is safe on disk",
    **allow("submitter", "reviewer", problems=(*PROBLEMS, "not-found", "invalid", "already-exists")),
)
def reject(user: CurrentUser, pool: Pool, key: OptionalKey, prediction_id: Id, wish: NewRejection) -> Response:
    """Reject what the model said of a case, without saying what it is.

    It is no confirmation: the case goes on waiting for one, and no model learns from it. Who knows what it is confirms
    that instead. Refused to whoever was not shown the prediction.
    """

    def work(connection: db.Connection) -> RejectionView:
        row = rejections.reject(connection, prediction_id=prediction_id, actor=user, reason=wish.reason)
        return RejectionView.model_validate(row)

    return once(pool, user=user, key=key, request=f"reject {prediction_id} {wish.model_dump_json()}", work=work)
