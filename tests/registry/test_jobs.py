"""The row owns the work: leases, fences, the cap on attempts, and what the reaper puts back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from registry import jobs
from registry.db import Connection, connect
from registry.jobs import Job
from tests import factories


def _claim(db: Connection, job: Job, *, owner: str = "worker-1", lease_seconds: float = 15.0) -> Job | None:
    return jobs.claim(db, job_id=job.job_id, owner=owner, lease_seconds=lease_seconds)


def _claimed(db: Connection, *, lease_seconds: float = 15.0, **fields: object) -> Job:
    job = _claim(db, factories.job(db, **fields), lease_seconds=lease_seconds)
    assert job is not None
    return job


def test_a_job_is_claimed_once(db: Connection) -> None:
    job = factories.job(db)
    claimed = _claim(db, job)
    assert claimed is not None
    assert (claimed.state, claimed.attempts, claimed.fence, claimed.lease_owner) == ("running", 1, 1, "worker-1")
    assert _claim(db, job, owner="worker-2") is None


def test_ten_nudges_at_once_start_the_work_once(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        job = factories.job(conn)

    def try_it(number: int) -> bool:
        with connect(fresh_database) as conn:
            return _claim(conn, job, owner=f"worker-{number}") is not None

    with ThreadPoolExecutor(10) as threads:
        assert sum(threads.map(try_it, range(10))) == 1


def test_a_stale_holder_changes_nothing(db: Connection) -> None:
    stale = _claimed(db, lease_seconds=-1.0)
    jobs.reap(db, job_id=stale.job_id)
    fresh = _claim(db, stale, owner="worker-2")
    assert fresh is not None
    assert fresh.fence == stale.fence + 1
    before = jobs.get_job(db, stale.job_id)
    assert not jobs.heartbeat(db, job_id=stale.job_id, fence=stale.fence, lease_seconds=15.0, progress={"epoch": 9})
    assert not jobs.finish(db, job_id=stale.job_id, fence=stale.fence)
    assert not jobs.release(db, job_id=stale.job_id, fence=stale.fence)
    assert jobs.fail(db, job_id=stale.job_id, fence=stale.fence, error="x", retry=True) is None
    assert jobs.fail(db, job_id=stale.job_id, fence=stale.fence, error="x", retry=False) is None
    assert jobs.finish_cancelled(db, job_id=stale.job_id, fence=stale.fence) is None
    assert jobs.get_job(db, stale.job_id) == before
    assert jobs.finish(db, job_id=fresh.job_id, fence=fresh.fence)
    assert jobs.get_job(db, fresh.job_id).state == "succeeded"


def test_a_heartbeat_keeps_the_lease_and_shows_progress(db: Connection) -> None:
    job = _claimed(db, lease_seconds=-1.0)
    beat = jobs.heartbeat(db, job_id=job.job_id, fence=job.fence, lease_seconds=60.0, progress={"epoch": 3})
    assert beat
    assert not beat.cancel_requested
    assert jobs.list_expired(db) == []
    assert jobs.reap(db, job_id=job.job_id) is None
    assert jobs.heartbeat(db, job_id=job.job_id, fence=job.fence, lease_seconds=60.0)
    assert jobs.get_job(db, job.job_id).progress == {"epoch": 3}


def test_work_that_kills_its_worker_ends_as_failed_after_three_attempts(db: Connection) -> None:
    job = factories.job(db)
    states = []
    for _ in range(3):
        assert _claim(db, job, lease_seconds=-1.0) is not None
        assert [found.job_id for found in jobs.list_expired(db)] == [job.job_id]
        reaped = jobs.reap(db, job_id=job.job_id)
        assert reaped is not None
        states.append((reaped.state, reaped.attempts))
    assert states == [("queued", 1), ("queued", 2), ("failed", 3)]
    assert "stopped answering" in (jobs.get_job(db, job.job_id).error or "")
    assert _claim(db, job) is None


def test_an_error_is_tried_again_after_a_pause_and_then_given_up(db: Connection) -> None:
    job = factories.job(db)
    for attempt in (1, 2, 3):
        db.execute("UPDATE jobs SET run_after = now() WHERE job_id = %s", (job.job_id,))
        claimed = _claim(db, job)
        assert claimed is not None
        failed = jobs.fail(db, job_id=job.job_id, fence=claimed.fence, error="disk full", retry=True)
        assert failed is not None
        assert failed.state == ("failed" if attempt == 3 else "queued")
        assert _claim(db, job) is None  # not before the pause is over
    assert jobs.get_job(db, job.job_id).error == "disk full"


def test_an_error_that_will_not_go_away_is_not_tried_again(db: Connection) -> None:
    job = _claimed(db)
    failed = jobs.fail(db, job_id=job.job_id, fence=job.fence, error="no such class", retry=False)
    assert failed is not None
    assert (failed.state, failed.attempts) == ("failed", 1)


def test_a_warm_stop_does_not_cost_an_attempt(db: Connection) -> None:
    job = _claimed(db)
    assert jobs.release(db, job_id=job.job_id, fence=job.fence)
    again = _claim(db, job, owner="worker-2")
    assert again is not None
    assert (again.attempts, again.fence) == (1, 2)


def test_a_lost_nudge_is_sent_again(db: Connection) -> None:
    job = factories.job(db)
    assert [found.job_id for found in jobs.list_unsent(db, 10)] == [job.job_id]
    jobs.mark_sent(db, sent=[job])
    assert jobs.list_unsent(db, 10) == []
    assert jobs.resend(db, after_seconds=20.0) == []
    db.execute("UPDATE jobs SET sent_at = now() - interval '21 seconds'")
    assert [found.job_id for found in jobs.resend(db, after_seconds=20.0)] == [job.job_id]
    assert [found.job_id for found in jobs.list_unsent(db, 10)] == [job.job_id]


def test_a_nudge_noted_late_does_not_hide_the_next_one(db: Connection) -> None:
    (sent,) = [factories.job(db)]
    claimed = _claim(db, sent)  # the worker is faster than the note, and fails at once
    assert claimed is not None
    jobs.mark_sent(db, sent=[sent])
    assert jobs.get_job(db, sent.job_id).sent_at is None
    assert jobs.release(db, job_id=sent.job_id, fence=claimed.fence)
    jobs.mark_sent(db, sent=[sent])
    assert [found.job_id for found in jobs.list_unsent(db, 10)] == [sent.job_id]


def test_a_job_for_later_is_neither_sent_nor_claimed_now(db: Connection) -> None:
    job = factories.job(db)
    db.execute("UPDATE jobs SET run_after = now() + interval '1 hour'")
    assert jobs.list_unsent(db, 10) == []
    assert _claim(db, job) is None


def test_the_same_work_is_not_asked_for_twice_while_unfinished(db: Connection) -> None:
    job = _claimed(db, unique_key="freeze:7")
    assert jobs.enqueue(db, kind="freeze_dataset", line_id=None, payload={}, unique_key="freeze:7") is None
    jobs.finish(db, job_id=job.job_id, fence=job.fence)
    assert jobs.enqueue(db, kind="freeze_dataset", line_id=None, payload={}, unique_key="freeze:7") is not None


def test_cancelling_stops_waiting_work_at_once_and_running_work_by_heartbeat(db: Connection) -> None:
    waiting, running = factories.job(db), _claimed(db)
    assert jobs.request_cancel(db, waiting.job_id).state == "cancelled"
    assert jobs.request_cancel(db, running.job_id).state == "running"
    beat = jobs.heartbeat(db, job_id=running.job_id, fence=running.fence, lease_seconds=15.0)
    assert (beat.held, beat.cancel_requested) == (True, True)
    ended = jobs.finish_cancelled(db, job_id=running.job_id, fence=running.fence)
    assert ended is not None
    assert ended.state == "cancelled"


def test_work_that_was_to_stop_is_not_started_again_when_its_worker_dies(db: Connection) -> None:
    job = _claimed(db, lease_seconds=-1.0)
    jobs.request_cancel(db, job.job_id)
    reaped = jobs.reap(db, job_id=job.job_id)
    assert reaped is not None
    assert reaped.state == "cancelled"


def test_a_mirror_outlasts_a_long_absence_of_mlflow(db: Connection) -> None:
    assert factories.job(db, kind="mirror_promotion").maximum_attempts >= 60
    assert factories.job(db, kind="train_candidate").maximum_attempts == 3


def test_a_committed_job_wakes_whoever_listens(fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as listener, connect(fresh_database) as conn:
        listener.execute("LISTEN overread_jobs")
        factories.job(conn)
        assert list(listener.notifies(timeout=0.05)) == []
        conn.commit()
        (notice,) = listener.notifies(timeout=120.0, stop_after=1)
    assert notice.channel == "overread_jobs"


def test_a_running_job_without_a_lease_cannot_be_written(db: Connection) -> None:
    job = factories.job(db)
    with pytest.raises(psycopg.errors.CheckViolation, match="jobs_running_has_a_lease"):
        db.execute("UPDATE jobs SET state = 'running' WHERE job_id = %s", (job.job_id,))
