"""All work to be done. The row owns the work; the broker only carries a nudge with its id.

A job is inserted with its cause (outbox: `sent_at IS NULL`), sent by the relay, claimed by a worker under a lease that
it keeps alive, and finished under the fence it was claimed with: a holder whose lease was taken over updates no row,
so its effect, recorded in the same transaction, is rolled back. `reap` and `resend` put back what got lost.
All times are the database's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from psycopg.types.json import Jsonb

from registry.db import Connection, fetch_all, fetch_known, fetch_one, fetch_value

JobKind = Literal[
    "freeze_dataset",
    "train_candidate",
    "gate_candidate",
    "mirror_candidate",
    "mirror_promotion",
    "erase_bytes",
    "rank_worklist",
    "watch_champion",
]
JOB_KINDS: tuple[JobKind, ...] = get_args(JobKind)

# A mirror waits for MLflow to come back: an hour and more at the longest pause. An erasure is not given up either.
# Science that crashes thrice is poison.
MAXIMUM_ATTEMPTS: dict[JobKind, int] = {
    "freeze_dataset": 3,
    "train_candidate": 3,
    "gate_candidate": 3,
    "mirror_candidate": 100,
    "mirror_promotion": 100,
    "erase_bytes": 100,
    "rank_worklist": 3,
    "watch_champion": 3,
}
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of work as the record knows it; `fence` is the holder's proof when it comes from `claim`."""

    job_id: int
    kind: str
    line_id: int | None
    payload: dict[str, Any]
    unique_key: str | None
    state: str
    attempts: int
    maximum_attempts: int
    fence: int
    lease_owner: str | None
    lease_expires_at: datetime | None
    run_after: datetime
    sent_at: datetime | None
    progress: dict[str, Any]
    cancel_requested: bool
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The queue at a glance; `oldest_unsent_seconds` is None where the relay has sent all that is due."""

    states: dict[str, int]
    oldest_unsent_seconds: float | None
    expired_leases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Answer to a heartbeat: is the lease still ours, and does somebody want the job to stop? True while `held`."""

    held: bool
    cancel_requested: bool

    def __bool__(self) -> bool:
        return self.held


def enqueue(
    conn: Connection,
    *,
    kind: JobKind,
    line_id: int | None,
    payload: Mapping[str, Any],
    unique_key: str | None = None,
    run_after: datetime | None = None,
) -> int | None:
    """Ask for work, to be sent once the transaction commits; return the job's id.

    None if an unfinished job has the same `unique_key`: the work is asked for already.
    """
    value = fetch_value(
        conn,
        "INSERT INTO jobs (kind, line_id, payload, unique_key, maximum_attempts, run_after)"
        " VALUES (%s, %s, %s, %s, %s, coalesce(%s, now()))"
        " ON CONFLICT (unique_key) WHERE state IN ('queued', 'running') DO NOTHING RETURNING job_id",
        (kind, line_id, Jsonb(dict(payload)), unique_key, MAXIMUM_ATTEMPTS[kind], run_after),
    )
    return None if value is None else int(value)


def list_unsent(conn: Connection, limit: int = 100) -> list[Job]:
    """Return due jobs whose nudge is not sent, oldest first; nothing is locked, for a broker may take its time."""
    return fetch_all(
        conn,
        Job,
        "SELECT * FROM jobs WHERE state = 'queued' AND sent_at IS NULL AND run_after <= clock_timestamp()"
        " ORDER BY job_id LIMIT %s",
        (limit,),
    )


def mark_sent(conn: Connection, *, sent: Sequence[Job]) -> None:
    """Note that the broker has taken the nudges of these jobs, except where a worker was faster than this note."""
    conn.execute(
        "UPDATE jobs SET sent_at = clock_timestamp()"
        " FROM unnest(%s::bigint[], %s::bigint[]) AS sent (job_id, fence)"
        # Claimed since, under a higher fence, and queued again: that is another nudge, which nobody has sent.
        " WHERE jobs.job_id = sent.job_id AND jobs.fence = sent.fence AND state = 'queued' AND sent_at IS NULL",
        ([job.job_id for job in sent], [job.fence for job in sent]),
    )


