"""Moving the champion role: promotion and roll back, each one transaction in the record.

The caller says which champion it believes it replaces; where that is no longer so, nothing happens (compare-and-set).
MLflow's aliases and the inference process follow within seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import Response
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import CurrentUser, Id, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.views import Reason, Request, View, shown_as
from registry import db, lines, promotions

router = guarded_router(tag="Promotions")

_MOVED = ("not-found", "champion-moved")


class Promote(Request):
    """The wish to make a candidate champion."""

    model_config = shown_as(examples.PROMOTE)

    expected_champion: int | None = Field(
        description="`candidate_id` of the champion as you saw it, null for a line without one"
    )
    reason: Reason


class RollBack(Request):
    """The wish to return to the champion before this one."""

    model_config = shown_as(examples.ROLL_BACK)

    expected_champion: int = Field(description="`candidate_id` of the champion as you saw it")
    reason: Reason


class PromotionView(View):
    """Who was champion, from when to when."""

    model_config = shown_as(examples.PROMOTION)

    promotion_id: int
    candidate_id: int
    kind: Literal["promotion", "roll_back"]
    replaced_candidate_id: int | None
    gate_report_id: int | None = Field(description="The evidence; null for a roll back")
    bound_digest: str | None = Field(description="What the signatures were bound to; null for a roll back")
    reason: str
    promoted_by: int
    promoted_at: datetime
    ended_at: datetime | None = Field(description="null: the champion now")


@router.post(
    "/candidates/{candidate_id}/promotion",
    status_code=201,
    response_model=PromotionView,
    summary="Promote a candidate",
    response_description="It is champion now",
    **allow(
        "approver", problems=(*PROBLEMS, *_MOVED, "gate-not-passed", "approval-missing", "approval-void", "state-moved")
    ),
)
def promote(user: CurrentUser, pool: Pool, key: OptionalKey, candidate_id: Id, wish: Promote) -> Response:
    """Make a candidate the champion of its line.

    Done only if its gate report passed under the current protocol against the current champion, and enough distinct
    people approved exactly that. There is no way to force it.
    """

    def work(connection: db.Connection) -> PromotionView:
        row = promotions.promote(
            connection,
            candidate_id=candidate_id,
            expected_champion_id=wish.expected_champion,
            actor=user,
            reason=wish.reason,
        )
        return PromotionView.model_validate(row)

    return once(pool, user=user, key=key, request=f"promote {candidate_id} {wish.model_dump_json()}", work=work)


@router.get("/lines/{line}/promotions", summary="List promotions", **allow(*ANYONE, problems=("not-found",)))
def list_promotions(pool: Pool, line: str) -> list[PromotionView]:
    """List who was champion of a line, from when to when, newest first."""
    with db.transaction(pool) as connection:
        rows = promotions.history(connection, lines.get_line(connection, line).line_id)
    return [PromotionView.model_validate(row) for row in rows]


@router.post(
    "/lines/{line}/roll-back",
    status_code=201,
    response_model=PromotionView,
    summary="Roll back",
    response_description="The earlier champion is champion again",
    **allow("approver", "operator", problems=(*PROBLEMS, *_MOVED, "nothing-to-roll-back-to")),
)
def roll_back(user: CurrentUser, pool: Pool, key: OptionalKey, line: str, wish: RollBack) -> Response:
    """Return to the champion that the current one replaced. No new signatures: that one was approved before."""

    def work(connection: db.Connection) -> PromotionView:
        row = promotions.roll_back(
            connection,
            line_id=lines.get_line(connection, line).line_id,
            expected_champion_id=wish.expected_champion,
            actor=user,
            reason=wish.reason,
        )
        return PromotionView.model_validate(row)

    return once(pool, user=user, key=key, request=f"roll back {line} {wish.model_dump_json()}", work=work)
