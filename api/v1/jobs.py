"""Jobs: the work behind runs and promotions, as the record owns it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import Id, Limit, LineName, Pool
from api.v1 import examples
from api.v1.views import View, shown_as
from registry import db, jobs, lines

router = guarded_router(tag="Jobs")


class JobView(View):
    """One piece of work and who holds it."""

    model_config = shown_as(examples.JOB)

    job_id: int
    kind: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    attempts: int
    maximum_attempts: int
    lease_owner: str | None = Field(description="The worker that has it")
    lease_expires_at: datetime | None = Field(description="When it is taken from that worker unless renewed")
    progress: dict[str, Any]
    cancel_requested: bool
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@router.get("/jobs", summary="List jobs", **allow(*ANYONE, problems=("not-found",)))
def list_jobs(pool: Pool, line: LineName, limit: Limit = 100) -> list[JobView]:
    """List a line's jobs, newest first."""
    with db.transaction(pool) as connection:
        rows = jobs.list_jobs(connection, line_id=lines.get_line(connection, line).line_id, limit=limit)
    return [JobView.model_validate(row) for row in rows]


@router.get("/jobs/{job_id}", summary="Read a job", **allow(*ANYONE, problems=("not-found",)))
def read_job(pool: Pool, job_id: Id) -> JobView:
    """Read the state of one job: queued, held by a worker, or ended, and with what error."""
    with db.transaction(pool) as connection:
        return JobView.model_validate(jobs.get_job(connection, job_id))
