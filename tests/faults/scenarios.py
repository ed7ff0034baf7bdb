"""What is killed: small pieces of the service's life, each done in a child, repeated after the kill, and then judged.

A scenario prepares a place (in the test's process), acts in it (in a child that may die on the way, and again in one
that does not), and checks what is there at the end, besides what `assert_record_whole` asks of every record.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from api.app import create_app
from api.settings import ApiSettings
from registry import (
    amendments,
    approvals,
    audit,
    candidates,
    datasets,
    db,
    jobs,
    lines,
    migrate,
    promotions,
    runs,
    sealed_tests,
    users,
    verify,
)
from registry.db import Connection
from registry.users import User
from tests import factories
from tests.api.pictures import png
from tests.faults import science
from workers import relay, tasks
from workers.app import QUEUE, make_celery
from workers.lease import Lease, Workshop, claimed
from workers.settings import WorkerSettings

Place = dict[str, Any]
"""`database_url`, `home`, `inference_url`, and what `prepare` adds; plain JSON values, for a child gets them."""

TOKEN = "for-tests-only"
READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One piece of the service's life."""

    prepare: Callable[[Connection, Place], Place]
    act: Callable[[Place], Any]
    check: Callable[[Connection, Place, Any], None]
    """Looks at the record, the place, and what the last, unharmed child was told."""
    subjects: tuple[str, ...]
    """Every fault point of these subjects is on its way, and it is killed there; others may be too."""


def blob_root(place: Place) -> Path:
    """Where a place keeps its files."""
    return Path(place["home"]) / "blobs"


def worker_settings(place: Place) -> WorkerSettings:
    """Settings of a worker that beats once at the beginning and once at the end of each piece of science."""
    given = {
        "OVERREAD_HOME": place["home"],
        "OVERREAD_DATABASE_URL": place["database_url"],
        "OVERREAD_BROKER_URL": "sqla+postgresql+psycopg://" + place["empty_url"].partition("://")[2],
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9",
        "OVERREAD_INFERENCE_TOKEN": TOKEN,
    }
    made = WorkerSettings.from_environment(given)
    return dataclasses.replace(made, lease_seconds=60.0, heartbeat_seconds=600.0, resend_seconds=1.0)


# The doors


def _person(conn: Connection, *roles: str) -> tuple[User, str]:
    person = factories.user(conn, *roles)
    return person, users.create_api_key(conn, user_id=person.user_id)


def _ask(place: Place, path: str, **request: Any) -> tuple[int, Any]:
    """Send one request to the API, in this process, as long as its answer is that the first try is still under way."""
    settings = ApiSettings(
        database_url=place["database_url"],
        blob_root=blob_root(place),
        inference_url=place.get("inference_url", "http://127.0.0.1:9"),
        inference_token=TOKEN,
        patient_key=bytes(32),
        pool_size=2,
    )
    own = {"Authorization": f"Bearer {place['key']}", "Idempotency-Key": "once"}
    headers = {**own, **request.pop("headers", {})}
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def ask() -> tuple[int, Any]:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client,
        ):
            while True:
                answer = await client.post(path, **request)
                if answer.status_code != 409 or answer.json()["type"] != "/problems/idempotency-in-flight":
                    return answer.status_code, answer.json()
                await asyncio.sleep(0.05)  # the server has not noticed yet that the first client is dead

    return asyncio.run(ask())


def _prepare_cases(conn: Connection, place: Place) -> Place:
    person, key = _person(conn, "submitter", "reviewer", "operator")
    line = factories.line(conn)
    made = [factories.case(conn, line, actor=person).case_id for _ in range(2)]
    return {"key": key, "line": line.name, "line_id": line.line_id, "cases": made}


def _confirm(place: Place) -> Any:
    path = f"/v1/cases/{place['cases'][0]}/confirmations"
    return _ask(place, path, json=READ)


