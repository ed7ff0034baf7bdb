"""The audit trail: every change of the record, each event chained to the one before by digest."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from api.auth import allow, guarded_router
from api.dependencies import After, Limit, Pool
from api.v1 import examples
from api.v1.views import Digest, View, shown_as
from registry import audit, db

router = guarded_router(tag="Audit")


class AuditEventView(View):
    """Who did what to what, and when by the database's clock."""

    model_config = shown_as(examples.AUDIT_EVENT)

    audit_event_id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    previous_digest: Digest
    digest: Digest


@router.get("/audit", summary="Read the audit trail", **allow("auditor"))
def list_audit_events(pool: Pool, after: After = 0, limit: Limit = 100) -> list[AuditEventView]:
    """Read events in order. Page by sending the last `audit_event_id` you got as `after`.

    Each event's digest covers the digest of the one before, so that a rewritten or missing event shows.
    """
    with db.transaction(pool) as connection:
        return [AuditEventView.model_validate(row) for row in audit.list_events(connection, after=after, limit=limit)]
