"""Holding a job: claim it, keep the claim alive while work goes on elsewhere, and write down how it ended.

Invariant: whoever records a result finishes the job in the same transaction, under the fence it was claimed with, so a
worker that was thought dead changes nothing. A claimed job ends in one of these ways: recorded, refused, cancelled,
failed (queued again after a pause until its attempts are used up), released by a warm stop, or left to the reaper where
the record itself cannot be reached. Rows are locked in one order everywhere, runs before jobs.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from registry import db, jobs, runs
from workers.settings import WorkerSettings
from workers.supervise import Row, ScienceCrashed, ScienceRefused, Stopping, run_science

log = logging.getLogger(__name__)

Note = Callable[[db.Connection, list[Row]], None]
"""Writes rows of progress somewhere besides the job, in the transaction that renews the lease."""


class LeaseLost(Exception):
    """Another worker may hold this job by now; nothing more may be recorded for it."""


class Cancelled(Exception):
    """Somebody asked for this job to be given up."""


class NotYet(Exception):
    """Something else has to come first; the job waits for it and is tried again."""


class Workshop:
    """What every task works with: settings, connections to the record, and the sign that this worker is to stop."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.stopping = threading.Event()
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._opening = threading.Lock()
        self._pool: db.Pool | None = None

    @contextmanager
    def transaction(self) -> Iterator[db.Connection]:
        """Lend a connection for one transaction: committed at the end of the block, rolled back if it raises."""
        with self._opening:
            if self._pool is None:  # not before: Celery makes a workshop in processes that never ask the record
                self._pool = db.pool(self.settings.database_url, maximum=self.settings.worker_concurrency + 2)
        with db.transaction(self._pool) as connection:
            yield connection

    def close(self) -> None:
        """Close the connections to the record."""
        if self._pool is not None:
            self._pool.close()


