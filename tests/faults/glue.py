"""What is killed of the glue: the relay, the reaper, a worker at its job, a gate, a migration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

from registry import audit, candidates, datasets, db, jobs, lines, migrate, runs, sealed_tests
from registry.db import Connection
from tests import factories
from tests.faults.places import Place, Scenario, worker_settings
from workers import relay, tasks
from workers.app import QUEUE, make_celery
from workers.lease import Lease, Workshop, claimed


def _prepare_job(conn: Connection, _place: Place) -> Place:
    line = factories.line(conn)
    run = runs.start_run(conn, line_id=line.line_id, requested_by=None, reason="a test asked for it")
    (job,) = jobs.list_jobs(conn, line_id=line.line_id)
    return {"line_id": line.line_id, "run_id": run.run_id, "job_id": job.job_id}


def _send(place: Place) -> Any:
    celery = make_celery(worker_settings(place))
    with db.connect(place["database_url"]) as conn:
        return relay.send_unsent(conn, celery)


def _check_sent(conn: Connection, place: Place, _answer: Any) -> None:
    assert jobs.get_job(conn, place["job_id"]).sent_at is not None
    celery = make_celery(worker_settings(place))
    with celery.connection_for_read() as broker, broker.SimpleQueue(QUEUE) as queue:
        messages = []
        for _ in range(queue.qsize()):
            message = queue.get(timeout=5)
            message.ack()
            messages.append(message.payload[1]["job_id"])
    assert set(messages) == {place["job_id"]}, "no worker would ever hear of it"
    place["messages"] = len(messages)
    claims = [jobs.claim(conn, job_id=job, owner=f"worker-{n}", lease_seconds=60.0) for n, job in enumerate(messages)]
    assert sum(claim is not None for claim in claims) == 1, "sent twice has to be done once"
    conn.rollback()


def _prepare_dead_worker(conn: Connection, place: Place) -> Place:
    made = _prepare_job(conn, place)
    conn.execute("UPDATE jobs SET attempts = maximum_attempts - 1 WHERE job_id = %s", (made["job_id"],))
    assert jobs.claim(conn, job_id=made["job_id"], owner="a worker that died", lease_seconds=-1.0)
    return made


def _reap(place: Place) -> Any:
    with db.connect(place["database_url"]) as conn:
        return [job.job_id for job in relay.put_back(conn, resend_seconds=60.0)]


def _check_reaped(conn: Connection, place: Place, _answer: Any) -> None:
    assert jobs.get_job(conn, place["job_id"]).state == "failed"
    assert runs.get(conn, place["run_id"]).state == "failed"


def _do_the_job(place: Place) -> Any:
    """What a task does, with science of a tenth of a second: claim, run, record; the reaper has been by before."""
    with db.connect(place["database_url"]) as conn:
        conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")  # time passes
        relay.put_back(conn, resend_seconds=60.0)
    workshop = Workshop(worker_settings(place))
    with claimed(workshop, job_id=place["job_id"]) as lease:
        if lease is None:
            return "it is done"
        result = lease.run("tests.faults.short_science", name=f"freeze_dataset-{place['run_id']}", config={"number": 1})
        with lease.recording() as conn:
            version = _record_version(conn, runs.get(conn, place["run_id"]), number=result["number"])
            runs.attach_dataset(
                conn, run_id=place["run_id"], dataset_version_id=version.dataset_version_id, base_candidate_id=None
            )
    workshop.close()
    return "done"


def _record_version(conn: Connection, run: runs.Run, *, number: int) -> datasets.DatasetVersion:
    return datasets.record_version(
        conn,
        line_id=run.line_id,
        number=number,
        protocol_id=run.protocol_id,
        digest="0" * 64,
        git_tag=f"line/v{number:04d}",
        git_commit="0" * 40,
        manifest={"number": number},
        submitter_shares={},
        waiting={},
        last_confirmation_id=0,
    )


def _check_done(conn: Connection, place: Place, _answer: Any) -> None:
    assert jobs.get_job(conn, place["job_id"]).state == "succeeded"
    assert len(datasets.list_versions(conn, place["line_id"])) == 1
    assert runs.get(conn, place["run_id"]).state == "training"
    waiting = jobs.list_jobs(conn, line_id=place["line_id"], states=["queued"])
    assert [job.kind for job in waiting] == ["train_candidate"]


def _prepare_gates(conn: Connection, _place: Place) -> Place:
    candidate = factories.candidate(conn, factories.line(conn))
    (job,) = [job for job in jobs.list_jobs(conn, line_id=candidate.line_id) if job.kind == "gate_candidate"]
    return {"line_id": candidate.line_id, "candidate": candidate.candidate_id, "job_id": job.job_id}


def _judge(place: Place) -> Any:
    """The gate's task, with science of a tenth of a second that writes down what it was asked and granted."""
    with db.connect(place["database_url"]) as conn:
        conn.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'")  # time passes
        relay.put_back(conn, resend_seconds=60.0)
        candidate = candidates.get(conn, place["candidate"])
        version, protocol = (
            datasets.get(conn, candidate.dataset_version_id),
            lines.protocol(conn, candidate.protocol_id),
        )
    run_science = Lease.run

    def short(lease: Lease, module: str, *, name: str, config: dict[str, Any], **_others: Any) -> dict[str, Any]:
        assert module == "pipelines.gates", "nothing else is asked here"
        with (Path(place["home"]) / "looks").open("a") as looks:
            looks.write(json.dumps(config["use"]) + "\n")
        run_science(lease, "tests.faults.short_science", name=name, config={})
        if config["use"] is None:
            return {"verdict": "pass"}
        document = {
            "candidate_digest": candidate.weights_digest,
            "champion_digest": None,
            "dataset_digest": version.digest,
            "protocol_digest": protocol.digest,
            "verdict": "insufficient",
            "sealed_test": config["use"],
            "results": [],
        }
        return {"verdict": "insufficient", "report": document, "text": "short", "digest": audit.digest_of(document)}

    workshop = Workshop(worker_settings(place))
    with mock.patch.object(tasks, "_check_out", return_value={}), mock.patch.object(Lease, "run", short):
        tasks.gate_candidate(workshop, job_id=place["job_id"])
    workshop.close()
    return "done"


