"""Fault matrix rows 7 and 9: a killed trainer goes on where it was; one that slept past its lease comes too late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from registry import candidates, datasets, db, jobs, runs
from registry.lines import Line
from tests.faults.arming import armed
from tests.waiting import until
from tests.workers.conftest import make_settings
from tests.workers.lines import confirm_cases, make_line, only, start_run, work
from workers import translate
from workers.lease import Workshop
from workers.relay import put_back
from workers.settings import WorkerSettings
from workers.tasks import TASKS

ROOT = Path(__file__).parents[2]
RECIPE = {"network": "small_cnn", "epochs": 3, "update_epochs": 1, "threads": 1, "batch_size": 16}
WORKER = """
import sys
from pathlib import Path
from tests.workers.conftest import make_settings
from workers.lease import Workshop
from workers.tasks import TASKS
TASKS["train_candidate"](Workshop(make_settings(sys.argv[1], Path(sys.argv[2]))), job_id=int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def frozen(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkerSettings, Line]:
    """A line with a dataset version of 120 cases."""
    settings = make_settings(module_database, tmp_path_factory.mktemp("home"))
    workshop = Workshop(settings)
    with db.connect(module_database) as record:
        line, person = make_line(record, recipe=RECIPE)
        confirm_cases(record, settings, line=line, person=person, count=120)
        run = start_run(record, line)
        work(workshop, record, "freeze_dataset")
        runs.cancel(record, run_id=run.run_id, actor=person)
        record.commit()
    workshop.close()
    return settings, line


@pytest.fixture
def record(frozen: tuple[WorkerSettings, Line]) -> Iterator[db.Connection]:
    """A connection for the test itself."""
    with db.connect(frozen[0].database_url) as connection:
        yield connection


@pytest.fixture
def training(record: db.Connection, frozen: tuple[WorkerSettings, Line]) -> Iterator[tuple[runs.Run, jobs.Job]]:
    """A run that has its data, and the job of its training; ended after the test."""
    run = runs.start_run(record, line_id=frozen[1].line_id, requested_by=None, reason="a test asked for it")
    record.commit()
    jobs.request_cancel(record, only(record, "freeze_dataset").job_id)
    version = datasets.latest(record, frozen[1].line_id)
    assert version is not None
    runs.attach_dataset(
        record, run_id=run.run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=None
    )
    record.commit()
    yield run, only(record, "train_candidate")
    record.rollback()
    runs.fail(record, run_id=run.run_id, outcome="the test is over")
    record.execute("UPDATE jobs SET state = 'cancelled' WHERE state = 'queued'")
    record.commit()


def test_a_trainer_killed_mid_epoch_ends_with_the_weights_of_an_unbroken_run(
    frozen: tuple[WorkerSettings, Line],
    record: db.Connection,
    training: tuple[runs.Run, jobs.Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, line = frozen
    run, job = training
    workshop = Workshop(settings)
    for name, value in armed("training.step.before:9", once=tmp_path / "once").items():
        monkeypatch.setenv(name, value)
    TASKS["train_candidate"](workshop, job_id=job.job_id)
    killed = jobs.get_job(record, job.job_id)
    record.rollback()
    assert (killed.state, killed.attempts) == ("queued", 1)
    assert "exit code -9" in (killed.error or "")
    assert (tmp_path / "once").exists()
    reached = [row["epoch"] for row in runs.get(record, run.run_id).history]
    record.rollback()
    assert reached == [1], "it was killed in its second epoch"

    until(lambda: due(record, job.job_id))
    version = datasets.latest(record, line.line_id)
    assert version is not None
    dataset = str(settings.checkouts / version.git_tag)
    config = {"dataset": dataset} | translate.train_config(record, run=runs.get(record, run.run_id), settings=settings)
    record.rollback()
    TASKS["train_candidate"](workshop, job_id=job.job_id)
    workshop.close()
    (candidate,) = of_run(record, line, run)
    assert jobs.get_job(record, job.job_id).attempts == 2
    assert [row["epoch"] for row in runs.get(record, run.run_id).history] == [1, 2, 3]
    record.rollback()

    (tmp_path / "config.json").write_text(json.dumps(config))
    subprocess.run([sys.executable, "-m", "pipelines.train", str(tmp_path)], cwd=ROOT, check=True)
    unbroken = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert unbroken["weights_digest"] == candidate.weights_digest


def test_a_worker_stopped_past_its_lease_records_nothing_when_it_wakes(
    frozen: tuple[WorkerSettings, Line], record: db.Connection, training: tuple[runs.Run, jobs.Job], tmp_path: Path
) -> None:
    settings, line = frozen
    run, job = training
    command = [sys.executable, "-c", WORKER, settings.database_url, str(settings.home), str(job.job_id)]
    # It stops when its science has ended, in front of nothing but writing the result down.
    with (tmp_path / "log").open("w+") as log:
        zombie = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | armed("science.end.after:1:stop"), stdout=log, stderr=log
        )
        try:
            until(lambda: stopped(zombie))
            until(lambda: bool(put_back(record, resend_seconds=600.0)))
            workshop = Workshop(settings)
            successor = threading.Thread(
                target=TASKS["train_candidate"], args=(workshop,), kwargs={"job_id": job.job_id}
            )
            successor.start()
            successor.join(timeout=300)
            workshop.close()
            (candidate,) = of_run(record, line, run)
            before = jobs.get_job(record, job.job_id)
            assert (before.state, before.attempts) == ("succeeded", 2)
            record.rollback()
            zombie.send_signal(signal.SIGCONT)
            assert zombie.wait(timeout=120) == 0, (tmp_path / "log").read_text()
        finally:
            zombie.kill()
            zombie.wait(timeout=30)
    assert of_run(record, line, run) == [candidate]
    assert jobs.get_job(record, job.job_id) == before
    assert runs.get(record, run.run_id).state == "gating"
    record.rollback()


def stopped(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "it ended instead of stopping"
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED  # nobody buries it meanwhile but `poll`


def due(record: db.Connection, job_id: int) -> list[int]:
    record.rollback()
    query = "SELECT job_id FROM jobs WHERE job_id = %s AND state = 'queued' AND run_after <= clock_timestamp()"
    found = [row[0] for row in record.execute(query, (job_id,)).fetchall()]
    record.rollback()
    return found


def of_run(record: db.Connection, line: Line, run: runs.Run) -> list[candidates.Candidate]:
    record.rollback()
    found = candidates.list_candidates(record, line.line_id)
    record.rollback()
    return [candidate for candidate in found if candidate.run_id == run.run_id]
