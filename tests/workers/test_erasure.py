"""A patient asks to be erased: nothing leads to them any more, and all that happened still stands and fits."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest

from pipelines import images
from pipelines.data_repository import VersionErased
from pipelines.dataset import checkout, open_version
from pipelines.erase import erase as erase_from_versions
from registry import (
    audit,
    blobs,
    candidates,
    cases,
    datasets,
    db,
    erasures,
    guard,
    jobs,
    lines,
    promotions,
    recovery,
    runs,
    verify,
)
from registry.errors import Forbidden, NotFound, NotGuarded
from tests import factories
from tests.waiting import PATIENCE_SECONDS, until
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.verify import check_datasets

from .conftest import state_of
from .lines import confirm_cases, in_thread, make_line, only, start_run, waiting, work

pytestmark = pytest.mark.usefixtures("at_hand")


def erase(record: db.Connection, patient: str, **options: object) -> erasures.Erasure:
    """Erase a patient as the command line does."""
    digest = erasures.digest_of_patient(patient)
    values = {"line": None, "reason": "asked for it", "actor": "olga", **options}
    record.commit()
    with as_owner(record) as owner:
        return erasures.erase(owner, patient_digest=digest, **values)  # type: ignore[arg-type]


def as_owner(record: db.Connection) -> db.Connection:
    """A second connection to the same database, as whoever owns the record."""
    return db.connect(psycopg.conninfo.make_conninfo(record.info.dsn, user="overread_owner"))


def case_of(record: db.Connection, patient: str) -> cases.Case:
    found = record.execute("SELECT case_id FROM cases WHERE patient = %s", (patient,)).fetchone()
    assert found is not None
    return cases.get_case(record, found[0])


def holding(home: Path, needle: bytes) -> list[str]:
    """Every file of a home that holds these bytes."""
    files = (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path.relative_to(home)) for path in files if needle in path.read_bytes())


def naming(home: Path, patient: str) -> list[str]:
    """Every label table of a home, by its first bytes, that has a row of this patient."""
    found = []
    for path in home.rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"PAR1":
            table = pq.read_table(path)
            if "group" in table.column_names and f"patient:{patient}" in table.column("group").to_pylist():
                found.append(str(path.relative_to(home)))
    return sorted(found)


def test_an_erasure_while_a_model_is_learning_leaves_no_bytes_no_key_and_no_link(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, recipe={"network": "small_cnn", "epochs": 400, "update_epochs": 1, "threads": 1})
    confirm_cases(record, settings, line=line, person=person, count=120)
    patient = "patient-0-7"
    case = case_of(record, patient)
    pixels = images.from_npy(blobs.read(settings.blob_root, case.image_digest)).tobytes()

    # A champion that has learned from the first version, made the short way, and a run that learns right now.
    first = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    version = datasets.latest(record, line.line_id)
    assert version is not None
    jobs.request_cancel(record, only(record, "train_candidate").job_id)
    made = candidates.record_candidate(
        record,
        run_id=first.run_id,
        weights_digest=blobs.put(record, settings.blob_root, b"weights", media_type="application/x-safetensors"),
        metadata_digest=blobs.put(record, settings.blob_root, b"{}", media_type="application/json"),
        metadata={},
    )
    factories.gate_report(record, made)
    factories.signatures(record, made, [factories.user(record, "approver") for _ in range(2)])
    factories.promotion(record, made)
    record.commit()
    for job in waiting(record):
        jobs.request_cancel(record, job.job_id)
    record.commit()
    confirm_cases(record, settings, line=line, person=person, count=30, seed=1)
    second = runs.start_run(record, line_id=line.line_id, requested_by=None, reason="more cases", strategy="full")
    record.commit()
    work(workshop, record, "freeze_dataset")
    training = in_thread(workshop, only(record, "train_candidate"))
    until(lambda: runs.get(record, second.run_id).history, what="a first epoch", record=record)
    assert len(holding(settings.home, pixels)) > 3  # blob, shard in repository, cache, remote, checkout
    assert naming(settings.home, patient)
    submitted = record.execute("SELECT count(*) FROM confirmations").fetchone()

    erasure = erase(record, patient)

    # The record: no link, nothing lost, all that learned is named, what still learned is stopped.
    found = cases.get_case(record, case.case_id)
    assert (found.patient, found.external_id, found.sex, found.attributes) == (None, None, None, {})
    assert record.execute("SELECT count(*) FROM confirmations").fetchone() == submitted
    named = {(item.subject, item.name) for item in erasures.concerned(record, erasure.erasure_id)}
    assert named == {
        ("case", f"case {case.case_id}"),
        ("dataset_version", "dataset version 1"),
        ("dataset_version", "dataset version 2"),
        ("run", f"run {second.run_id}"),
        ("candidate", "candidate 1"),
    }
    stopped = runs.get(record, second.run_id)
    assert stopped.state == "cancelled"
    assert f"erasure {erasure.erasure_id}" in (stopped.outcome or "")
    training.join(PATIENCE_SECONDS)
    assert not training.is_alive()

    # The bytes: gone from every file of the service, and gone from what later versions are made of.
    work(workshop, record, "erase_bytes")
    record.rollback()
    assert holding(settings.home, pixels) == []
    assert naming(settings.home, patient) == []
    assert holding(settings.home, patient.encode() + b'"') == []  # cases.ndjson of a job that was cut off
    assert case.image_digest not in dict(recovery.stored_files(record))  # and no backup will look for them
    with pytest.raises(VersionErased, match="start a new run"):
        checkout(settings.data_repository, line=line.name, number=1, into=settings.checkouts)

    # The next step: a run from scratch, on a version with everybody else, on shards of which one was written anew.
    (after,) = runs.list_runs(record, line.line_id, limit=1)
    assert (after.state, after.strategy) == ("freezing", "full")
    assert f"erasure {erasure.erasure_id}" in after.reason
    champion = promotions.champion(record, line.line_id)
    assert champion is not None
    assert champion.candidate_id == made.candidate_id  # it serves on until people decide
    work(workshop, record, "freeze_dataset")
    newest = datasets.latest(record, line.line_id)
    assert newest is not None
    assert newest.number == 3
    got = open_version(checkout(settings.data_repository, line=line.name, number=3, into=settings.checkouts))
    assert set(got.case_ids.tolist()) == {
        row[0] for row in record.execute("SELECT case_id FROM cases WHERE erasure_id IS NULL").fetchall()
    }
    assert len(got.images(range(len(got)))) == 149
    assert holding(settings.home, pixels) == []

    assert audit.first_broken(record) is None
    tell = lambda _what, _done: None  # noqa: E731
    checked = [*verify.check_rows(record, tell=tell), verify.check_blobs(record, root=settings.blob_root, tell=tell)]
    checked += [verify.check_champions(record), check_datasets(record, settings)]
    assert [finding for finding in checked if finding.state != "fine"] == []
    actions = [event.action for event in audit.list_events(record, limit=10_000)]
    assert actions.count("patient:erase") == actions.count("case:erase") == actions.count("patient:erase_bytes") == 1
    whole = record.execute("SELECT string_agg(to_jsonb(audit_events)::text, '') FROM audit_events").fetchone()
    assert whole is not None
    assert patient not in whole[0]


def test_an_erasure_cut_off_at_any_step_is_finished_by_the_next_attempt(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=100)
    start_run(record, line)
    work(workshop, record, "freeze_dataset")
    case = case_of(record, "patient-0-3")
    pixels = images.from_npy(blobs.read(settings.blob_root, case.image_digest)).tobytes()
    erase(record, "patient-0-3")
    (settings.blob_root / case.image_digest[:2] / case.image_digest).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.erase._forget", _die)  # after what follows is published, before anything is removed
        with pytest.raises(KeyboardInterrupt):
            _erase_line(record, settings, line=line, cases={case.case_id})
    assert holding(settings.home, pixels)
    _erase_line(record, settings, line=line, cases={case.case_id})
    assert holding(settings.home, pixels) == []


def test_a_version_that_was_published_but_never_recorded_does_not_bring_anybody_back(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=100)
    run = start_run(record, line)
    job = jobs.claim(record, job_id=only(record, "freeze_dataset").job_id, owner="dies", lease_seconds=60)
    record.commit()
    assert job is not None
    _freeze_and_die(record, settings, run_id=run.run_id)
    case = case_of(record, "patient-0-3")
    erase(record, "patient-0-3")
    assert jobs.finish_cancelled(record, job_id=job.job_id, fence=job.fence)
    record.commit()
    work(workshop, record, "erase_bytes")
    start_run(record, line)
    work(workshop, record, "freeze_dataset")
    got = open_version(checkout(settings.data_repository, line=line.name, number=1, into=settings.checkouts))
    assert case.case_id not in set(got.case_ids.tolist())


def test_the_bytes_wait_until_what_was_stopped_has_ended(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    confirm_cases(record, settings, line=line, person=person, count=2)
    start_run(record, line)
    held = jobs.claim(record, job_id=only(record, "freeze_dataset").job_id, owner="slow", lease_seconds=60)
    assert held is not None
    erase(record, "patient-0-1")
    work(workshop, record, "erase_bytes")
    assert state_of(record, "jobs", kind="erase_bytes") == "queued"  # NotYet: tried again after a pause
    assert jobs.finish_cancelled(record, job_id=held.job_id, fence=held.fence)
    record.execute("UPDATE jobs SET run_after = now()")
    record.commit()
    work(workshop, record, "erase_bytes")
    assert state_of(record, "jobs", kind="erase_bytes") == "succeeded"


def test_an_image_that_somebody_else_has_stays(record: db.Connection, settings: WorkerSettings) -> None:
    line = factories.line(record)
    digest = blobs.put(record, settings.blob_root, b"the same picture", media_type="application/x-npy")
    for patient in ("one", "two"):
        factories.case(record, line, image_digest=digest, patient=patient)
    first = erase(record, "one")
    assert erasures.images_to_remove(record, erasure_id=first.erasure_id, line_id=line.line_id) == []
    second = erase(record, "two")
    assert erasures.images_to_remove(record, erasure_id=second.erasure_id, line_id=line.line_id) == [digest]
    assert erasures.remove_bytes(record, settings.blob_root, digests=[digest]) == 1


def test_an_image_sent_again_just_now_is_not_removed(
    record: db.Connection, fresh_database: str, settings: WorkerSettings
) -> None:
    line = factories.line(record)
    digest = blobs.put(record, settings.blob_root, b"a picture", media_type="application/x-npy")
    factories.case(record, line, image_digest=digest, patient="one")
    erase(record, "one")
    removed: list[int] = []
    with db.connect(fresh_database) as intake, db.connect(fresh_database) as worker:
        blobs.put(intake, settings.blob_root, b"a picture", media_type="application/x-npy")  # it is here, says intake
        remover = threading.Thread(
            target=lambda: removed.append(erasures.remove_bytes(worker, settings.blob_root, digests=[digest]))
        )
        remover.start()
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        until(lambda: record.execute(waits).fetchall(), what="the remover's turn to wait", record=record)
        factories.case(intake, line, image_digest=digest, patient="two")
        intake.commit()
        remover.join(PATIENCE_SECONDS)
    assert removed == [0]
    assert blobs.read(settings.blob_root, digest) == b"a picture"


def test_without_the_lock_on_a_stored_file_a_row_would_lose_its_bytes(
    record: db.Connection, fresh_database: str, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "lock", lambda *_arguments, **_options: None)
    line = factories.line(record)
    digest = blobs.put(record, settings.blob_root, b"a picture", media_type="application/x-npy")
    factories.case(record, line, image_digest=digest, patient="one")
    erase(record, "one")
    with db.connect(fresh_database) as intake:
        blobs.put(intake, settings.blob_root, b"a picture", media_type="application/x-npy")  # it is here, says intake
        assert erasures.remove_bytes(record, settings.blob_root, digests=[digest]) == 1
        factories.case(intake, line, image_digest=digest, patient="two")
    with pytest.raises(NotFound, match="no stored file"):
        blobs.read(settings.blob_root, digest)


def test_who_comes_back_later_is_asked_anew_and_stays(record: db.Connection) -> None:
    line = factories.line(record)
    old = factories.case(record, line, patient="one", external_id="x")
    erase(record, "one")
    record.commit()
    new = factories.case(record, line, patient="one", external_id="x")
    assert new.case_id != old.case_id
    record.commit()
    rows = erasures.as_list(record)
    record.commit()
    with as_owner(record) as owner:
        assert erasures.erase_again(owner, rows) == 0  # a list from elsewhere means the cases of then
    assert cases.get_case(record, new.case_id).patient == "one"


def test_only_the_line_asked_for_is_erased_and_strangers_are_refused(record: db.Connection) -> None:
    here, there = factories.line(record), factories.line(record)
    kept = factories.case(record, there, patient="one")
    factories.case(record, here, patient="one")
    assert erasures.find(record, patient_digest=erasures.digest_of_patient("one"), line=None) == {
        here.name: 1,
        there.name: 1,
    }
    erase(record, "one", line=here.name)
    assert cases.get_case(record, kept.case_id).patient == "one"
    for patient, line in (("nobody", None), ("one", here.name), ("one", "no-such-line")):
        with pytest.raises(NotFound):
            erase(record, patient, line=line)
        record.rollback()


def test_the_service_cannot_take_a_case_from_its_patient(record: db.Connection) -> None:
    line = factories.line(record)
    case = factories.case(record, line, patient="one")
    for statement in (
        "UPDATE cases SET patient = NULL",
        "DELETE FROM cases",
        "INSERT INTO erasures (patient_digest, reason, cases_until) VALUES (repeat('0', 64), 'x', now())",
        "INSERT INTO erasure_effects VALUES (1, 'case', 1)",
        "SELECT erase_patient(encode(sha256('one'), 'hex'), NULL, 'nobody asked', now())",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), record.transaction():
            record.execute(statement)  # type: ignore[arg-type]
    digest = erasures.digest_of_patient("one")
    with pytest.raises(Forbidden, match="overread_service may not erase; only the owner"):
        erasures.erase(record, patient_digest=digest, line=None, reason="nobody asked", actor="mallory")
    assert cases.get_case(record, case.case_id).patient == "one"
    with as_owner(record) as owner:
        owner.execute("GRANT EXECUTE ON FUNCTION erase_patient TO overread_app")
    with pytest.raises(NotGuarded, match="may erase patients"):
        guard.assert_not_owner(record)
    erase(record, "one")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), record.transaction():
        record.execute("UPDATE cases SET patient = 'one' WHERE case_id = %s", (case.case_id,))


def _die(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def _erase_line(record: db.Connection, settings: WorkerSettings, *, line: lines.Line, cases: set[int]) -> None:
    recorded = [version.number for version in datasets.list_versions(record, line.line_id)]
    record.rollback()
    erase_from_versions(
        settings.data_repository,
        remote=settings.dvc_remote,
        line=line.name,
        cases=cases,
        recorded=recorded,
    )


def _freeze_and_die(record: db.Connection, settings: WorkerSettings, *, run_id: int) -> None:
    """Publish a version as a worker does that dies before it can tell the record."""
    from pipelines import freeze  # noqa: PLC0415
    from workers import translate  # noqa: PLC0415

    settings.jobs.mkdir(parents=True, exist_ok=True)
    config = translate.freeze_config(record, run_id=run_id, directory=settings.jobs, settings=settings)
    record.rollback()
    freeze.as_configured(config)