def _check_judged(conn: Connection, place: Place, _answer: Any) -> None:
    (use,) = sealed_tests.list_uses(conn, place["line_id"])
    assert use.passed is False, "the use has no answer"
    looks = list(map(json.loads, (Path(place["home"]) / "looks").read_text(encoding="utf-8").splitlines()))
    assert looks[0] is None, "the sealed test was looked at before what costs nothing was asked"
    assert all(look == use.named() for look in looks if look is not None), "somebody looked for free, or paid twice"
    assert looks[-1] is not None, "the last to look was not granted anything"
    report = candidates.latest_report(conn, place["candidate"])
    assert report is not None
    assert report.sealed_test_use_id == use.sealed_test_use_id


# The record itself


def _prepare_emptiness(_conn: Connection, place: Place) -> Place:
    with db.connect(place["empty_url"]) as conn:
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
    return {}


def _migrate(place: Place) -> Any:
    with db.connect(place["empty_url"]) as conn:
        return migrate.migrate(conn)


def _check_migrated(_conn: Connection, place: Place, _answer: Any) -> None:
    with db.connect(place["empty_url"]) as conn:
        assert migrate.pending(conn) == []
        count = conn.execute("SELECT count(*), max(number) FROM schema_migrations").fetchone()
        assert count is not None
        assert count[0] == count[1]


SCENARIOS = {
    "the relay": Scenario(prepare=_prepare_job, act=_send, check=_check_sent, subjects=("relay",)),
    "the reaper": Scenario(prepare=_prepare_dead_worker, act=_reap, check=_check_reaped, subjects=("reaper",)),
    "a worker": Scenario(
        prepare=_prepare_job, act=_do_the_job, check=_check_done, subjects=("transaction", "science", "job")
    ),
    "a gate": Scenario(
        prepare=_prepare_gates,
        act=_judge,
        check=_check_judged,
        subjects=("transaction", "sealed", "science", "job"),
    ),
    "a migration": Scenario(prepare=_prepare_emptiness, act=_migrate, check=_check_migrated, subjects=("migration",)),
}
