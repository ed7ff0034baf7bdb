"""Training runs: one step of learning of one line, from the freeze of its data to a gated candidate.

A line takes one step at a time (`runs_one_unfinished_per_line`). Each step of a run asks for the next as a job in the
same transaction: freezing -> training -> gating -> finished; or it ends as refused, failed or cancelled, saying why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from registry import audit, datasets, findings, jobs, lifecycle, lines
from registry import strategy as strategies
from registry.db import Connection, constraint_means, fetch_all, fetch_known, fetch_one, fetch_value
from registry.errors import Invalid, NotFound, RunInProgress
from registry.lines import Line
from registry.users import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run; `requested_by` is None when the protocol's own trigger started it, `history` has a row per epoch."""

    run_id: int
    line_id: int
    protocol_id: int
    strategy: str
    seed: int
    requested_by: int | None
    reason: str
    dataset_version_id: int | None
    base_candidate_id: int | None
    state: str
    outcome: str | None
    progress: dict[str, Any]
    history: list[dict[str, Any]]
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Situation:
    new: int
    """Confirmations since the newest dataset version."""
    fresh: int
    """Of these, the ones since the last run that made no version; a refusal is not repeated without cause."""
    waited: timedelta
    """Since the last run, or since the line was made."""
    busy: bool


def start_run(
    conn: Connection, *, line_id: int, requested_by: User | None, reason: str, strategy: str | None = None
) -> Run:
    """Begin a run and ask for its freeze; `strategy` None means what the protocol says now (`registry.strategy`).

    Without a champion it is `full`.

    Raises RunInProgress, NotFound, Invalid for a strategy that is unknown, or cannot learn what this line asks.
    """
    protocol = lines.current_protocol(conn, line_id)
    if strategy is not None and strategy not in strategies.STRATEGIES:
        raise Invalid(f"unknown strategy {strategy!r}; it is one of {', '.join(strategies.STRATEGIES)}")
    if strategy is not None and findings.are_several(protocol.document) and strategy not in strategies.SEVERAL:
        raise Invalid(f"{strategy} cannot learn several findings; there are {', '.join(strategies.SEVERAL)}")
    has_champion = fetch_value(
        conn, "SELECT EXISTS (SELECT FROM promotions WHERE line_id = %s AND ended_at IS NULL)", (line_id,)
    )
    recipe, envelope = protocol.document["recipe"], protocol.document.get("envelope")
    chosen, because = strategies.due(conn, line_id=line_id, recipe=recipe)
    if has_champion and strategy is not None:
        chosen, because = strategy, None
    reason = reason if because is None else f"{reason}; trained {because}"
    if has_champion and envelope is not None and chosen not in envelope["strategies"]:
        raise Invalid(
            f"envelope.strategies of the protocol does not allow {chosen!r}, only {', '.join(envelope['strategies'])}; "
            "amend the protocol first"
        )
    with constraint_means(
        conn, runs_one_unfinished_per_line=RunInProgress("this line has an unfinished run; wait for it, or cancel it")
    ):
        run = fetch_one(
            conn,
            Run,
            "INSERT INTO runs (line_id, protocol_id, strategy, seed, requested_by, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s) RETURNING *",
            (
                line_id,
                protocol.protocol_id,
                chosen,
                recipe["seed"],
                None if requested_by is None else requested_by.user_id,
                reason,
            ),
        )
    assert run is not None
    _ask(conn, run, "freeze_dataset")
    audit.record(
        conn,
        actor=audit.SYSTEM if requested_by is None else requested_by.name,
        action="run:start",
        subject=f"run/{run.run_id}",
        details={"line": line_id, "strategy": chosen, "reason": reason},
    )
    return run


def attach_dataset(conn: Connection, *, run_id: int, dataset_version_id: int, base_candidate_id: int | None) -> Run:
    """Give a run its data and what it starts from, and ask for the training. Raises StateMoved, NotFound."""
    version = datasets.get(conn, dataset_version_id)
    run = _move(conn, run_id, "training")
    if version.line_id != run.line_id:
        raise Invalid(f"dataset version {dataset_version_id} is of another line than run {run_id}")
    conn.execute(
        "UPDATE runs SET dataset_version_id = %s, base_candidate_id = %s WHERE run_id = %s",
        (dataset_version_id, base_candidate_id, run_id),
    )
    _ask(conn, run, "train_candidate")
    return get(conn, run_id)