def claim(conn: Connection, *, job_id: int, owner: str, lease_seconds: float) -> Job | None:
    """Take a queued job under a new fence; commit before working. None: someone else has it, or it is over."""
    return fetch_one(
        conn,
        Job,
        "UPDATE jobs SET state = 'running', attempts = attempts + 1, fence = fence + 1, lease_owner = %(owner)s,"
        " lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s), error = NULL,"
        " started_at = coalesce(started_at, clock_timestamp()) WHERE job_id = %(job_id)s AND state = 'queued'"
        " AND attempts < maximum_attempts AND run_after <= clock_timestamp() AND NOT cancel_requested RETURNING *",
        {"job_id": job_id, "owner": owner, "lease": lease_seconds},
    )


def heartbeat(
    conn: Connection,
    *,
    job_id: int,
    fence: int,
    lease_seconds: float,
    progress: Mapping[str, Any] | None = None,
) -> Heartbeat:
    """Keep the lease alive and store `progress` if given. A false answer means: stop at once, the job is not ours."""
    row = conn.execute(
        "UPDATE jobs SET lease_expires_at = clock_timestamp() + make_interval(secs => %(lease)s),"
        " progress = coalesce(%(progress)s, progress)"
        " WHERE job_id = %(job_id)s AND fence = %(fence)s AND state = 'running' RETURNING cancel_requested",
        {
            "job_id": job_id,
            "fence": fence,
            "lease": lease_seconds,
            "progress": None if progress is None else Jsonb(dict(progress)),
        },
    ).fetchone()
    return Heartbeat(held=row is not None, cancel_requested=row is not None and row[0])


def finish(conn: Connection, *, job_id: int, fence: int) -> bool:
    """Mark a job succeeded, in the transaction that records its effect. False: the lease was lost, roll back."""
    return _end(conn, job_id=job_id, fence=fence, state="succeeded", error=None) is not None


def finish_cancelled(conn: Connection, *, job_id: int, fence: int) -> Job | None:
    """Mark a job cancelled, once its work has stopped. None: the lease was lost."""
    return _end(conn, job_id=job_id, fence=fence, state="cancelled", error="cancelled on request")


def fail(conn: Connection, *, job_id: int, fence: int, error: str, retry: bool) -> Job | None:
    """Give a job back after an error: queued again after a pause if `retry` and attempts are left, else failed.

    Returns the job as it is now (see `runs.fail_for_job` when its state is `failed`); None: the lease was lost.
    """
    if not retry:
        return _end(conn, job_id=job_id, fence=fence, state="failed", error=error)
    return fetch_one(
        conn,
        Job,
        "UPDATE jobs SET state = CASE WHEN attempts < maximum_attempts THEN 'queued' ELSE 'failed' END,"
        " finished_at = CASE WHEN attempts < maximum_attempts THEN NULL ELSE clock_timestamp() END,"
        " run_after = clock_timestamp() + make_interval(secs => least(%(longest)s, power(2, least(attempts, 10)))),"
        " lease_owner = NULL, lease_expires_at = NULL, sent_at = NULL, error = %(error)s"
        " WHERE job_id = %(job_id)s AND fence = %(fence)s AND state = 'running' RETURNING *",
        {"job_id": job_id, "fence": fence, "error": error, "longest": _LONGEST_PAUSE_SECONDS},
    )


def release(conn: Connection, *, job_id: int, fence: int) -> bool:
    """Give a job back untouched, as a warm stop does: queued again at once, the attempt not counted."""
    row = conn.execute(
        "UPDATE jobs SET state = 'queued', attempts = attempts - 1, lease_owner = NULL, lease_expires_at = NULL,"
        " sent_at = NULL, run_after = clock_timestamp()"
        " WHERE job_id = %s AND fence = %s AND state = 'running' RETURNING job_id",
        (job_id, fence),
    ).fetchone()
    return row is not None


def list_expired(conn: Connection) -> list[Job]:
    """Return jobs whose lease ran out, oldest first; nothing is locked."""
    return fetch_all(
        conn, Job, "SELECT * FROM jobs WHERE state = 'running' AND lease_expires_at < clock_timestamp() ORDER BY job_id"
    )


