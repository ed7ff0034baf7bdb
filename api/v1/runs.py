"""Training runs: asked for here or by the line's own trigger, done by workers.

Asking for a run writes its row and its first job in one transaction; nothing trains in this process.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import Response
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import CurrentUser, Id, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.views import Reason, Request, View, shown_as
from registry import db, lines, runs

router = guarded_router(tag="Runs")

Strategy = Literal[
    "full", "auto", "warm", "replay", "derpp", "gdumb", "lwf", "ewc", "interpolate", "analytic", "finetune"
]


class NewRun(Request):
    """A wish for a new model."""

    model_config = shown_as(examples.NEW_RUN)

    reason: Reason
    strategy: Strategy | None = Field(
        default=None,
        description="`full`: from nothing; `warm`: from the champion on every case; `replay`: on new cases with past "
        "ones mixed in; the others, for comparison and for small memories, are in docs/protocol.md. Left out: what the "
        "protocol says.",
    )


class RunView(View):
    """One turn of learning: freeze a dataset version, train, measure against the gates."""

    model_config = shown_as(examples.RUN)

    run_id: int
    protocol_id: int
    strategy: Strategy
    seed: int
    requested_by: int | None = Field(description="The user who asked; null: the line's own trigger")
    reason: str
    dataset_version_id: int | None = Field(description="Known once frozen")
    base_candidate_id: int | None = Field(description="The champion it started from; null: from nothing")
    state: Literal["freezing", "training", "gating", "finished", "refused", "failed", "cancelled"]
    outcome: str | None = Field(description="In words, where it ended without a candidate")
    progress: dict[str, Any]
    created_at: datetime
    history: list[dict[str, Any]] = Field(description="One row per epoch, as measured on `tune`")
    finished_at: datetime | None


@router.post(
    "/lines/{line}/runs",
    status_code=201,
    response_model=RunView,
    summary="Start a run",
    response_description="Accepted; a worker takes it up",
    **allow("reviewer", "operator", problems=(*PROBLEMS, "not-found", "run-in-progress")),
)
def start_run(user: CurrentUser, pool: Pool, key: OptionalKey, line: str, run: NewRun) -> Response:
    """Ask for a new model from what is confirmed so far.

    A line learns one step at a time: a second run is refused until the first ends. Who asks for a run cannot sign its
    candidate.
    """

    def work(connection: db.Connection) -> RunView:
        line_id = lines.get_line(connection, line).line_id
        row = runs.start_run(connection, line_id=line_id, requested_by=user, reason=run.reason, strategy=run.strategy)
        return RunView.model_validate(row)

    return once(pool, user=user, key=key, request=f"run {line} {run.model_dump_json()}", work=work)


@router.get("/lines/{line}/runs", summary="List runs", **allow(*ANYONE, problems=("not-found",)))
def list_runs(pool: Pool, line: str) -> list[RunView]:
    """List a line's last 100 runs, newest first."""
    with db.transaction(pool) as connection:
        rows = runs.list_runs(connection, lines.get_line(connection, line).line_id)
    return [RunView.model_validate(row) for row in rows]


@router.get("/runs/{run_id}", summary="Watch a run", **allow(*ANYONE, problems=("not-found",)))
def read_run(pool: Pool, run_id: Id) -> RunView:
    """Read a run with its live progress and learning curve. Ask again every second or so while it is unfinished."""
    with db.transaction(pool) as connection:
        return RunView.model_validate(runs.get(connection, run_id))


@router.post(
    "/runs/{run_id}/cancel",
    summary="Cancel a run",
    **allow("reviewer", "operator", problems=("not-found", "state-moved")),
)
def cancel_run(user: CurrentUser, pool: Pool, run_id: Id) -> RunView:
    """Stop an unfinished run. Its worker notices within seconds; nothing it made is kept as a candidate."""
    with db.transaction(pool) as connection:
        return RunView.model_validate(runs.cancel(connection, run_id=run_id, actor=user))
