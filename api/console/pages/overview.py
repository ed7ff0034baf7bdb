"""A line at a glance: who answers on it, what it learns, what it waits for; and asking for a run, or for a pause."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import Annotated, Any

from fastapi import Form, Request, Response

from api.auth import ANYONE
from api.console import forms, trends, words
from api.console.charts import Chart
from api.console.frame import live, page
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Id, Pool
from api.v1 import runs as runs_api
from registry import (
    adjudications,
    candidates,
    datasets,
    db,
    jobs,
    lines,
    promotions,
    rejections,
    runs,
    users,
    watches,
    worklists,
)
from registry.candidates import Candidate
from registry.datasets import DatasetVersion
from registry.lines import Line, StoredProtocol
from registry.promotions import Promotion
from registry.runs import Run
from registry.watches import Watch
from registry.worklists import Worklist

router = pages_router()

SHOWN = 10
MOST_REIGNS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a line's page shows; `versions` are the numbers of dataset versions by id, `watched` the newest look."""

    line: Line
    protocol: StoredProtocol
    champion: Candidate | None
    reign: Promotion | None
    trigger: dict[str, Any]
    runs: list[Run]
    candidates: list[Candidate]
    versions: dict[int, int]
    newest: DatasetVersion | None
    worklist: Worklist | None
    waiting: int
    discordances: int
    rejected: int
    watched: Watch | None
    trends: list[Chart]


@router.get("/lines/{line}", **people(*ANYONE))
def show_line(request: Request, pool: Pool, line: str) -> Response:
    """Show a line."""
    return _show(request, pool, line)


@router.post("/lines/{line}/run", **people("reviewer", "operator"))
def start_run(
    *,
    request: Request,
    user: CurrentUser,
    pool: Pool,
    line: str,
    key: forms.Key,
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Ask for a new model from what is confirmed so far."""

    def work() -> str:
        wish = forms.asked(runs_api.NewRun, reason=reason)
        return f"/runs/{forms.answer_of(runs_api.start_run(user, pool, key, line, wish))['run_id']}"

    return forms.done(work, again=lambda refused: _show(request, pool, line, refused=refused, reason=reason))


@router.post("/lines/{line}/pause", **people("operator"))
def pause(
    *,
    request: Request,
    user: CurrentUser,
    pool: Pool,
    line: str,
    reason: Annotated[str, Form()] = "",
    paused: Annotated[bool, Form()] = True,
) -> Response:
    """Keep a line from starting runs by itself, or let it again."""

    def work() -> str:
        with db.transaction(pool) as connection:
            line_id = lines.get_line(connection, line).line_id
            lines.pause(connection, line_id=line_id, paused=paused, reason=reason, actor=user)
        return f"/lines/{line}"

    return forms.done(work, again=lambda refused: _show(request, pool, line, refused=refused, reason=reason))


@router.get("/runs/{run_id}", **people(*ANYONE))
def show_run(request: Request, pool: Pool, run_id: Id) -> Response:
    """Show a run, as it goes."""
    return _show_run(request, pool, run_id)


@router.post("/runs/{run_id}/stop", **people("reviewer", "operator"))
def stop_run(request: Request, user: CurrentUser, pool: Pool, run_id: Id) -> Response:
    """Stop an unfinished run."""

    def work() -> str:
        runs_api.cancel_run(user, pool, run_id)
        return f"/runs/{run_id}"

    return forms.done(work, again=lambda refused: _show_run(request, pool, run_id, refused=refused))


def _show(
    request: Request, pool: db.Pool, name: str, *, refused: dict[str, Any] | None = None, reason: str = ""
) -> Response:
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, name)
        follow = live(connection, f"line/{row.line_id}", address=f"/console/lines/{name}")
        overview = _overview(connection, row)
    return page(
        request,
        "line.html",
        line=name,
        shown=overview,
        live=follow,
        refused=refused,
        reason=reason,
    )


def _overview(connection: db.Connection, line: Line) -> Overview:
    versions = datasets.list_versions(connection, line.line_id)
    champion = promotions.champion(connection, line.line_id)
    return Overview(
        line=line,
        protocol=lines.current_protocol(connection, line.line_id),
        champion=champion,
        reign=promotions.current(connection, line.line_id),
        trigger=runs.next_trigger(connection, line.line_id),
        runs=runs.list_runs(connection, line.line_id, limit=SHOWN),
        candidates=candidates.list_candidates(connection, line.line_id)[:SHOWN],
        versions={version.dataset_version_id: version.number for version in versions},
        newest=versions[0] if versions else None,
        worklist=worklists.latest(connection, line.line_id),
        waiting=worklists.count(connection, line_id=line.line_id, most=words.MOST_COUNTED),
        discordances=adjudications.count_discordances(connection, line.line_id),
        watched=_watched(connection, line, champion),
        rejected=rejections.count_of_candidate(connection, champion.candidate_id) if champion else 0,
        trends=trends.of_line(_reigns(connection, line.line_id)),
    )


def _watched(connection: db.Connection, line: Line, champion: Candidate | None) -> Watch | None:
    if champion is None:
        return None
    return watches.latest(connection, line_id=line.line_id, candidate_id=champion.candidate_id)


def _reigns(connection: db.Connection, line_id: int) -> list[trends.Reign]:
    """The champions of a line by promotion, the first one first; who was brought back is not told of twice."""
    found = []
    for one in reversed(promotions.history(connection, line_id)):
        report = candidates.latest_report(connection, one.candidate_id)
        if one.kind == "promotion" and report is not None:
            number = candidates.get(connection, one.candidate_id).number
            since = one.promoted_at.astimezone(UTC)
            found.append(trends.Reign(number=number, since=since, results=report.document.get("results", ())))
    return found[-MOST_REIGNS:]


def _show_run(request: Request, pool: db.Pool, run_id: int, *, refused: dict[str, Any] | None = None) -> Response:
    with db.transaction(pool) as connection:
        follow = live(connection, f"run/{run_id}", address=f"/console/runs/{run_id}")
        run = runs.get(connection, run_id)
        steps = jobs.of_run(connection, run_id=run_id, line_id=run.line_id)
        made = candidates.of_run(connection, run_id)
        who = users.get_user(connection, run.requested_by).printed_name if run.requested_by else None
        line = lines.line_by_id(connection, run.line_id).name
    under_way = run.state in words.UNFINISHED
    measured = run.history[0] if run.history else {}
    columns = [name for name in measured if isinstance(measured[name], int | float) and name not in {"epoch", "epochs"}]
    return page(
        request,
        "run.html",
        line=line,
        run=run,
        made=made,
        who=who,
        columns=["epoch", *columns],
        charts=trends.of_run(run.history),
        jobs=steps,
        under_way=under_way,
        live=follow if under_way else None,
        refused=refused,
    )