def reap(conn: Connection, *, job_id: int) -> Job | None:
    """Take a job back whose lease ran out: queued again, failed at the attempts' cap, or cancelled if that was asked.

    Returns the job as it is now; None: its holder is alive, or somebody else has it just now.
    """
    return fetch_one(
        conn,
        Job,
        "WITH dead AS (SELECT job_id FROM jobs WHERE job_id = %s AND state = 'running'"
        " AND lease_expires_at < clock_timestamp() FOR UPDATE SKIP LOCKED)"
        " UPDATE jobs SET state = CASE WHEN cancel_requested THEN 'cancelled'"
        " WHEN attempts < maximum_attempts THEN 'queued' ELSE 'failed' END,"
        " finished_at = CASE WHEN cancel_requested OR attempts >= maximum_attempts THEN clock_timestamp() END,"
        " error = 'the worker ' || lease_owner || ' stopped answering', lease_owner = NULL, lease_expires_at = NULL,"
        " sent_at = NULL, run_after = clock_timestamp() FROM dead WHERE jobs.job_id = dead.job_id RETURNING jobs.*",
        (job_id,),
    )


def resend(conn: Connection, *, after_seconds: float) -> list[Job]:
    """Have nudges that nobody answered for `after_seconds` sent again; return the jobs changed, as they are now."""
    return fetch_all(
        conn,
        Job,
        "WITH lost AS (SELECT job_id FROM jobs WHERE state = 'queued'"
        " AND sent_at < clock_timestamp() - make_interval(secs => %s) FOR UPDATE SKIP LOCKED)"
        " UPDATE jobs SET sent_at = NULL FROM lost WHERE jobs.job_id = lost.job_id RETURNING jobs.*",
        (after_seconds,),
    )


def hurry(conn: Connection, *, line_id: int, kind: str) -> None:
    """Have the queued jobs of a kind go on at once in one line: what they waited for has come."""
    conn.execute(
        "UPDATE jobs SET run_after = clock_timestamp() WHERE line_id = %s AND kind = %s AND state = 'queued'",
        (line_id, kind),
    )


def request_cancel(conn: Connection, job_id: int) -> Job:
    """Ask a job to stop: at once if it only waits, else its holder learns it by heartbeat. Raises NotFound."""
    conn.execute(
        "UPDATE jobs SET cancel_requested = true, state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,"
        " finished_at = CASE state WHEN 'queued' THEN clock_timestamp() END"
        " WHERE job_id = %s AND state IN ('queued', 'running')",
        (job_id,),
    )
    return get_job(conn, job_id)


def get_job(conn: Connection, job_id: int) -> Job:
    """Return a job by id. Raises NotFound."""
    return fetch_known(conn, Job, "job", job_id)


def list_jobs(
    conn: Connection, *, line_id: int | None = None, states: Sequence[str] | None = None, limit: int = 100
) -> list[Job]:
    """Jobs, newest first; of one line and in given states if asked."""
    return fetch_all(
        conn,
        Job,
        "SELECT * FROM jobs WHERE (%(line_id)s::bigint IS NULL OR line_id = %(line_id)s)"
        " AND (%(states)s::text[] IS NULL OR state = ANY(%(states)s)) ORDER BY job_id DESC LIMIT %(limit)s",
        {"line_id": line_id, "states": None if states is None else list(states), "limit": limit},
    )


def of_run(conn: Connection, *, run_id: int, line_id: int) -> list[Job]:
    """Return the jobs of a run, in the order in which they were asked for."""
    return fetch_all(
        conn,
        Job,
        "SELECT * FROM jobs WHERE line_id = %s AND payload ->> 'run_id' = %s ORDER BY job_id",
        (line_id, str(run_id)),
    )


def summary(conn: Connection) -> Summary:
    """How the queue stands: how many jobs are in each state, and whether one waits for somebody who does not come."""
    counted = conn.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
    unsent = fetch_value(
        conn,
        "SELECT extract(epoch FROM clock_timestamp() - min(greatest(created_at, run_after)))::double precision"
        " FROM jobs WHERE state = 'queued' AND sent_at IS NULL AND run_after <= clock_timestamp()",
    )
    expired = fetch_value(
        conn, "SELECT count(*) FROM jobs WHERE state = 'running' AND lease_expires_at < clock_timestamp()"
    )
    states = {str(state): int(count) for state, count in counted}
    return Summary(states=states, oldest_unsent_seconds=unsent, expired_leases=int(expired))


def _end(conn: Connection, *, job_id: int, fence: int, state: str, error: str | None) -> Job | None:
    return fetch_one(
        conn,
        Job,
        "UPDATE jobs SET state = %(state)s, error = %(error)s, finished_at = clock_timestamp(), lease_owner = NULL,"
        " lease_expires_at = NULL WHERE job_id = %(job_id)s AND fence = %(fence)s AND state = 'running' RETURNING *",
        {"job_id": job_id, "fence": fence, "state": state, "error": error},
    )
