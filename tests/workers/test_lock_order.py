"""Whoever cancels a run goes from the run to its jobs and to the audit trail, and so does everybody else.

In each test one connection has the run, as in the middle of a cancel; another does what goes on meanwhile until it
waits for the first, or has done what it could; then the first goes on. In any other order PostgreSQL would find them
waiting for each other and throw one of them out (DeadlockDetected).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg.conninfo
import pytest

from registry import datasets, db, erasures, jobs, runs
from tests import factories
from tests.waiting import PATIENCE_SECONDS, until
from workers.lease import Workshop, claimed
from workers.relay import put_back
from workers.settings import WorkerSettings
from workers.supervise import ScienceCrashed
from workers.tasks import freeze_dataset

from .conftest import state_of
from .lines import confirm_cases, make_line, only, start_run


def cancel_meanwhile(url: str, run_id: int, other: Callable[[], object]) -> None:
    """Cancel a run, while `other` comes in between the run's row and all else."""
    with db.connect(url) as first, db.connect(url) as watcher, ThreadPoolExecutor(1) as pool:
        runs.lock(first, run_id)
        meanwhile = pool.submit(other)
        watcher.autocommit = True
        _until_it_waits(watcher, first.info.backend_pid, meanwhile)
        runs.cancel(first, run_id=run_id, actor=None)
        first.commit()
        meanwhile.result(timeout=PATIENCE_SECONDS)


def _until_it_waits(watcher: db.Connection, pid: int, meanwhile: Future[object]) -> None:
    waiting = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid)))"
    until(lambda: meanwhile.done() or db.fetch_value(watcher, waiting, (pid,)), what="its end or its turn to wait")


def test_the_reaper_takes_no_job_whose_run_is_being_cancelled(record: db.Connection, fresh_database: str) -> None:
    run = factories.training_run(record, factories.line(record))
    (job,) = [job for job in jobs.list_jobs(record, line_id=run.line_id) if job.kind == "train_candidate"]
    jobs.claim(record, job_id=job.job_id, owner="a worker that died", lease_seconds=-1.0)
    record.execute("UPDATE jobs SET attempts = maximum_attempts WHERE job_id = %s", (job.job_id,))
    record.commit()

    def reap() -> None:
        with db.connect(fresh_database) as connection:
            assert put_back(connection, resend_seconds=600.0) == []  # it waits for nobody

    cancel_meanwhile(fresh_database, run.run_id, reap)
    assert [(job.kind, job.state) for job in put_back(record, resend_seconds=600.0)] == [
        ("train_candidate", "cancelled")
    ]
    assert state_of(record, "runs", run_id=run.run_id) == "cancelled"


def test_one_run_that_is_busy_does_not_keep_the_reaper_from_the_others(
    record: db.Connection, fresh_database: str
) -> None:
    made = [factories.training_run(record, factories.line(record)) for _ in range(2)]
    for job in jobs.list_jobs(record):
        if job.kind == "train_candidate":
            jobs.claim(record, job_id=job.job_id, owner="a worker that died", lease_seconds=-1.0)
    record.commit()
    with db.connect(fresh_database) as busy:
        runs.lock(busy, made[0].run_id)
        assert [job.payload["run_id"] for job in put_back(record, resend_seconds=600.0)] == [made[1].run_id]
    assert [job.payload["run_id"] for job in put_back(record, resend_seconds=600.0)] == [made[0].run_id]


def test_a_job_that_crashes_for_good_while_its_run_is_cancelled_leaves_it_cancelled(
    record: db.Connection, workshop: Workshop, fresh_database: str
) -> None:
    run = factories.training_run(record, factories.line(record))
    (job,) = [job for job in jobs.list_jobs(record, line_id=run.line_id) if job.kind == "train_candidate"]
    record.execute("UPDATE jobs SET attempts = maximum_attempts - 1 WHERE job_id = %s", (job.job_id,))
    record.commit()

    def crash() -> None:
        with claimed(workshop, job_id=job.job_id):
            raise ScienceCrashed("it broke just then")

    cancel_meanwhile(fresh_database, run.run_id, crash)
    assert state_of(record, "jobs", job_id=job.job_id) == "failed"
    assert state_of(record, "runs", run_id=run.run_id) == "cancelled"


def test_a_freeze_that_ends_while_its_run_is_cancelled_records_nothing(
    record: db.Connection, workshop: Workshop, settings: WorkerSettings, fresh_database: str
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=60)
    run = start_run(record, line)
    job = only(record, "freeze_dataset")
    record.commit()

    def freeze() -> None:
        with pytest.raises(Exception, match="a run that is cancelled cannot become training"):
            freeze_dataset(workshop, job_id=job.job_id)

    cancel_meanwhile(fresh_database, run.run_id, freeze)
    assert datasets.latest(record, line.line_id) is None
    assert state_of(record, "jobs", job_id=job.job_id) == "cancelled"


def test_an_erasure_waits_for_whoever_has_a_run(record: db.Connection, fresh_database: str) -> None:
    line = factories.line(record)
    factories.confirmation(record, factories.case(record, line, patient="somebody"))
    run = factories.training_run(record, line)
    record.commit()

    def erase() -> None:
        with db.connect(psycopg.conninfo.make_conninfo(fresh_database, user="overread_owner")) as owner:
            digest = erasures.digest_of_patient("somebody")
            erasures.erase(owner, patient_digest=digest, line=None, reason="asked for it", actor="olga")

    cancel_meanwhile(fresh_database, run.run_id, erase)
    (effects,) = record.execute("SELECT count(*) FROM erasure_effects WHERE subject = 'run'").fetchall()
    assert effects == (0,)  # it was cancelled before
