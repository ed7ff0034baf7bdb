"""For operators and auditors: a case or a candidate taken away in a file that proves itself."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Form, Query, Request, Response

from api.console import forms
from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Pool, Settings
from api.v1 import exports
from registry.errors import Invalid

router = pages_router()

Id = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


@router.get("/export", **people("operator", "auditor"))
def show_export(request: Request, settings: Settings, case: Id = None, candidate: Id = None) -> Response:
    """Ask what is to be taken away, and why."""
    return _show(request, settings, what="candidate" if candidate else "case", number=str(candidate or case or ""))


@router.post("/export", **people("operator", "auditor"))
def export(
    *,
    request: Request,
    user: CurrentUser,
    pool: Pool,
    settings: Settings,
    what: Annotated[str, Form()] = "",
    number: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Give the file."""
    try:
        made = {"case": exports.export_case, "candidate": exports.export_candidate}.get(what)
        if made is None or not (number.isascii() and number.isdecimal() and 0 < int(number) < 2**63):
            raise Invalid("say which: a case or a candidate, and its id, a whole number")
        return made(user, pool, settings, int(number), forms.asked(exports.Export, reason=reason))
    except forms.REFUSALS as refused:
        again: dict[str, Any] = {"what": what, "number": number, "reason": reason}
        return _show(request, settings, refused=forms.refusal(refused), **again)


def _show(
    request: Request,
    settings: Settings,
    *,
    what: str,
    number: str,
    reason: str = "",
    refused: dict[str, Any] | None = None,
) -> Response:
    key = settings.verifier_key
    verifier = key.read_text(encoding="utf-8").strip() if key.exists() else None
    typed = {"what": what, "number": number, "reason": reason}
    return page(request, "export.html", typed=typed, verifier=verifier, refused=refused)
