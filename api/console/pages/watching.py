"""The champion in use, at a glance: what it is watched by, what was promised of it and what was seen, and an alarm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from api.auth import ANYONE
from api.console import trends
from api.console.charts import Chart
from api.console.frame import live, page
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Pool
from registry import candidates, db, disclosure, lines, promotions, watches
from registry.candidates import Candidate
from registry.findings import are_several
from registry.lines import Line
from registry.promotions import Promotion
from registry.users import User
from registry.watches import Promised, Watch

router = pages_router()

LOOKS = 60
"""Newest looks that are drawn and listed; `overread line monitoring` tells of more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitored:
    """What the page shows; `rule` is what the protocol in force has watched, None: nobody.

    `tolerance` is that of the protocol under which the newest look was. `shadow` is what somebody may see of the
    challenger; `hidden` says that there is something which they may not.
    """

    champion: Candidate | None
    reign: Promotion | None
    rule: Mapping[str, Any] | None
    several: bool
    """Whether these are several findings, which nobody can have watched yet."""
    blind_fraction: float
    promised: Promised | None
    newest: Watch | None
    tolerance: float | None
    looks: list[Watch]
    charts: list[Chart]
    challenger: Candidate | None
    shadow: Mapping[str, Any] | None
    hidden: bool


@router.get("/lines/{line}/monitoring", **people(*ANYONE))
def show_monitoring(request: Request, pool: Pool, user: CurrentUser, line: str) -> Response:
    """Show how a line's champion does in use."""
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        follow = live(connection, f"line/{row.line_id}", address=f"/console/lines/{line}/monitoring")
        shown = _monitored(connection, row, user=user)
    return page(request, "monitoring.html", line=line, shown=shown, live=follow)


def _monitored(connection: db.Connection, line: Line, *, user: User) -> Monitored:
    document = lines.current_protocol(connection, line.line_id).document
    champion = promotions.champion(connection, line.line_id)
    looks = watches.list_for_line(connection, line.line_id, limit=LOOKS)
    mine = [look for look in looks if champion and look.candidate_id == champion.candidate_id]
    newest = mine[0] if mine else None
    promised = watches.promised(connection, champion) if champion else None
    shadow = disclosure.watch_for(connection, newest, reader=user).shadow if newest else None
    return Monitored(
        champion=champion,
        reign=promotions.current(connection, line.line_id),
        rule=document.get("monitoring"),
        several=are_several(document),
        blind_fraction=document.get("blind_fraction") or 0.0,
        promised=promised,
        newest=newest,
        tolerance=_tolerance(connection, newest),
        looks=mine,
        charts=trends.of_watch(mine[::-1], promised=promised.risk if promised else None),
        challenger=candidates.get(connection, shadow["candidate_id"]) if shadow else None,
        shadow=shadow,
        hidden=newest is not None and newest.shadow is not None and shadow is None,
    )


def _tolerance(connection: db.Connection, newest: Watch | None) -> float | None:
    if newest is None:
        return None
    rule = lines.protocol(connection, newest.protocol_id).document.get("monitoring") or {}
    found: float | None = rule.get("tolerance")
    return found
