"""For operators: what answers, what waits, what broke, and who holds which work."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from api.console import words
from api.console.frame import live, page
from api.console.route import pages_router, people
from api.dependencies import Inference, Pool
from registry import db, jobs, lines

router = pages_router()

PER_PAGE = 100


@router.get("/operations", **people("operator"))
def operations(
    request: Request, pool: Pool, inference: Inference, state: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """Show the health of what can be seen from here, and the queue."""
    answers = inference.is_healthy()
    with db.transaction(pool) as connection:
        follow = live(connection, "jobs/0", address=f"/console/operations?{urlencode({'state': state})}")
        known = {line.line_id: line for line in lines.list_lines(connection)}
        queue = jobs.summary(connection)
        found = jobs.list_jobs(connection, states=[state] if state in words.JOB_STATES else None, limit=PER_PAGE)
    return page(
        request,
        "operations.html",
        inference=answers,
        queue=queue,
        jobs=found,
        lines=known,
        state=state,
        live=follow,
    )