def _one_each(conn: Connection, place: Place, cases: list[int]) -> None:
    query = "SELECT case_id FROM confirmations WHERE line_id = %s ORDER BY case_id"
    assert [row[0] for row in conn.execute(query, (place["line_id"],)).fetchall()] == cases


def _check_confirmed(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] == 201, answer
    _one_each(conn, place, place["cases"][:1])
    again = _confirm(place)
    assert again[1] == answer[1], "the repeat was given another answer"


def _confirm_many(place: Place) -> Any:
    rows = "".join(f"{case},pneumonia,single_read,blind,r\n" for case in place["cases"])
    text = "case_id,finding,evidence,ai_exposure,reader\n" + rows
    path = f"/v1/confirmations?line={place['line']}"
    return _ask(place, path, content=text, headers={"Content-Type": "text/csv"})


def _check_bulk(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["accepted"]) == (200, len(place["cases"])), answer
    _one_each(conn, place, place["cases"])


def _submit(place: Place) -> Any:
    form = {"line": place["line"], "site": "north", "external_id": "x-1", "patient": "p"}
    return _ask(place, "/v1/cases", data=form, files={"image": png(place["cases"][0])})


def _check_submitted(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] in {200, 201}, answer
    query = "SELECT case_id FROM cases WHERE external_id = 'x-1' AND line_id = %s"
    found = conn.execute(query, (place["line_id"],)).fetchall()
    assert found == [(answer[1]["case_id"],)]


def _start_run(place: Place) -> Any:
    return _ask(place, f"/v1/lines/{place['line']}/runs", json={"reason": "enough new cases"})


def _check_run(conn: Connection, place: Place, answer: Any) -> None:
    assert answer[0] == 201, answer
    (run,) = runs.list_runs(conn, place["line_id"])
    assert [job.payload for job in jobs.list_jobs(conn, line_id=place["line_id"])] == [{"run_id": run.run_id}]


def _prepare_champion(conn: Connection, place: Place) -> Place:
    person, key = _person(conn, "approver")
    line = factories.line(conn)
    first = factories.champion(conn, line)
    second = factories.approved_candidate(conn, line)
    names = {"key": key, "line": line.name, "line_id": line.line_id, "person": person.user_id}
    return {**names, "first": first.candidate_id, "second": second.candidate_id}


def _promote(place: Place) -> Any:
    wish = {"expected_champion": place["first"], "reason": "it is better"}
    return _ask(place, f"/v1/candidates/{place['second']}/promotion", json=wish)


def _check_champion(conn: Connection, place: Place, candidate_id: int) -> None:
    champion = promotions.champion(conn, place["line_id"])
    assert champion is not None
    assert champion.candidate_id == candidate_id


def _check_promoted(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["candidate_id"]) == (201, place["second"]), answer
    _check_champion(conn, place, place["second"])
    assert len(promotions.history(conn, place["line_id"])) == 2


def _prepare_roll_back(conn: Connection, place: Place) -> Place:
    made = _prepare_champion(conn, place)
    factories.promotion(conn, candidates.get(conn, made["second"]))
    return made


def _roll_back(place: Place) -> Any:
    wish = {"expected_champion": place["second"], "reason": "misses small infiltrates"}
    return _ask(place, f"/v1/lines/{place['line']}/roll-back", json=wish)


def _check_rolled_back(conn: Connection, place: Place, answer: Any) -> None:
    assert (answer[0], answer[1]["candidate_id"]) == (201, place["first"]), answer
    _check_champion(conn, place, place["first"])
    assert len(promotions.history(conn, place["line_id"])) == 3


def _prepare_signature(conn: Connection, place: Place) -> Place:
    person, _ = _person(conn, "approver")
    candidate = factories.gated_candidate(conn, factories.line(conn))
    return {"person": person.user_id, "candidate": candidate.candidate_id}


