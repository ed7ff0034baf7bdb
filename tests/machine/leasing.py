"""Steps of the workers who hold a job, and of the relay that puts back what got lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from registry import confirmations, jobs, promotions, runs
from registry.db import Connection, fetch_value
from tests.machine.model import UNFINISHED_RUN, Holding, Job, Model
from tests.machine.step import DONE, NOTHING, SYSTEM

LEASE_SECONDS = 3600.0
RESEND_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker answers a nudge; it may come late, twice, or to two workers at once."""

    job: str

    def expect(self, model: Model) -> str:
        job = model.jobs[self.job]
        free = job.state == "queued" and not job.pausing and not job.cancel_requested
        return DONE if free and job.attempts < job.maximum_attempts else NOTHING

    def do(self, conn: Connection) -> Any:
        job = jobs.claim(conn, job_id=id_of(conn, self.job), owner="worker", lease_seconds=LEASE_SECONDS)
        if job is None:
            return None
        assert job.line_id is not None
        return Holding(
            job=self.job,
            fence=job.fence,
            up_to=confirmations.last_id(conn, job.line_id),
            champion=None if (now := promotions.champion(conn, job.line_id)) is None else now.candidate_id,
        )

    def note(self, model: Model, result: Any) -> None:
        job = model.jobs[self.job]
        job.state, job.attempts, job.fence, job.expired = "running", job.attempts + 1, job.fence + 1, False
        assert result == Holding(
            job=self.job, fence=job.fence, up_to=model.last(job.line), champion=model.champion(job.line)
        )
        model.holdings.append(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A worker keeps its lease, if it is still its."""

    holding: Holding

    def expect(self, model: Model) -> str:
        return DONE if model.holds(self.holding) else NOTHING

    def do(self, conn: Connection) -> Any:
        job_id = id_of(conn, self.holding.job)
        return jobs.heartbeat(conn, job_id=job_id, fence=self.holding.fence, lease_seconds=LEASE_SECONDS)

    def note(self, model: Model, result: Any) -> None:
        job = model.jobs[self.holding.job]
        job.expired = False
        assert result.cancel_requested == job.cancel_requested


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """A worker's work crashed, or it was asked to stop: the job goes back, or ends."""

    holding: Holding
    how: str
    """`crashed`, `poison` (not to be tried again), `warm stop` or `cancelled`."""

    def expect(self, model: Model) -> str:
        return DONE if model.holds(self.holding) else NOTHING

    def do(self, conn: Connection) -> Any:
        job_id, fence = id_of(conn, self.holding.job), self.holding.fence
        runs.lock_for_job(conn, job=jobs.get_job(conn, job_id))
        if self.how == "warm stop":
            if not jobs.release(conn, job_id=job_id, fence=fence):
                return None
            job = jobs.get_job(conn, job_id)
        elif self.how == "cancelled":
            ended = jobs.finish_cancelled(conn, job_id=job_id, fence=fence)
            if ended is None:
                return None
            job = ended
        else:
            failed = jobs.fail(conn, job_id=job_id, fence=fence, error="it broke", retry=self.how == "crashed")
            if failed is None:
                return None
            job = failed
        if job.cancel_requested and job.state == "queued":
            job = jobs.request_cancel(conn, job_id)
        runs.fail_for_job(conn, job=job)
        return job

    def note(self, model: Model, result: Any) -> None:
        job = model.jobs[self.holding.job]
        if self.how == "warm stop":
            job.state, job.attempts, job.pausing, job.sent = "queued", job.attempts - 1, False, False
        elif self.how == "cancelled":
            job.state = "cancelled"
        elif self.how == "poison":
            job.state = "failed"
        else:
            job.state = "queued" if job.attempts < job.maximum_attempts else "failed"
            job.sent, job.pausing = False, True
        if job.cancel_requested and job.state == "queued":
            job.state = "cancelled"
        assert (result.state, result.attempts) == (job.state, job.attempts)
        _end_run_of(model, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reap:
    """The relay puts back what a dead worker held or the broker lost; in a race it leaves what others hold just now."""

    alone: bool = True

    def expect(self, model: Model) -> str:
        del model
        return DONE

    def do(self, conn: Connection) -> Any:
        changed = jobs.resend(conn, after_seconds=RESEND_SECONDS)
        for job in jobs.list_expired(conn):
            reaped = jobs.reap(conn, job_id=job.job_id) if runs.lock_for_job(conn, job=job, wait=False) else None
            if reaped is not None:
                runs.fail_for_job(conn, job=reaped)
                changed.append(reaped)
        return [(job.unique_key, job.state) for job in changed]

    def note(self, model: Model, result: Any) -> None:
        dead = {key for key, job in model.jobs.items() if job.state == "running" and job.expired}
        lost = {key for key, job in model.jobs.items() if job.state == "queued" and job.sent and job.nudge_lost}
        changed = [key for key, _ in result]
        assert len(set(changed)) == len(changed)
        assert set(changed) <= dead | lost, "only what got lost is put back"
        assert not self.alone or set(changed) == dead | lost, "all that got lost is put back"
        for key, state in result:
            job = model.jobs[key]
            if key in dead:
                retry = "queued" if job.attempts < job.maximum_attempts else "failed"
                job.state, job.pausing = "cancelled" if job.cancel_requested else retry, False
            job.sent = False
            assert state == job.state
            _end_run_of(model, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """The relay takes the outbox to the broker."""

    alone: bool = True

    def expect(self, model: Model) -> str:
        del model
        return DONE

    def do(self, conn: Connection) -> Any:
        waiting = jobs.list_unsent(conn, 1000)
        jobs.mark_sent(conn, sent=waiting)
        return [job.unique_key for job in waiting]

    def note(self, model: Model, result: Any) -> None:
        waiting = [key for key, job in model.jobs.items() if job.state == "queued" and not (job.sent or job.pausing)]
        assert not self.alone or sorted(result) == sorted(waiting)
        for key in set(result) & set(waiting):  # the rest was taken by another relay, or by a worker, meanwhile
            model.jobs[key].sent, model.jobs[key].nudge_lost = True, False


def id_of(conn: Connection, unique_key: str) -> int:
    """The job that has this key."""
    return int(fetch_value(conn, "SELECT job_id FROM jobs WHERE unique_key = %s", (unique_key,)))


def _end_run_of(model: Model, job: Job) -> None:
    ended = job.state in {"failed", "cancelled"} and not job.kind.startswith("mirror")
    if ended and job.run is not None and model.runs[job.run].state in UNFINISHED_RUN:
        model.end_run(job.run, job.state, actor=SYSTEM)
