"""MLflow follows the record: a real MLflow server, told by the tasks, asked over HTTP."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from registry import audit, candidates, db, promotions, verify
from tests import factories
from tests.api.service import free_port
from tests.forks import Forks
from tests.waiting import PATIENCE_SECONDS, until
from workers import drift
from workers import verify as workers_verify
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.tasks import TASKS

from .conftest import state_of
from .lines import crown, make_line, waiting, work

pytestmark = pytest.mark.usefixtures("at_hand")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """A process that has imported MLflow too."""
    made = Forks("registry.mirror")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an MLflow server of these tests' own."""
    tmp_path = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "mlflow.log"
    places = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination",
        f"{tmp_path}/artifacts",
    ]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *places]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        until(lambda: answers(url), seconds=300, what="an answer of MLflow", log=log, process=process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def shown(url: str, *, line: str, alias: str) -> dict[str, Any]:
    path = f"{url}/api/2.0/mlflow/registered-models/alias"
    answer = httpx.get(path, params={"name": line, "alias": alias}, trust_env=False, timeout=120)
    return dict(answer.json().get("model_version", {}))


def test_mlflow_shows_who_is_champion_though_it_missed_everything_before(
    mlflow: str, settings: WorkerSettings, record: db.Connection
) -> None:
    workshop = Workshop(dataclasses.replace(settings, mlflow_url=mlflow))
    line, _ = make_line(record, name="shown")
    first = crown(record, settings, line, seed=1)
    second = crown(record, settings, line, seed=2)
    jobs_of_promotions = waiting(record, "mirror_promotion")
    assert len(jobs_of_promotions) == 2

    work(workshop, record, "mirror_promotion")  # before any candidate was mirrored: the aliases wait for that
    assert {job.error for job in waiting(record, "mirror_promotion")} == {
        f"candidate {second.candidate_id} is being mirrored; its aliases come after that"
    }
    of_first, of_second = waiting(record, "mirror_candidate")
    record.execute(
        "UPDATE jobs SET state = 'failed', finished_at = now() WHERE job_id = %s", (of_first.job_id,)
    )  # given up for good: whoever sets the aliases then shows that candidate too
    record.execute("UPDATE jobs SET run_after = now() + interval '1 hour' WHERE kind = 'mirror_promotion'")
    record.commit()
    TASKS["mirror_candidate"](workshop, job_id=of_second.job_id)  # what waited for it goes on at once
    work(workshop, record, "mirror_promotion")
    assert {state_of(record, "jobs", job_id=job.job_id) for job in jobs_of_promotions} == {"succeeded"}
    champion, previous = shown(mlflow, line="shown", alias="champion"), shown(mlflow, line="shown", alias="previous")
    assert {tag["key"]: tag["value"] for tag in champion["tags"]}["overread.candidate_id"] == str(second.candidate_id)
    assert {tag["key"]: tag["value"] for tag in previous["tags"]}["overread.candidate_id"] == str(first.candidate_id)

    versions = {one.candidate_id: one.mlflow_model_version for one in candidates.list_candidates(record, line.line_id)}
    assert sorted(map(str, versions.values())) == ["1", "2"]

    promotions.roll_back(
        record,
        line_id=line.line_id,
        expected_champion_id=second.candidate_id,
        actor=factories.user(record, "approver"),
        reason="a test asked for it",
    )
    record.commit()
    work(workshop, record, "mirror_promotion")
    assert shown(mlflow, line="shown", alias="champion")["version"] == versions[first.candidate_id]
    workshop.close()


def told(url: str, path: str, **document: Any) -> None:
    httpx.post(
        f"{url}/api/2.0/mlflow/{path}", json=document, trust_env=False, timeout=PATIENCE_SECONDS
    ).raise_for_status()


def test_an_alias_moved_behind_our_back_is_audited_once_and_set_right(
    mlflow: str, settings: WorkerSettings, record: db.Connection
) -> None:
    settings = dataclasses.replace(settings, mlflow_url=mlflow)
    workshop = Workshop(settings)
    line, _ = make_line(record, name="moved")
    told(mlflow, "registered-models/create", name="moved")
    champions = [crown(record, settings, line, seed=seed) for seed in (1, 2)]
    for version, candidate in enumerate(champions, start=1):  # the models themselves are another test's
        told(mlflow, "model-versions/create", name="moved", source="s3://nowhere/model")
        candidates.set_mlflow_version(record, candidate_id=candidate.candidate_id, version=str(version))
    record.execute("UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE kind = 'mirror_candidate'")
    record.commit()

    def drifts() -> list[dict[str, Any]]:
        record.rollback()
        events = audit.list_events(record, subject=f"line/{line.line_id}", limit=1000)
        return [event.details for event in events if event.action == drift.ACTION]

    def said() -> verify.Finding:
        record.rollback()
        return workers_verify.check_mlflow(record, settings)

    drift.check_mirror(workshop)  # MLflow shows nothing yet, and is about to be told: nobody moved anything
    assert (drifts(), said().state) == ([], "fine")
    work(workshop, record, "mirror_promotion")
    drift.check_mirror(workshop)
    assert (drifts(), waiting(record, "mirror_promotion"), said().state) == ([], [], "fine")

    told(mlflow, "registered-models/alias", name="moved", alias="champion", version="1")
    assert said().detail.startswith("alias champion of moved names version 1, not 2")
    ticks = [threading.Thread(target=drift.check_mirror, args=(workshop,)) for _ in range(4)]
    for tick in ticks:
        tick.start()
    for tick in ticks:
        tick.join()
    drift.check_mirror(workshop)
    found = {"champion": "1", "previous": "1", "challenger": None}
    assert drifts() == [{"found": found, "wanted": {**found, "champion": "2"}}]
    assert len(waiting(record, "mirror_promotion")) == 1
    serving = promotions.champion(record, line.line_id)
    assert serving is not None
    assert serving.candidate_id == champions[1].candidate_id  # what serves follows the record alone
    work(workshop, record, "mirror_promotion")
    assert shown(mlflow, line="moved", alias="champion")["version"] == "2"
    drift.check_mirror(workshop)
    assert len(drifts()) == 1

    told(mlflow, "registered-models/alias", name="moved", alias="champion", version="1")
    drift.check_mirror(workshop)
    assert len(drifts()) == 2  # another time is another event
    workshop.close()


def test_a_candidate_that_passed_is_shown_as_challenger_and_that_is_no_drift(
    mlflow: str, settings: WorkerSettings, record: db.Connection
) -> None:
    settings = dataclasses.replace(settings, mlflow_url=mlflow)
    workshop = Workshop(settings)
    line, _ = make_line(record, name="followed")
    told(mlflow, "registered-models/create", name="followed")
    champion = crown(record, settings, line, seed=1)
    challenger = factories.gated_candidate(record, line)
    for version, candidate in enumerate((champion, challenger), start=1):
        told(mlflow, "model-versions/create", name="followed", source="s3://nowhere/model")
        candidates.set_mlflow_version(record, candidate_id=candidate.candidate_id, version=str(version))
    record.execute("UPDATE jobs SET state = 'succeeded', finished_at = now()")
    told(mlflow, "registered-models/alias", name="followed", alias="champion", version="1")
    record.commit()
    drift.check_mirror(workshop)
    work(workshop, record, "mirror_promotion")
    assert shown(mlflow, line="followed", alias="challenger")["version"] == "2"
    record.rollback()
    assert [event for event in audit.list_events(record, limit=1000) if event.action == drift.ACTION] == []
    workshop.close()


def test_while_mlflow_is_away_nothing_is_said_of_it(settings: WorkerSettings, record: db.Connection) -> None:
    line, _ = make_line(record, name="away")
    candidate = crown(record, settings, line, seed=1)
    candidates.set_mlflow_version(record, candidate_id=candidate.candidate_id, version="1")
    record.execute("UPDATE jobs SET state = 'succeeded', finished_at = now()")
    record.commit()
    workshop = Workshop(settings)
    drift.check_mirror(workshop)
    assert waiting(record) == []
    assert workers_verify.check_mlflow(record, settings).state == "skipped"
    workshop.close()
