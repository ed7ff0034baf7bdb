"""The outbox relay: committed jobs to the broker, and back into the outbox what got lost on the way.

Invariant: it decides nothing and keeps nothing. A nudge is noted as sent after the broker took it; killed in between,
it is sent twice, and the second finds the job claimed. No transaction is open while the broker is talked to:
one that is down, or takes a connection and never answers, holds up nothing but the nudges.

    OVERREAD_DATABASE_URL=… OVERREAD_BROKER_URL=… python -m workers.relay
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time

import psycopg
from celery import Celery
from kombu.exceptions import OperationalError

from registry import db, jobs, runs
from workers import notary, pulse
from workers.app import QUEUE, make_celery, task_name
from workers.broker import PATIENCE_SECONDS
from workers.settings import SettingsError, WorkerSettings

POLL_SECONDS = 0.5
REAP_SECONDS = 2.0
PAUSE_SECONDS = 1.0
BATCH = 100

log = logging.getLogger(__name__)


def send_unsent(connection: db.Connection, celery: Celery) -> int:
    """Nudge a worker for each job that waits in the outbox, at most a batch; returns how many.

    Commits. Raises what the broker's transport raises, and what it had not taken by then waits on.
    """
    waiting, taken = jobs.list_unsent(connection, BATCH), []
    connection.commit()
    if not waiting:
        return 0
    try:
        with celery.connection_for_write() as broker:
            producer = celery.amqp.Producer(broker)
            for job in waiting:
                sys.audit("overread.fault", "relay.send.before")
                celery.send_task(
                    task_name(job.kind),
                    kwargs={"job_id": job.job_id},
                    queue=QUEUE,
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                    confirm_timeout=PATIENCE_SECONDS,
                )
                sys.audit("overread.fault", "relay.send.after")
                taken.append(job)
    finally:
        jobs.mark_sent(connection, sent=taken)
        sys.audit("overread.fault", "relay.commit.before")
        connection.commit()
    return len(waiting)


def put_back(connection: db.Connection, *, resend_seconds: float) -> list[jobs.Job]:
    """Queue again what a dead worker held or the broker lost, and end the runs of jobs that are out of attempts.

    Commits job by job, and waits for no lock: what somebody else works on just now has its turn the next time.
    Returns the jobs changed.
    """
    changed = jobs.resend(connection, after_seconds=resend_seconds)
    expired = jobs.list_expired(connection)
    connection.commit()
    for job in expired:
        if runs.lock_for_job(connection, job=job, wait=False):
            reaped = jobs.reap(connection, job_id=job.job_id)
            if reaped is not None:
                runs.fail_for_job(connection, job=reaped)
                changed.append(reaped)
        sys.audit("overread.fault", "reaper.commit.before")
        connection.commit()
    for job in changed:
        log.warning("job %s (%s) is %s again: %s", job.job_id, job.kind, job.state, job.error or "no worker took it")
    return changed


def relay(settings: WorkerSettings, *, stopping: threading.Event) -> None:
    """Relay until told to stop, through any outage of the record or the broker."""
    celery = make_celery(settings)
    with celery.connection_for_write() as broker:
        unreachable = (OperationalError, OSError, *broker.connection_errors, *broker.channel_errors)
    while not stopping.is_set():
        try:
            with db.connect(settings.database_url) as connection:
                _follow(connection, celery, settings=settings, stopping=stopping)
        except psycopg.Error as error:
            log.warning("the record is away, jobs wait: %s", error)
        except unreachable as error:
            log.warning("the broker is away, jobs wait in the record: %s", error)
        stopping.wait(PAUSE_SECONDS)


def main() -> int:
    """Relay until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = WorkerSettings.from_environment()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    pulse.start(settings.pulse_file)
    with notary.signing(settings, stopping=stopping):
        relay(settings, stopping=stopping)
    return 0


def _follow(connection: db.Connection, celery: Celery, *, settings: WorkerSettings, stopping: threading.Event) -> None:
    connection.execute("LISTEN overread_jobs")
    connection.commit()
    reap_at = 0.0
    while not stopping.is_set():
        while send_unsent(connection, celery) == BATCH:
            continue
        if time.monotonic() >= reap_at:
            put_back(connection, resend_seconds=settings.resend_seconds)
            reap_at = time.monotonic() + REAP_SECONDS
        for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
            pass


if __name__ == "__main__":
    sys.exit(main())
