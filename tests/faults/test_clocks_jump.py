"""The clock of a process jumps by a day, either way, while it works: leases and order go by the database's time."""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from registry import db, jobs, runs, users
from tests import factories
from tests.api.service import ROOT, free_port, wait_for
from tests.waiting import until
from tests.workers.lines import confirm_cases, make_line
from workers.settings import WorkerSettings

DAY = 86_400
READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}
CELERY = ("celery", "-A", "workers.app")
INFO = ("--loglevel", "INFO")


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["a day ahead", "a day back"])
def test_a_clock_that_jumps_reaps_nothing_early_and_stops_nothing(
    jump: int, fresh_database: str, empty_database: str, tmp_path: Path
) -> None:
    clock, log, port = tmp_path / "clock", tmp_path / "log", free_port()
    clock.write_text("0")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tests" / "faults" / "clock"), str(ROOT))),
        "CLOCK_FILE": str(clock),
        "OVERREAD_HOME": str(tmp_path / "home"),
        "OVERREAD_DATABASE_URL": fresh_database,
        "OVERREAD_BROKER_URL": "sqla+postgresql+psycopg://" + empty_database.partition("://")[2],
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9",
        "OVERREAD_INFERENCE_TOKEN": "for-tests-only",
        "OVERREAD_PATIENT_KEY": "ab" * 32,
        "OVERREAD_TRIGGER_SECONDS": "1",
        "OVERREAD_RESEND_SECONDS": "600",  # nothing is lost here, so whatever is sent twice is a fault
    }
    api = ("uvicorn", "--factory", "api.app:serve", "--port", str(port))
    commands = ((*CELERY, "worker", *INFO), (*CELERY, "beat", "--pidfile=", *INFO), ("workers.relay",), api)
    with contextlib.ExitStack() as stack, db.connect(fresh_database) as record:
        stream = stack.enter_context(log.open("ab"))
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for(f"http://127.0.0.1:{port}/health/live", process=process, log=log)
        until(lambda: " ready." in log.read_text(errors="replace"), record=record, log=log)

        held = jobs.claim(record, job_id=factories.job(record).job_id, owner="somebody else", lease_seconds=3600)
        assert held is not None
        line, person = make_line(record, triggers={"new_confirmations": 100})
        case = factories.case(record, line).case_id
        reader = users.create_user(record, name=f"reader-{uuid4()}", printed_name="R", roles=["submitter"])
        key = users.create_api_key(record, user_id=reader.user_id)
        record.commit()
        clock.write_text(str(jump))

        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "once"}
        url = f"http://127.0.0.1:{port}/v1/cases/{case}/confirmations"
        confirmed, again = (httpx.post(url, json=READ, headers=headers, timeout=30) for _ in range(2))
        assert confirmed.status_code == 201, confirmed.text
        assert again.json() == confirmed.json()
        at = datetime.datetime.fromisoformat(confirmed.json()["created_at"])
        assert abs(at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(hours=1)

        confirm_cases(
            record,
            WorkerSettings.from_environment(environment),
            line=line,
            person=person,
            count=120,
        )  # now the line is due, by the ticks of a beat whose clock is wrong
        until(
            lambda: any(run.state != "freezing" for run in runs.list_runs(record, line.line_id)),
            record=record,
            log=log,
        )
        (run,) = runs.list_runs(record, line.line_id)
        (freeze,) = [job for job in jobs.list_jobs(record, line_id=line.line_id) if job.kind == "freeze_dataset"]
        assert (run.dataset_version_id is not None, freeze.state, freeze.attempts) == (True, "succeeded", 1)
        assert freeze.finished_at is not None
        assert abs(freeze.finished_at - freeze.created_at) < datetime.timedelta(hours=1)
        still_held = jobs.get_job(record, held.job_id)
        assert (still_held.state, still_held.fence) == ("running", held.fence)
