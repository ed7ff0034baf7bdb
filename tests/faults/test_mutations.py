"""Each protection has a twin: with it taken out, what the other tests look for is found.

A test of a protection that would pass without it proves nothing. The words taken out are looked for in the source, so
that a change there fails here and is looked at again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from pipelines.train import fit
from registry import blobs, confirmations, datasets, idempotency, jobs, promotions, runs
from registry.db import Connection, connect
from tests import factories
from tests.conftest import as_superuser
from tests.faults.conftest import MakePlace
from tests.faults.mutation import Mutation, mutated
from tests.faults.test_every_faultpoint import killed_and_repeated, unharmed
from tests.faults.whole import assert_record_whole, imagined_files
from tests.faults.zygote import Zygote
from tests.pipelines.toy import PROTOCOL, TRAIN, TUNE

FAULT = 'sys.audit("overread.fault", "'
COMMIT = 'conn.execute("COMMIT"); conn.execute("SELECT 1").fetchone(); '
INSERT_BLOB = (
    'conn.execute("INSERT INTO blobs (digest, size_bytes, media_type) VALUES (%s, %s, %s)",'
    " (digest, len(data), media_type)); conn.commit()"
)

# What is taken out, where it is then killed, and what is found after the repeat (or after the kill already).
KILLED: dict[str, tuple[str, str, tuple[Mutation, ...], str]] = {
    "the answer is stored in the transaction of the effect": (
        "a confirmation",
        "idempotency.finish.before",
        (("registry.idempotency", "finish", FAULT + "idem", COMMIT + FAULT + "idem"),),
        "Left contains one more item",
    ),
    "one reign ends and the next begins in one transaction": (
        "a promotion",
        "promotion.insert.before",
        (("registry.promotions", "_crown", FAULT + "promotion.insert", COMMIT + FAULT + "promotion.insert"),),
        "had a champion and has none",
    ),
    "a promotion and the job that tells MLflow are one transaction": (
        "a promotion",
        "promotion.mirror.before",
        (("registry.promotions", "_crown", FAULT + "promotion.mirror", COMMIT + FAULT + "promotion.mirror"),),
        "MLflow is never told of",
    ),
    "a file is on disk before its row": (
        "an image",
        "blob.write.before",
        (("registry.blobs", "put", "if not _holds", INSERT_BLOB + "\n    if not _holds"),),
        "a row without its bytes",
    ),
    "a file takes its name when it is whole, and what has the name is looked into": (
        "an image",
        "blob.write.before",
        (
            ("registry.blobs", "_write", 'partial / f"{path.name[:16]}.{secrets.token_hex(8)}"', "path"),
            ("registry.blobs", "_holds", "try:", "return path.exists()\n    try:"),
        ),
        "a row with other bytes",
    ),
    "a nudge is noted as sent after the broker took it": (
        "the relay",
        "relay.send.before",
        (
            (
                "workers.relay",
                "send_unsent",
                "if not waiting:",
                "jobs.mark_sent(connection, sent=waiting); connection.commit()\n    if not waiting:",
            ),
        ),
        "no worker would ever hear of it",
    ),
    "a job and its run end in one transaction": (
        "the reaper",
        "reaper.commit.before",
        (
            (
                "workers.relay",
                "put_back",
                "if reaped is not None:\n                runs",
                "connection.commit()\n            if reaped is not None:\n                runs",
            ),
        ),
        "unfinished run that nobody works for",
    ),
    "a result is recorded and its job finished in one transaction": (
        "a worker",
        "job.finish.before",
        (("workers.lease", "Lease.recording", FAULT + "job", "connection.commit(); " + FAULT + "job"),),
        "after a kill at job.finish.before",
    ),
    "a use of the sealed test is looked for before it is paid for": (
        "a gate",
        "sealed.spend.after",
        (("workers.sealing", "spend", "paid(connection, candidate=candidate, champion=champion) or ", ""),),
        "after a kill at sealed.spend.after",
    ),
    "a use of the sealed test is on record before anybody looks": (
        "a gate",
        "science.end.after",
        (
            (
                "workers.sealing",
                "grant",
                "champion=champion)\n    sys.audit",
                "champion=champion)\n        connection.rollback()\n    sys.audit",
            ),
        ),
        "there is no use",
    ),
    "a migration and the note of it are one transaction": (
        "a migration",
        "migration.note.before",
        (("registry.migrate", "migrate", FAULT + "migration.note", COMMIT + FAULT + "migration.note"),),
        "already exists",
    ),
    "a resumed training goes on with the optimiser's state": (
        "a training",
        "training.step.before:10",
        (("pipelines.checkpoint", "_fill", "state.optimiser.state[parameter] = {", "_ = {"),),
        "weights",
    ),
    "the data is in the remote before a tag says so": (
        "a freeze",
        "version.tag.after",
        (
            (
                "pipelines.data_repository",
                "Publisher.publish",
                '["push", [f"{line}/{name}.dvc" for name in TRACKED_LARGE]],',
                "",
            ),
        ),
        "never reached the remote",
    ),
}


@pytest.mark.parametrize("protection", KILLED)
def test_without_it_a_kill_is_noticed(protection: str, zygote: Zygote, make_place: MakePlace, tmp_path: Path) -> None:
    scenario, faultpoint, mutations, found = KILLED[protection]
    _, unbroken = unharmed(scenario, zygote=zygote, make_place=make_place, seen=tmp_path / "seen")
    with pytest.raises(AssertionError, match=found):
        killed_and_repeated(
            scenario, faultpoint, zygote=zygote, make_place=make_place, unbroken=unbroken, mutations=mutations
        )


@pytest.fixture
def record(fresh_database: str) -> Iterator[Connection]:
    """A connection as the service's, which commits what others are to see."""
    with connect(fresh_database) as conn:
        yield conn


