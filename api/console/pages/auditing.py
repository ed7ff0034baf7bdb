"""For auditors: everything that was changed and who looked at what, searched; and whether the trail is whole."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import Pool
from registry import audit, db, reads

router = pages_router()

PER_PAGE = 100
MOST_VERIFIED = 200_000
"""Events that are worked through while somebody waits for a page; `overread verify` takes its time."""

Text = Annotated[str, Query(max_length=200)]


@router.get("/audit", **people("auditor"))
def show_trail(
    *,
    request: Request,
    pool: Pool,
    actor: Text = "",
    action: Text = "",
    subject: Text = "",
    before: int | None = None,
    verify: bool = False,
) -> Response:
    """Search the audit trail, newest first; work it through if asked."""
    asked = {"actor": actor.strip(), "action": action.strip(), "subject": subject.strip()}
    with db.transaction(pool) as connection:
        found = audit.find_events(
            connection, before=before, limit=PER_PAGE, **{name: value or None for name, value in asked.items()}
        )
        verified = _verify(connection) if verify else None
    return page(request, "audit.html", asked=asked, found=found, full=len(found) == PER_PAGE, verified=verified)


@router.get("/reads", **people("auditor"))
def show_reads(request: Request, pool: Pool, case: int | None = None, after: int = 0) -> Response:
    """Show who looked at what, of one case if asked."""
    with db.transaction(pool) as connection:
        found = reads.list_reads(connection, after=max(0, after), limit=PER_PAGE, case_id=case)
    return page(request, "reads.html", case=case, found=found, full=len(found) == PER_PAGE)


def _verify(connection: db.Connection) -> tuple[bool, str]:
    newest = audit.find_events(connection, limit=1)
    count = newest[0].audit_event_id if newest else 0
    if count > MOST_VERIFIED:
        return False, f"There are {count:,} events, too many to wait for: run `overread verify` on the machine."
    broken = audit.first_broken(connection)
    if broken is not None:
        return False, f"The trail is damaged: event {broken} does not follow the one before it."
    seen = reads.first_broken(connection)
    if seen is not None:
        return False, f"The log of looks is damaged: something between look {seen[0]} and {seen[1]} has changed."
    return True, f"{count:,} events, each chained to the one before; the log of looks fits every seal."
