"""Where everyone starts: each line, and what on it waits for this person."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response

from api.auth import ANYONE
from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Pool
from registry import adjudications, amendments, candidates, comments, db, lines, promotions, runs, watches, worklists
from registry.amendments import Amendment
from registry.candidates import Candidate
from registry.lines import Line
from registry.runs import Run
from registry.worklists import Worklist

router = pages_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A line, and what on it waits for people."""

    line: Line
    title: str
    champion: Candidate | None
    worklist: Worklist | None
    first_unread: bool
    discordances: int
    to_sign: list[Candidate]
    amendments: list[Amendment]
    asked: set[int]
    alarm: bool
    run: Run | None


@router.get("", **people(*ANYONE))
def home(request: Request, pool: Pool, user: CurrentUser) -> Response:
    """Show every line with the work that a person may do on it."""
    with db.transaction(pool) as connection:
        asked = comments.asked_of(connection, user_id=user.user_id)
        found = [_waiting(connection, line, asked=asked) for line in lines.list_lines(connection)]
    return page(request, "home.html", waiting=found)


def _waiting(connection: db.Connection, line: Line, *, asked: set[int]) -> Waiting:
    latest = runs.list_runs(connection, line.line_id, limit=1)
    champion = promotions.champion(connection, line.line_id)
    looked = watches.list_for_line(connection, line.line_id, limit=1)
    return Waiting(
        line=line,
        title=lines.current_protocol(connection, line.line_id).document.get("title") or line.name,
        champion=champion,
        worklist=worklists.latest(connection, line.line_id),
        first_unread=bool(worklists.entries(connection, line_id=line.line_id, limit=1)),
        discordances=adjudications.count_discordances(connection, line.line_id),
        to_sign=candidates.in_state(connection, line.line_id, state="gates_passed"),
        amendments=[one for one in amendments.list_for_line(connection, line.line_id) if one.state == "proposed"],
        asked=asked,
        alarm=any(champion and (one.candidate_id, one.verdict) == (champion.candidate_id, "alarm") for one in looked),
        run=latest[0] if latest else None,
    )