@pytest.fixture
def holder(fresh_database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as whoever holds the server, to take constraints out."""
    with psycopg.connect(as_superuser(fresh_database), autocommit=True) as conn:
        yield conn


def without(monkeypatch: pytest.MonkeyPatch, *mutation: str) -> None:
    """Take a protection out until the end of the test."""
    owner, name, changed = mutated(mutation)  # type: ignore[arg-type]  # four words
    monkeypatch.setattr(owner, name, changed)


def assert_whole(record: Connection, home: Path) -> None:
    assert_record_whole(record, home, imagined=imagined_files(record, home))


def test_without_lock_comparison_and_index_many_become_champion(
    fresh_database: str, record: Connection, holder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    racers = 8
    line = factories.line(record)
    approved = [factories.approved_candidate(record, line) for _ in range(racers)]
    actor = factories.user(record, "approver")
    record.commit()
    holder.execute("DROP INDEX promotions_one_champion_per_line")
    together = threading.Barrier(racers)
    monkeypatch.setattr(promotions, "lock_line", lambda *_: together.wait(timeout=60))
    without(monkeypatch, "registry.promotions", "_take_the_line", "if found != expected_champion_id:", "if False:")

    def race(candidate_id: int) -> None:
        with connect(fresh_database) as conn:
            promotions.promote(conn, candidate_id=candidate_id, expected_champion_id=None, actor=actor, reason="x")

    with ThreadPoolExecutor(racers) as threads:
        list(threads.map(race, [candidate.candidate_id for candidate in approved]))
    with pytest.raises(AssertionError, match="a line with two champions"):
        assert_whole(record, tmp_path)


def test_without_the_fence_a_worker_thought_dead_finishes_anothers_job(
    record: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = factories.job(record)
    stale = jobs.claim(record, job_id=job.job_id, owner="stopped", lease_seconds=-1.0)
    assert stale is not None
    jobs.reap(record, job_id=job.job_id)
    assert jobs.claim(record, job_id=job.job_id, owner="its successor", lease_seconds=60.0)
    assert not jobs.finish(record, job_id=job.job_id, fence=stale.fence)
    without(monkeypatch, "registry.jobs", "_end", "AND fence = %(fence)s ", "")
    assert jobs.finish(record, job_id=job.job_id, fence=stale.fence)


def test_without_lock_and_key_a_repeat_in_flight_is_done_twice(
    fresh_database: str, record: Connection, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = factories.user(record, "submitter")
    case = factories.case(record, factories.line(record))
    record.commit()
    holder.execute("ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_pkey")
    without(monkeypatch, "registry.idempotency", "begin", "if mine.fetchone() != (True,):", "if False:")
    both = threading.Barrier(2)
    key: dict[str, Any] = {"user_id": person.user_id, "key": "once", "request_digest": "d"}

    def send(_number: int) -> None:
        with connect(fresh_database) as conn:
            assert idempotency.begin(conn, **key) is None
            both.wait(timeout=60)
            factories.confirmation(conn, case, actor=person)
            idempotency.finish(conn, **key, status=201, body={})

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(send, range(2)))
    assert len(confirmations.list_for_case(record, case.case_id)) == 2


def test_without_its_key_the_same_work_is_asked_for_twice(
    record: Connection, holder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    holder.execute("DROP INDEX jobs_one_unfinished_per_key")
    rule = "ON CONFLICT (unique_key) WHERE state IN ('queued', 'running') DO NOTHING "
    without(monkeypatch, "registry.jobs", "enqueue", rule, "")
    for _ in range(2):
        factories.job(record, unique_key="freeze:7")
    record.commit()
    with pytest.raises(AssertionError, match="two unfinished jobs for the same work"):
        assert_whole(record, tmp_path)


def test_without_its_index_two_ticks_start_two_runs_of_a_line(
    fresh_database: str, record: Connection, holder: Any, tmp_path: Path
) -> None:
    line = factories.line(record)
    record.commit()
    holder.execute("DROP INDEX runs_one_unfinished_per_line")
    with connect(fresh_database) as one, connect(fresh_database) as other:
        for conn in (one, other):
            runs.start_run(conn, line_id=line.line_id, requested_by=None, reason="a tick")
            conn.commit()
    with pytest.raises(AssertionError, match="two unfinished runs of one line"):
        assert_whole(record, tmp_path)


@pytest.mark.parametrize("change", ["UPDATE confirmations SET finding = 'pneumonia'", "DELETE FROM confirmations"])
def test_without_its_trigger_a_diagnosis_changes_and_the_trail_tells(
    record: Connection, holder: Any, tmp_path: Path, change: LiteralString
) -> None:
    factories.confirmation(record, factories.case(record, factories.line(record)))
    record.commit()
    assert_whole(record, tmp_path)
    with pytest.raises(psycopg.errors.RestrictViolation):
        holder.execute(change)
    holder.execute("ALTER TABLE confirmations DISABLE TRIGGER ALL")
    holder.execute(change)
    with pytest.raises(AssertionError, match=r"is not what was written|an event of a confirmation that is not there"):
        assert_whole(record, tmp_path)


def test_without_the_binding_changed_weights_are_promoted_on_old_signatures(
    record: Connection, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = factories.approved_candidate(record, factories.line(record))
    record.commit()
    digest = factories.blob(record)
    record.commit()
    holder.execute("UPDATE candidates SET weights_digest = %s", (digest,))
    without(monkeypatch, "registry.approvals", "standing", "AND bound_digest = %s", "AND %s <> ''")
    assert factories.promotion(record, candidate).candidate_id == candidate.candidate_id


def test_without_the_cap_poison_is_tried_for_ever(
    record: Connection, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = factories.job(record)
    record.commit()
    holder.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_attempts_within_the_cap")
    without(monkeypatch, "registry.jobs", "claim", "attempts < maximum_attempts", "true")
    without(monkeypatch, "registry.jobs", "reap", "WHEN attempts < maximum_attempts", "WHEN true")
    for _ in range(job.maximum_attempts + 2):
        assert jobs.claim(record, job_id=job.job_id, owner="a worker that dies", lease_seconds=-1.0)
        jobs.reap(record, job_id=job.job_id)
    assert jobs.get_job(record, job.job_id).state == "queued"


def test_without_the_resending_a_lost_nudge_is_lost_work(record: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    factories.job(record)
    jobs.mark_sent(record, sent=jobs.list_unsent(record))
    record.execute("UPDATE jobs SET sent_at = now() - interval '1 day'")
    rule, never = " AND sent_at < clock_timestamp()", " AND false AND sent_at < now()"
    without(monkeypatch, "registry.jobs", "resend", rule, never)
    assert jobs.resend(record, after_seconds=1.0) == []
    assert jobs.list_unsent(record) == []


def test_without_clearing_up_a_full_disk_is_filled_with_halves(
    record: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    without(monkeypatch, "registry.blobs", "_write", "temporary.unlink(missing_ok=True)", "pass")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        blobs.put(record, tmp_path, b"pixels", media_type="application/x-npy")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] != []


def test_without_its_number_a_version_is_recorded_twice(record: Connection, holder: Any, monkeypatch: Any) -> None:
    line = factories.line(record)
    record.commit()
    holder.execute("ALTER TABLE dataset_versions DROP CONSTRAINT dataset_versions_one_row_per_number")
    rule = "ON CONFLICT ON CONSTRAINT dataset_versions_one_row_per_number DO NOTHING "
    without(monkeypatch, "registry.datasets", "record_version", rule, "")
    monkeypatch.setattr(datasets, "latest", lambda *_: None)
    for _ in range(2):
        factories.dataset_version(record, line)
    assert [version.number for version in datasets.list_versions(record, line.line_id)] == [1, 1]


def test_without_its_digest_a_damaged_checkpoint_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def epochs_trained() -> list[int]:
        told: list[int] = []
        values: dict[str, Any] = {"protocol": PROTOCOL, "strategy": "full", "seed": 0, "checkpoints": tmp_path}
        fit(TRAIN, TUNE, **values, tell=lambda row: told.append(row["epoch"]))
        return told

    def damage() -> None:
        newest = max(tmp_path.glob("*.safetensors"))
        data = newest.read_bytes()
        newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    assert epochs_trained() == [1, 2, 3]
    damage()
    assert epochs_trained() == [3]  # from the checkpoint before
    damage()
    without(monkeypatch, "pipelines.checkpoint", "_read", 'document["digest"] != digest_of_bytes(data)', "False")
    assert epochs_trained() == []
