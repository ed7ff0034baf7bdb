"""MLflow follows the record: a real MLflow server, told by the tasks, asked over HTTP."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry import candidates, db, promotions
from tests import factories
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.tasks import TASKS

from .conftest import state_of
from .lines import crown, make_line, waiting, work


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[str]:
    """URL of an MLflow server of the test's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        end = time.monotonic() + 180
        while not answers(url):
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def shown(url: str, *, line: str, alias: str) -> dict[str, Any]:
    path = f"{url}/api/2.0/mlflow/registered-models/alias"
    answer = httpx.get(path, params={"name": line, "alias": alias}, trust_env=False)
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
    record.execute("UPDATE jobs SET run_after = now() WHERE kind = 'mirror_promotion'")
    record.commit()
    TASKS["mirror_candidate"](workshop, job_id=of_second.job_id)
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
