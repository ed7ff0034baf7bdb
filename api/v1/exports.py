"""Taking a case or a candidate away, with proofs that hold without the service: what `overread export` writes.

It rests on the newest checkpoint that the service has signed; the key that signs is not in this process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Response

from api.auth import allow, guarded_router
from api.dependencies import CurrentUser, Id, Pool, Settings
from api.settings import ApiSettings
from api.v1 import examples
from api.v1.views import Reason, Request, shown_as
from registry import audit, bundle, candidates, checkpoints, db, lines
from registry.bundle import Contents
from registry.errors import NotSignedYet
from registry.notes import Verifier
from registry.users import User

router = guarded_router(tag="Audit")

MEDIA_TYPE = "application/x-tar"
_BUNDLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A bundle", "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}
_WAIT = "nothing is signed yet that holds it; a checkpoint is signed every minute. Try again in one"


class Export(Request):
    """Why something is taken away."""

    model_config = shown_as(examples.EXPORT)

    reason: Reason


@router.post(
    "/cases/{case_id}/export",
    response_class=Response,
    summary="Export a case",
    **allow("operator", "auditor", problems=("not-found", "not-signed-yet", "note-refused"), answers=_BUNDLE),
)
def export_case(user: CurrentUser, pool: Pool, settings: Settings, case_id: Id, wish: Export) -> Response:
    """Write what the record knows of a case into a tar that proves itself (`overread verify FILE --key VERIFIER`).

    It holds the rows and events up to the newest checkpoint, with proofs, and no image. It names no patient beyond the
    keyed pseudonym. That it was made, by whom and why, goes into the audit trail first.
    """

    def find(connection: db.Connection, up_to: int) -> Contents:
        return bundle.of_case(connection, case_id, up_to=up_to)

    return _export(find, "export:case", name=f"case-{case_id}", user=user, pool=pool, settings=settings, wish=wish)


@router.post(
    "/candidates/{candidate_id}/export",
    response_class=Response,
    summary="Export a candidate",
    **allow("operator", "auditor", problems=("not-found", "not-signed-yet", "note-refused"), answers=_BUNDLE),
)
def export_candidate(user: CurrentUser, pool: Pool, settings: Settings, candidate_id: Id, wish: Export) -> Response:
    """Write a candidate's evidence, signatures, conversation and events into a tar that proves itself."""
    with db.transaction(pool) as connection:
        found = candidates.get(connection, candidate_id)
        line = lines.line_by_id(connection, found.line_id).name

    def find(connection: db.Connection, up_to: int) -> Contents:
        return bundle.of_candidate(connection, line=line, number=found.number, up_to=up_to)

    name = f"{line}-{found.number}"
    return _export(find, "export:candidate", name=name, user=user, pool=pool, settings=settings, wish=wish)


def _export(
    find: Callable[[db.Connection, int], Contents],
    action: str,
    *,
    name: str,
    user: User,
    pool: db.Pool,
    settings: ApiSettings,
    wish: Export,
) -> Response:
    note = checkpoints.newest_note(settings.checkpoints)
    if note is None or not settings.verifier_key.exists():
        raise NotSignedYet(_WAIT)
    verifier = Verifier.parse(settings.verifier_key.read_text(encoding="utf-8"))
    size = verifier.opened(note).size
    with db.transaction(pool) as connection:
        contents = find(connection, size)
        if not contents.events:
            raise NotSignedYet(_WAIT)
        details = {"by": user.name, "reason": wish.reason, "files": False, "checkpoint": size}
        audit.record(connection, actor=user.name, action=action, subject=contents.subject, details=details)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle.tar"
        with db.transaction(pool) as connection:
            bundle.write(connection, path, contents=contents, note=note, verifier=verifier)
        data = path.read_bytes()
    headers = {"Content-Disposition": f'attachment; filename="{name}.tar"', "Cache-Control": "no-store"}
    return Response(data, media_type=MEDIA_TYPE, headers=headers)
