"""Two trails: every change of the record, each event chained to the one before by digest; and who looked at what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field

from api.auth import allow, guarded_router
from api.dependencies import After, Limit, Pool
from api.v1 import examples
from api.v1.views import Digest, View, shown_as
from registry import audit, db, reads

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


class ReadView(View):
    """One look of one user at something of a patient."""

    model_config = shown_as(examples.READ)

    read_id: int
    at: datetime
    reader: str
    action: str
    line_id: int | None
    case_id: int | None = Field(description="null: a list (`details` says of which), or an image that was not kept")
    purpose: str | None = Field(description="As the reader's `Overread-Purpose` said")
    details: dict[str, Any]


@router.get("/reads", summary="Read who looked at what", **allow("auditor"))
def list_reads(
    pool: Pool,
    after: After = 0,
    limit: Limit = 100,
    case_id: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="Only looks at this case")] = None,
) -> list[ReadView]:
    """Read in order who saw cases, heat maps and predictions. Page by sending the last `read_id` as `after`.

    Lists are one look: ask without `case_id` to find them. Each `reads:seal` of the audit trail digests a range of
    these rows, so that a changed or missing one shows.
    """
    with db.transaction(pool) as connection:
        rows = reads.list_reads(connection, after=after, limit=limit, case_id=case_id)
    return [ReadView.model_validate(row) for row in rows]