def record_progress(
    conn: Connection, *, run_id: int, progress: Mapping[str, Any], history_rows: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Show how far a run is; `history_rows` replace those of the same `epoch`, as a resumed run repeats some."""
    known = fetch_value(conn, "SELECT history FROM runs WHERE run_id = %s FOR UPDATE", (run_id,))
    if known is None:
        raise NotFound(f"there is no run {run_id}")
    by_epoch = {row.get("epoch"): dict(row) for row in [*known, *history_rows]}
    conn.execute(
        "UPDATE runs SET progress = %s, history = %s WHERE run_id = %s",
        (Jsonb(dict(progress)), Jsonb(list(by_epoch.values())), run_id),
    )


def refuse(conn: Connection, *, run_id: int, outcome: str) -> Run:
    """End a run that has nothing it may learn from, saying why in words. Raises StateMoved."""
    return _end(conn, run_id, state="refused", outcome=outcome)


def fail(conn: Connection, *, run_id: int, outcome: str) -> Run:
    """End a run that broke, saying how. Raises StateMoved."""
    return _end(conn, run_id, state="failed", outcome=outcome)


def fail_for_job(conn: Connection, *, job: jobs.Job) -> Run | None:
    """End the run of a job that failed or was cancelled for good; None where that ends no run.

    Call it with every job that `jobs.fail`, `jobs.finish_cancelled` and `jobs.reap` return, having called
    `lock_for_job` before them.
    """
    run_id = _run_of(job)
    if job.state not in {"failed", "cancelled"} or run_id is None:
        return None
    run = lock(conn, run_id)
    if run.state not in lifecycle.UNFINISHED_RUN_STATES:
        return None
    words = job.kind.replace("_", " ")
    if job.state == "cancelled":
        return _end(conn, run.run_id, state="cancelled", outcome=f"{words} was cancelled")
    return fail(conn, run_id=run.run_id, outcome=f"{words} failed, attempt {job.attempts}: {job.error}")


def cancel(conn: Connection, *, run_id: int, actor: User | None, outcome: str | None = None) -> Run:
    """Stop a run: its waiting jobs never start, its running one is told with its next heartbeat.

    `outcome` says why, in words; `actor` None means the service itself. Raises StateMoved.
    """
    name = audit.SYSTEM if actor is None else actor.name
    run = _end(conn, run_id, state="cancelled", outcome=outcome or f"cancelled by {name}", actor=actor)
    for row in conn.execute(
        "SELECT job_id FROM jobs WHERE line_id = %s AND payload ->> 'run_id' = %s AND kind NOT LIKE 'mirror%%'"
        " AND state IN ('queued', 'running')",
        (run.line_id, str(run_id)),
    ).fetchall():
        jobs.request_cancel(conn, row[0])
    return run


def move_to_gating(conn: Connection, *, run_id: int) -> Run:
    """Note that a run has its candidate. Raises StateMoved, NotFound."""
    return _move(conn, run_id, "gating")


def finish(conn: Connection, *, run_id: int, outcome: str) -> Run:
    """End a run whose candidate has been gated. Raises StateMoved."""
    return _end(conn, run_id, state="finished", outcome=outcome)


def get(conn: Connection, run_id: int) -> Run:
    """Return a run by id. Raises NotFound."""
    return fetch_known(conn, Run, "run", run_id)


def lock(conn: Connection, run_id: int) -> Run:
    """Return a run and keep others from moving it until the transaction ends. Raises NotFound.

    Who comes second goes by what the first left: a cancel must not be refused because a step has just been recorded.
    """
    return fetch_known(conn, Run, "run", run_id, lock=True)


def lock_for_job(conn: Connection, *, job: jobs.Job, wait: bool = True) -> bool:
    """Lock the run that ends with this job, if one does, before the job itself is changed.

    Runs before jobs, everywhere: who cancels a run goes on to its jobs. False, with `wait` false only: somebody else
    has the run just now.
    """
    run_id = _run_of(job)
    if run_id is None:
        return True
    if wait:
        lock(conn, run_id)
        return True
    query: LiteralString = "SELECT run_id FROM runs WHERE run_id = %s FOR NO KEY UPDATE SKIP LOCKED"
    return fetch_value(conn, query, (run_id,)) is not None


def list_runs(conn: Connection, line_id: int, *, limit: int = 100) -> list[Run]:
    """Runs of a line, newest first."""
    return fetch_all(conn, Run, "SELECT * FROM runs WHERE line_id = %s ORDER BY run_id DESC LIMIT %s", (line_id, limit))


def due_triggers(conn: Connection) -> list[tuple[Line, str]]:
    """Lines whose protocol says that it is time to learn, each with the reason in words; not those that are paused."""
    due = []
    for line in lines.list_lines(conn):
        triggers = lines.current_protocol(conn, line.line_id).document["triggers"]
        now = _situation(conn, line.line_id)
        hours = triggers.get("every_hours")
        if now.busy or line.paused_at is not None:
            continue
        if now.fresh >= triggers["new_confirmations"]:
            due.append((line, f"{now.fresh} new confirmations; the protocol asks for {triggers['new_confirmations']}"))
        elif hours is not None and now.new >= 1 and now.waited >= timedelta(hours=hours):
            due.append((line, f"{hours:g} hours have passed and there are {now.new} new confirmations"))
    return due


def next_trigger(conn: Connection, line_id: int) -> dict[str, Any]:
    """What a line waits for: `new_confirmations` now, `needed`, and `every_hours` (None: never by the clock)."""
    triggers = lines.current_protocol(conn, line_id).document["triggers"]
    now = _situation(conn, line_id)
    return {
        "new_confirmations": now.fresh,
        "needed": triggers["new_confirmations"],
        "every_hours": triggers.get("every_hours"),
    }


def _situation(conn: Connection, line_id: int) -> _Situation:
    found = fetch_one(
        conn,
        _Situation,
        "WITH seen AS (SELECT coalesce(max(last_confirmation_id), 0) AS id FROM dataset_versions"
        " WHERE line_id = %(line_id)s), tried AS (SELECT max(created_at) AS at FROM runs"
        " WHERE line_id = %(line_id)s AND dataset_version_id IS NULL), news AS (SELECT confirmations.created_at"
        " FROM confirmations JOIN cases USING (case_id), seen WHERE confirmations.line_id = %(line_id)s"
        " AND confirmation_id > seen.id AND erasure_id IS NULL)"  # of an erased case there is no news
        " SELECT (SELECT count(*) FROM news) AS new,"
        " (SELECT count(*) FROM news, tried WHERE tried.at IS NULL OR created_at > tried.at) AS fresh,"
        " clock_timestamp() - coalesce((SELECT max(created_at) FROM runs WHERE line_id = %(line_id)s),"
        " (SELECT created_at FROM lines WHERE line_id = %(line_id)s)) AS waited,"
        " EXISTS (SELECT FROM runs WHERE line_id = %(line_id)s AND finished_at IS NULL) AS busy",
        {"line_id": line_id},
    )
    assert found is not None
    return found


def _ask(conn: Connection, run: Run, kind: jobs.JobKind) -> None:
    jobs.enqueue(
        conn, kind=kind, line_id=run.line_id, payload={"run_id": run.run_id}, unique_key=f"{kind}:run:{run.run_id}"
    )


def _run_of(job: jobs.Job) -> int | None:
    return None if job.kind.startswith("mirror_") or "run_id" not in job.payload else int(job.payload["run_id"])


def _move(conn: Connection, run_id: int, target: str) -> Run:
    current = lock(conn, run_id).state
    moved = fetch_one(
        conn,
        Run,
        "UPDATE runs SET state = %s WHERE run_id = %s RETURNING *",
        (lifecycle.advance("run", current, target), run_id),
    )
    assert moved is not None
    return moved


def _end(conn: Connection, run_id: int, *, state: str, outcome: str, actor: User | None = None) -> Run:
    _move(conn, run_id, state)
    run = fetch_one(
        conn,
        Run,
        "UPDATE runs SET outcome = %s, finished_at = clock_timestamp() WHERE run_id = %s RETURNING *",
        (outcome, run_id),
    )
    assert run is not None
    audit.record(
        conn,
        actor=audit.SYSTEM if actor is None else actor.name,
        action=f"run:{state}",
        subject=f"run/{run_id}",
        details={"outcome": outcome},
    )
    return run
