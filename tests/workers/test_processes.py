"""Celery worker, beat and relay as real processes, with PostgreSQL as the broker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from registry import db, jobs, runs
from tests.faults.arming import armed
from tests.waiting import PATIENCE_SECONDS, until
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import confirm_cases, make_line, only

ROOT = Path(__file__).parents[2]
CELERY = ("celery", "-A", "workers.app")
WORKER = (*CELERY, "worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle", "--concurrency", "2")
BEAT = (*CELERY, "beat", "--loglevel", "INFO", "--pidfile=")
RELAY = ("workers.relay",)

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where all the processes write."""
    path = tmp_path / "processes.log"
    path.touch()
    return path


@pytest.fixture
def start(settings: WorkerSettings, empty_database: str, log: Path) -> Iterator[Start]:
    """Start `python -m …` with the test's settings and a broker in a database of its own."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {
        **os.environ,
        "OVERREAD_HOME": str(settings.home),
        "OVERREAD_DATABASE_URL": settings.database_url,
        "OVERREAD_BROKER_URL": "sqla+postgresql+psycopg://" + empty_database.partition("://")[2],
        "OVERREAD_MLFLOW_URL": settings.mlflow_url,
        "OVERREAD_LEASE_SECONDS": "300",  # nobody dies here but who is said to: a busy machine is no reason
        "OVERREAD_HEARTBEAT_SECONDS": "0.5",
        "OVERREAD_RESEND_SECONDS": "2",
        "OVERREAD_TRIGGER_SECONDS": "0.5",
        **armed("training.step.before:30:stop"),  # a training takes for ever, from its second epoch or a later one on
    }
    with log.open("ab") as stream, contextlib.ExitStack() as stack:

        def begin(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )
            started.append(process)
            stack.callback(_end, process)
            return process

        yield begin


def test_a_line_learns_by_itself_and_a_stopped_worker_lets_go_at_once(
    start: Start, settings: WorkerSettings, record: db.Connection, log: Path, empty_database: str
) -> None:
    recipe = {"network": "small_cnn", "epochs": 40, "update_epochs": 1, "threads": 1}
    line, person = make_line(record, recipe=recipe, triggers={"new_confirmations": 100})
    worker, _beat, _relay = start(*WORKER), start(*BEAT), start(*RELAY)
    confirm_cases(record, settings, line=line, person=person, count=120)

    def trained_a_little() -> bool:
        record.rollback()
        found = runs.list_runs(record, line.line_id)
        return bool(found) and found[0].progress.get("epoch", 0) >= 1

    until(trained_a_little, log=log, process=worker)
    (run,) = runs.list_runs(record, line.line_id)
    assert "100" in run.reason
    assert run.requested_by is None

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=PATIENCE_SECONDS) == 0
    job = only(record, "train_candidate")
    assert job.attempts == 0

    start(*WORKER)
    until(lambda: state_of(record, "jobs", job_id=job.job_id) == "running", log=log)
    runs.cancel(record, run_id=run.run_id, actor=person)
    record.commit()
    until(lambda: state_of(record, "jobs", job_id=job.job_id) == "cancelled", log=log)
    assert len(runs.list_runs(record, line.line_id)) == 1  # ten ticks a second later: nothing new, no new run
    with psycopg.connect(empty_database) as broker:
        row = broker.execute("SELECT count(*) FROM kombu_message WHERE NOT visible").fetchone()
        assert row == (0,)  # what was delivered is gone


def test_a_dead_workers_job_is_reaped_and_done_by_another(
    start: Start, settings: WorkerSettings, record: db.Connection, log: Path
) -> None:
    line, person = make_line(record, triggers={"new_confirmations": 10_000})
    confirm_cases(record, settings, line=line, person=person, count=120)
    run = runs.start_run(record, line_id=line.line_id, requested_by=None, reason="a test asked for it")
    record.commit()
    job = only(record)
    dead = jobs.claim(record, job_id=job.job_id, owner="a worker that died", lease_seconds=1.0)
    assert dead is not None
    record.commit()
    start(*WORKER)
    start(*RELAY)
    until(lambda: state_of(record, "runs", run_id=run.run_id) != "freezing", log=log)
    freeze = jobs.get_job(record, job.job_id)
    assert (freeze.state, freeze.attempts) == ("succeeded", 2)
    assert not jobs.finish(record, job_id=job.job_id, fence=dead.fence)
    record.rollback()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
