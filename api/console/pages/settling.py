"""Where readers differ: what each of them said, side by side, and a reviewer's decision over it in their own name."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Form, Request, Response

from api.console import forms
from api.console.frame import page
from api.console.pages.reading import look
from api.console.route import pages_router, people
from api.dependencies import CurrentReader, Id, Pool, Reader
from api.v1 import adjudications
from api.v1.adjudications import NewAdjudication
from registry import db
from registry.errors import Invalid
from registry.findings import JOIN

router = pages_router()

PER_PAGE = 50
UNANSWERABLE = "-"
"""What the form sends for a case that cannot be answered; no class is called so."""


@router.get("/lines/{line}/discordances", **people("reviewer"))
def show_discordances(request: Request, reader: CurrentReader, pool: Pool, line: str, after: int = 0) -> Response:
    """List the cases that need a decision, the longest waiting first."""
    found = adjudications.list_discordances(reader, pool, line, max(0, after), PER_PAGE)
    return page(request, "discordances.html", line=line, found=found, full=len(found) == PER_PAGE)


@router.get("/cases/{case_id}/settle", **people("reviewer"))
def show_settling(request: Request, reader: CurrentReader, pool: Pool, case_id: Id) -> Response:
    """Show what stands about a case, and ask for a decision."""
    return _show(request, reader, pool, case_id)


@router.post("/cases/{case_id}/settle", **people("reviewer"))
def settle(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    case_id: Id,
    key: forms.Key,
    finding: Annotated[list[str], Form()] = [],  # noqa: B006 - FastAPI copies it
    reason: Annotated[str, Form()] = "",
    last_seen: Annotated[int, Form()] = 0,
) -> Response:
    """Decide over all that was said about a case."""
    said = JOIN.join(finding)

    def work() -> str:
        with db.transaction(pool) as connection:
            seen = look(connection, case_id, reader=reader.user)
        if not said:
            raise Invalid("choose what it is, or that it cannot be answered")
        if UNANSWERABLE in finding and len(finding) > 1:
            raise Invalid("either it cannot be answered, or it is what is ticked")
        wish = forms.asked(
            NewAdjudication,
            finding=None if said == UNANSWERABLE else said,
            ai_exposure=seen.exposure,
            reason=reason,
            last_seen=last_seen,
        )
        adjudications.adjudicate(reader.user, pool, key, case_id, wish)
        return f"/lines/{seen.line.name}/discordances"

    typed = {"finding": said, "reason": reason}
    return forms.done(work, again=lambda refused: _show(request, reader, pool, case_id, refused=refused, typed=typed))


def _show(
    request: Request,
    reader: Reader,
    pool: db.Pool,
    case_id: int,
    *,
    refused: dict[str, Any] | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    with db.transaction(pool) as connection:
        seen = look(connection, case_id, reader=reader.user)
        reader.sees(connection, "case:read", case_id=case_id, line_id=seen.line.line_id)
    return page(
        request,
        "settle.html",
        seen=seen,
        line=seen.line.name,
        standing=[row for row in seen.answers if row.superseded_by is None and row.kind != "retraction"],
        last_seen=seen.answers[-1].confirmation_id if seen.answers else 0,
        unanswerable=UNANSWERABLE,
        refused=refused,
        typed=typed or {"finding": "", "reason": ""},
    )
