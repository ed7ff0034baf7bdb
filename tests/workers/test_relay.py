"""The relay: an unreachable broker costs nothing but time, and what got lost goes out again."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from registry import db, jobs, runs
from tests import factories
from tests.waiting import PATIENCE_SECONDS
from workers.app import make_celery
from workers.relay import put_back, relay, send_unsent
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import make_line, only, start_run


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:9/0", "amqp://127.0.0.1:9//", "sqla+postgresql+psycopg://"])
def test_jobs_wait_in_the_record_while_the_broker_is_away(
    settings: WorkerSettings, record: db.Connection, broker: str
) -> None:
    if broker.startswith("sqla"):
        broker += "nobody@127.0.0.1:9/none"
    line, _ = make_line(record)
    start_run(record, line)
    stopping = threading.Event()
    told = dataclasses.replace(settings, broker_url=broker)
    thread = threading.Thread(target=relay, args=(told,), kwargs={"stopping": stopping}, daemon=True)
    thread.start()
    time.sleep(2)
    job = only(record)
    assert job.sent_at is None
    assert thread.is_alive()
    stopping.set()
    thread.join(timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_job_is_sent_once_and_again_only_when_nobody_takes_it(
    settings: WorkerSettings, record: db.Connection
) -> None:
    line, _ = make_line(record)
    start_run(record, line)
    celery = make_celery(settings)
    assert send_unsent(record, celery) == 1
    assert send_unsent(record, celery) == 0
    assert put_back(record, resend_seconds=60) == []
    time.sleep(0.2)
    assert len(put_back(record, resend_seconds=0.1)) == 1
    assert send_unsent(record, celery) == 1


def test_a_poison_job_ends_its_run_after_three_dead_workers(settings: WorkerSettings, record: db.Connection) -> None:
    line, _ = make_line(record)
    run = start_run(record, line)
    job = only(record)
    for _ in range(3):
        assert state_of(record, "runs", run_id=run.run_id) == "freezing"
        assert jobs.claim(record, job_id=job.job_id, owner="a worker that dies", lease_seconds=0.01) is not None
        record.commit()
        time.sleep(0.05)
        put_back(record, resend_seconds=settings.resend_seconds)
    assert state_of(record, "jobs", job_id=job.job_id) == "failed"
    assert state_of(record, "runs", run_id=run.run_id) == "failed"
    assert "stopped answering" in str(runs.get(record, run.run_id).outcome)
    factories.job(record)  # and the queue moves on
    record.commit()
    assert send_unsent(record, make_celery(settings)) == 1
