"""The tasks, on a real record with real science: each happens once, whatever happens to whoever does it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from registry import audit, candidates, datasets, db, jobs, runs
from registry.jobs import JOB_KINDS
from tests.faults.arming import armed
from tests.waiting import PATIENCE_SECONDS, command_of, descendants, until
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.tasks import TASKS

from .conftest import state_of
from .lines import as_holder, confirm_cases, in_thread, make_line, only, start_run, untrained, work


def science_of(job_directory: str) -> list[psutil.Process]:
    return [process for process in descendants() if any(job_directory in part for part in command_of(process))]


def stop_in_science(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Have the science of this worker stop at a point, as if it took for ever."""
    for name, value in armed(f"{point}:stop").items():
        monkeypatch.setenv(name, value)


def test_every_kind_of_job_has_a_task() -> None:
    assert set(TASKS) == set(JOB_KINDS)


def test_the_worker_itself_imports_no_science_and_no_mlflow() -> None:
    script = "import sys, workers.app, workers.relay; print(sorted({'torch', 'mlflow', 'monai'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_confirmed_cases_become_a_gated_candidate(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=160)
    run = start_run(record, line)

    work(workshop, record, "freeze_dataset")
    version = datasets.latest(record, line.line_id)
    assert version is not None
    assert version.number == 1
    assert version.submitter_shares == {person.name: 1.0}
    assert state_of(record, "runs", run_id=run.run_id) == "training"

    work(workshop, record, "train_candidate")
    (candidate,) = candidates.list_candidates(record, line.line_id)
    assert (settings.blob_root / candidate.weights_digest[:2] / candidate.weights_digest).exists()
    assert [row["epoch"] for row in runs.get(record, run.run_id).history] == [1, 2]
    assert state_of(record, "runs", run_id=run.run_id) == "gating"

    work(workshop, record, "gate_candidate")
    report = candidates.latest_report(record, candidate.candidate_id)
    assert report is not None
    assert report.document["candidate_digest"] == candidate.weights_digest
    assert report.verdict in report.text.lower()
    assert state_of(record, "runs", run_id=run.run_id) == "finished"
    assert not list(settings.jobs.iterdir())

    again = start_run(record, line)  # and now nothing is new
    work(workshop, record, "freeze_dataset")
    assert state_of(record, "runs", run_id=again.run_id) == "refused"
    assert "nothing is new" in str(runs.get(record, again.run_id).outcome)


@pytest.mark.usefixtures("at_hand")
def test_the_same_message_ten_times_freezes_once(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=120)
    start_run(record, line)
    job = only(record)
    threads = [in_thread(workshop, job) for _ in range(10)]
    for thread in threads:
        thread.join()
    assert len(datasets.list_versions(record, line.line_id)) == 1
    assert jobs.get_job(record, job.job_id).attempts == 1


def test_a_warm_stop_gives_the_job_back_uncounted_and_training_resumes(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    slow = {"network": "small_cnn", "epochs": 30, "update_epochs": 1, "threads": 1}
    line, person = make_line(record, recipe=slow)
    confirm_cases(record, settings, line=line, person=person, count=120)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    job = only(record, "train_candidate")
    thread = in_thread(workshop, job)

    def some_epochs() -> bool:
        record.rollback()
        return runs.get(record, run.run_id).progress.get("epoch", 0) >= 2

    until(some_epochs)
    workshop.stopping.set()
    thread.join(timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert not science_of("train_candidate-")
    assert state_of(record, "jobs", job_id=job.job_id) == "queued"
    assert jobs.get_job(record, job.job_id).attempts == 0

    workshop.stopping.clear()
    work(workshop, record, "train_candidate")
    assert state_of(record, "runs", run_id=run.run_id) == "gating"
    assert [row["epoch"] for row in runs.get(record, run.run_id).history] == list(range(1, 31))


def test_a_cancelled_run_kills_its_science(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_science(monkeypatch, "training.step.before:1")  # by itself it never ends
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=120)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    job = only(record, "train_candidate")
    thread = in_thread(workshop, job)
    until(lambda: science_of("train_candidate-"))
    runs.cancel(record, run_id=run.run_id, actor=person)
    record.commit()
    thread.join(timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert not science_of("train_candidate-")
    assert state_of(record, "jobs", job_id=job.job_id) == "cancelled"
    assert state_of(record, "runs", run_id=run.run_id) == "cancelled"


def test_a_lease_taken_over_changes_nothing(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_science(monkeypatch, "shard.rename.before:1")  # or it might be done before it is taken over
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=120)
    start_run(record, line)
    job = only(record)
    thread = in_thread(workshop, job)
    until(lambda: state_of(record, "jobs", job_id=job.job_id) == "running")
    record.execute("UPDATE jobs SET fence = fence + 1, lease_owner = 'another' WHERE job_id = %s", (job.job_id,))
    record.commit()
    thread.join(timeout=PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert state_of(record, "jobs", job_id=job.job_id) == "running"  # the other one's
    assert datasets.latest(record, line.line_id) is None


@pytest.mark.usefixtures("at_hand")
def test_a_crash_at_every_attempt_fails_the_run_and_leaves_the_candidate_as_it_was(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=160)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    candidate = untrained(record, settings, line)
    job = only(record, "gate_candidate")
    as_holder(record, "UPDATE candidates SET metadata = '{}'")  # what the gates cannot read
    for _ in range(job.maximum_attempts):
        record.execute("UPDATE jobs SET run_after = now() - interval '1 hour' WHERE job_id = %s", (job.job_id,))
        record.commit()
        TASKS["gate_candidate"](workshop, job_id=job.job_id)
    assert state_of(record, "jobs", job_id=job.job_id) == "failed"
    assert state_of(record, "runs", run_id=run.run_id) == "failed"
    assert state_of(record, "candidates", candidate_id=candidate.candidate_id) == "trained"
    assert "run:fail" in {event.action[:8] for event in audit.list_events(record, limit=10_000)}


@pytest.mark.usefixtures("at_hand")
def test_mlflow_being_down_costs_the_mirror_a_pause_and_learning_nothing(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=160)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    untrained(record, settings, line)
    mirror = only(record, "mirror_candidate")
    thread = in_thread(workshop, mirror)
    work(workshop, record, "gate_candidate")
    assert state_of(record, "runs", run_id=run.run_id) == "finished"
    thread.join()
    after = jobs.get_job(record, mirror.job_id)
    assert after.state == "queued"
    assert after.maximum_attempts - after.attempts > 50
    assert after.run_after > after.created_at


def test_no_task_is_longer_than_25_lines() -> None:
    for kind, task in TASKS.items():
        assert task.__code__.co_firstlineno
        lines = {line for _, _, line in task.__code__.co_lines() if line is not None}
        assert max(lines) - min(lines) < 26, kind


def test_threads_share_the_workshop(workshop: Workshop) -> None:
    seen: list[int] = []

    def ask() -> None:
        with workshop.transaction() as connection:
            row = connection.execute("SELECT 1").fetchone()
            assert row is not None
            seen.append(row[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8
