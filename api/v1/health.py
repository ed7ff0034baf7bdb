"""Is the process alive, and can it do its work? Open to everyone; says nothing that an outsider should not know."""

from __future__ import annotations

from typing import Literal

import psycopg
from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.dependencies import Inference, Pool
from registry import db

router = APIRouter(prefix="/health", tags=["Health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """What the process needs, and whether it is there."""

    status: Literal["ok", "not ready"]
    record: bool
    inference: bool


@router.get("/live", summary="Is the process alive?")
async def live() -> Live:
    """Answer as long as the process can answer at all, though every thread waits. Restart it where this fails."""
    return Live()


@router.get(
    "/ready", summary="Can it do its work?", responses={503: {"model": Ready, "description": "Something is missing"}}
)
def ready(pool: Pool, inference: Inference, response: Response) -> Ready:
    """Say whether database and inference process are reachable. Send no requests where this fails; do not restart."""
    answer = Ready(status="ok", record=_record_answers(pool), inference=inference.is_healthy())
    if answer.record and answer.inference:
        return answer
    response.status_code = 503
    return answer.model_copy(update={"status": "not ready"})


def _record_answers(pool: Pool) -> bool:
    try:
        with db.transaction(pool) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:  # PoolTimeout is one
        return False
    return True
