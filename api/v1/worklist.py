"""The worklist of a line: which cases to confirm next, and why.

A worker ranks them; here the ranking is given out, without what was confirmed or erased since.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from api.auth import allow, guarded_router
from api.dependencies import CurrentReader, Limit, Pool
from api.v1 import examples
from api.v1.views import View, shown_as
from registry import candidates, db, lines, worklists

router = guarded_router(tag="Worklists")

Why = Literal["blind", "random", "uncertain", "diverse", "unlike", "coverage", "disagreement"]


class ListedCase(View):
    """A case that nobody has confirmed yet, and why it is wanted."""

    case_id: int
    place: int = Field(description="1 is wanted most. Places stay as they are until the next ranking")
    arm: Why = Field(
        description="What listed it. `blind`: to be read without the model, whose opinion is refused until the case is "
        "confirmed. `random`: at random, so that the rest can be trusted"
    )
    reason: str = Field(description="The same in words, for people", examples=["uncertain: .52 for pneumonia"])
    site: str
    scanner: str | None
    external_id: str | None
    created_at: datetime


class WorklistView(BaseModel):
    """A part of a line's worklist, most wanted first."""

    model_config = shown_as(examples.WORKLIST)

    line: str
    ranked_at: datetime | None = Field(description="null before the first ranking: the line needs some cases first")
    number: int | None = Field(description="Number of the champion whose scores were used; null: there was none")
    shares: dict[str, float] = Field(description="The share of the places that each arm was to have; they sum to 1")
    ranked: int = Field(description="Cases that were ranked")
    cases: list[ListedCase]


@router.get(
    "/lines/{line}/worklist",
    summary="List what to confirm next",
    **allow("submitter", "reviewer", problems=("not-found",)),
)
def read_worklist(
    *,
    reader: CurrentReader,
    pool: Pool,
    line: str,
    site: Annotated[str | None, Query(max_length=80, description="Only cases of this site", examples=["north"])] = None,
    reason: Annotated[Why | None, Query(description="Only cases that this arm listed")] = None,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Only places beyond this one; 0 starts at the top")
    ] = 0,
    limit: Limit = 100,
) -> WorklistView:
    """List the cases whose confirmation is worth most, with the reason for each.

    A worker makes the list anew after a promotion and whenever enough has come in or been confirmed. Page by sending
    the last `place` you got as `after`. Cases of the arms `blind` and `random` were picked by nobody: confirm them like
    the others, for what they tell holds of all cases.
    """
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        ranking = worklists.latest(connection, row.line_id)
        found = worklists.entries(connection, line_id=row.line_id, after=after, limit=limit, site=site, arm=reason)
        if found:
            reader.sees(connection, "worklist:read", line_id=row.line_id, cases=len(found), first=found[0].case_id)
        asked = ranking and ranking.candidate_id
        number = candidates.get(connection, asked).number if asked else None
    return WorklistView(
        line=line,
        ranked_at=ranking.ranked_at if ranking else None,
        number=number,
        shares=ranking.shares if ranking else {},
        ranked=ranking.ranked if ranking else 0,
        cases=[ListedCase.model_validate(entry) for entry in found],
    )