class Lease:
    """A claimed job."""

    def __init__(self, workshop: Workshop, job: jobs.Job) -> None:
        self.workshop, self.job = workshop, job
        self._renewed = time.monotonic()
        self._used: set[Path] = set()

    @property
    def settings(self) -> WorkerSettings:
        """The worker's settings."""
        return self.workshop.settings

    def directory(self, name: str) -> Path:
        """Make and return a job directory; named after the work, it is the same at every attempt."""
        path = self.settings.jobs / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._used.add(path)
        return path

    def tidy(self) -> None:
        """Remove the job directories, once nobody will go on with them; those of failures stay to be looked at."""
        for path in self._used:
            shutil.rmtree(path, ignore_errors=True)

    def run(
        self,
        module: str,
        *,
        name: str,
        config: dict[str, Any],
        note: Note | None = None,
        within_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Run `python -m module` in the job directory `name` while keeping the lease; returns its result.

        Raises LeaseLost, Cancelled, and what `run_science` raises.
        """
        return run_science(
            module,
            self.directory(name),
            config=config,
            heartbeat=lambda rows: self.beat(rows, note=note),
            heartbeat_seconds=self.settings.heartbeat_seconds,
            stopping=self.workshop.stopping,
            within_seconds=within_seconds,
        )

    def beat(self, rows: list[Row], *, note: Note | None = None) -> None:
        """Renew the lease and write down progress. Raises LeaseLost, Cancelled.

        Where the record is away the lease is believed in for as long as it was granted, and no longer.
        """
        try:
            with self.workshop.transaction() as connection:
                if note is not None and rows:
                    note(connection, rows)
                answer = jobs.heartbeat(
                    connection,
                    job_id=self.job.job_id,
                    fence=self.job.fence,
                    lease_seconds=self.settings.lease_seconds,
                    progress=rows[-1] if rows else None,
                )
                if not answer.held:
                    raise LeaseLost
        except psycopg.OperationalError as error:
            if time.monotonic() - self._renewed > self.settings.lease_seconds:
                raise LeaseLost from error
            log.warning("job %s: the lease cannot be renewed just now: %s", self.job.job_id, error)
            return
        self._renewed = time.monotonic()
        if answer.cancel_requested:
            raise Cancelled

    def hold(self, connection: db.Connection) -> None:
        """Renew the lease in a transaction of the caller's, which then commits as its holder. Raises as `beat` does."""
        answer = jobs.heartbeat(
            connection, job_id=self.job.job_id, fence=self.job.fence, lease_seconds=self.settings.lease_seconds
        )
        if not answer.held:
            raise LeaseLost
        if answer.cancel_requested:
            raise Cancelled

    @contextmanager
    def recording(self) -> Iterator[db.Connection]:
        """Lend the transaction that records the result, and finish the job in it. Raises LeaseLost: nothing is kept."""
        with self.workshop.transaction() as connection:
            yield connection
            sys.audit("overread.fault", "job.finish.before")
            if not jobs.finish(connection, job_id=self.job.job_id, fence=self.job.fence):
                raise LeaseLost


@contextmanager
def claimed(workshop: Workshop, *, job_id: int) -> Iterator[Lease | None]:
    """Claim a job for a block of work, and write down how the block ended; None where it is not ours to do.

    A crash of the block is recorded and passes on; every other end is the job's business and stays here.
    """
    with workshop.transaction() as connection:
        job = jobs.claim(connection, job_id=job_id, owner=workshop.owner, lease_seconds=workshop.settings.lease_seconds)
    if job is None:
        yield None
        return
    lease = Lease(workshop, job)
    begun = time.monotonic()
    log.info("job %s: %s claimed, attempt %s", job_id, job.kind, job.attempts)
    try:
        yield lease
        lease.tidy()
        log.info("job %s: %s recorded after %.1f s", job_id, job.kind, time.monotonic() - begun)
    except LeaseLost:
        log.warning("job %s: the lease was lost, another worker goes on", job_id)
    except Cancelled:
        _end_cancelled(lease)
    except Stopping:
        _release(lease)
    except ScienceRefused as refusal:
        log.info("job %s: refused: %s", job_id, refusal)
        _end_refused(lease, str(refusal))
    except NotYet as reason:
        log.info("job %s: %s", job_id, reason)
        _fail(lease, str(reason))
    except ScienceCrashed as crash:
        log.error("job %s: %s", job_id, crash)  # noqa: TRY400 - the traceback is the child's, kept in its directory
        _fail(lease, str(crash))
    except psycopg.OperationalError:
        log.warning("job %s: the record is away, the job is left to the reaper", job_id)
        raise
    except Exception as error:
        _fail(lease, f"{type(error).__name__}: {error}")
        raise


def _end_cancelled(lease: Lease) -> None:
    with lease.workshop.transaction() as connection:
        runs.lock_for_job(connection, job=lease.job)
        job = jobs.finish_cancelled(connection, job_id=lease.job.job_id, fence=lease.job.fence)
        if job is not None:
            runs.fail_for_job(connection, job=job)
    lease.tidy()


def _release(lease: Lease) -> None:
    with lease.workshop.transaction() as connection:
        if jobs.release(connection, job_id=lease.job.job_id, fence=lease.job.fence):
            _cancel_if_asked(connection, jobs.get_job(connection, lease.job.job_id))
    log.info("job %s: released, this worker stops", lease.job.job_id)


def _fail(lease: Lease, error: str) -> None:
    with lease.workshop.transaction() as connection:
        runs.lock_for_job(connection, job=lease.job)
        job = jobs.fail(connection, job_id=lease.job.job_id, fence=lease.job.fence, error=error, retry=True)
        if job is not None:
            runs.fail_for_job(connection, job=_cancel_if_asked(connection, job))


def _end_refused(lease: Lease, reason: str) -> None:
    run_id = lease.job.payload.get("run_id")
    if run_id is None or lease.job.kind.startswith("mirror_"):
        _fail(lease, reason)
        return
    with lease.recording() as connection:
        runs.refuse(connection, run_id=int(run_id), outcome=reason)
    lease.tidy()


def _cancel_if_asked(connection: db.Connection, job: jobs.Job) -> jobs.Job:
    # A job that waits is never claimed once its cancelling is asked for: it would wait for ever.
    if job.cancel_requested and job.state == "queued":
        return jobs.request_cancel(connection, job.job_id)
    return job