def _sign(place: Place) -> Any:
    with db.pool(place["database_url"], maximum=2) as pool, db.transaction(pool) as conn:
        person = users.get_user(conn, place["person"])
        if any(one.approver_id == person.user_id for one in approvals.standing(conn, place["candidate"])):
            return "signed already"
        approvals.sign(
            conn, candidate_id=place["candidate"], approver=person, decision="approve", reason="I read the report"
        )
        return "signed"


def _check_signed(conn: Connection, place: Place, _answer: Any) -> None:
    (signature,) = approvals.standing(conn, place["candidate"])
    assert signature.approver_id == place["person"]


def _prepare_amendment(conn: Connection, place: Place) -> Place:
    line = factories.line(conn)
    proposed = factories.amendment(conn, line, title="Pneumonia, more strictly")
    people = [_person(conn, "approver")[0].user_id for _ in range(2)]
    return {"line_id": line.line_id, "amendment": proposed.amendment_id, "people": people}


def _amend(place: Place) -> Any:
    with db.pool(place["database_url"], maximum=2) as pool:
        for number in place["people"]:
            with db.transaction(pool) as conn:
                signed = amendments.signatures(conn, place["amendment"])
                if number not in {one.approver_id for one in signed}:
                    amendments.sign(
                        conn,
                        amendment_id=place["amendment"],
                        approver=users.get_user(conn, number),
                        decision="approve",
                        reason="I read what changes",
                    )
    return "signed"


def _check_amended(conn: Connection, place: Place, _answer: Any) -> None:
    protocol = lines.current_protocol(conn, place["line_id"])
    assert (protocol.version, protocol.amendment_id) == (2, place["amendment"])
    assert verify.check_protocols(conn).state == "fine"


# The glue


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


DOOR = ("transaction", "idempotency")
SCENARIOS: dict[str, Scenario] = {
    "a confirmation": Scenario(prepare=_prepare_cases, act=_confirm, check=_check_confirmed, subjects=DOOR),
    "confirmations in bulk": Scenario(prepare=_prepare_cases, act=_confirm_many, check=_check_bulk, subjects=DOOR),
    "an image": Scenario(prepare=_prepare_cases, act=_submit, check=_check_submitted, subjects=("transaction", "blob")),
    "the wish for a run": Scenario(prepare=_prepare_cases, act=_start_run, check=_check_run, subjects=DOOR),
    "a signature": Scenario(prepare=_prepare_signature, act=_sign, check=_check_signed, subjects=("transaction",)),
    "a promotion": Scenario(
        prepare=_prepare_champion, act=_promote, check=_check_promoted, subjects=(*DOOR, "promotion")
    ),
    "a roll back": Scenario(
        prepare=_prepare_roll_back, act=_roll_back, check=_check_rolled_back, subjects=(*DOOR, "promotion")
    ),
    "an amendment": Scenario(
        prepare=_prepare_amendment, act=_amend, check=_check_amended, subjects=("transaction", "amendment")
    ),
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
    "a new champion": Scenario(
        prepare=lambda conn, place: science.prepare_serving(conn, worker_settings(place)),
        act=lambda place: science.serve(worker_settings(place), line=place["line"]),
        check=science.check_serving,
        subjects=("champion",),
    ),
    "a migration": Scenario(prepare=_prepare_emptiness, act=_migrate, check=_check_migrated, subjects=("migration",)),
    "a training": Scenario(
        prepare=science.prepare_training,
        act=science.train,
        check=science.check_trained,
        subjects=("training", "file"),
    ),
    "a data repository": Scenario(
        prepare=science.prepare_hospital, act=science.set_up, check=science.check_set_up, subjects=("repository",)
    ),
    "a freeze": Scenario(
        prepare=science.prepare_freeze,
        act=science.freeze,
        check=science.check_frozen,
        subjects=("version", "part", "shard"),
    ),
    "a checkout": Scenario(
        prepare=science.prepare_checkout,
        act=science.check_out,
        check=science.check_checked_out,
        subjects=("checkout",),
    ),
}
