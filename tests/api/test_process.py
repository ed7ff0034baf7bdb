"""The API as a process: light, plain about what it lacks, alive when others are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from api.settings import ApiSettings, SettingsError
from tests.api.pictures import png
from tests.api.service import ROOT, Service, free_port, start_api, wait_for

GIVEN = {
    "OVERREAD_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
    "OVERREAD_INFERENCE_TOKEN": "secret-token",
    "OVERREAD_PATIENT_KEY": "ab" * 32,
}


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **GIVEN})


def test_the_process_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'monai', 'celery', 'mlflow', 'dvc', 'pydicom', 'PIL', 'numpy', 'scipy', 'pipelines', 'workers'}"
    done = run(f"import sys; from api.app import serve; serve().openapi(); print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("name", GIVEN)
def test_a_missing_secret_stops_the_start_and_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        ApiSettings.from_environment({key: value for key, value in GIVEN.items() if key != name})


@pytest.mark.parametrize("key", ["not hexadecimal", "abcd", "ab" * 31])
def test_a_weak_patient_key_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="openssl rand -hex 32"):
        ApiSettings.from_environment({**GIVEN, "OVERREAD_PATIENT_KEY": key})


def test_secrets_are_not_in_the_repr_of_the_settings() -> None:
    settings = ApiSettings.from_environment({**GIVEN, "OVERREAD_DATABASE_URL": "postgresql://me:hunter2@db/overread"})
    for secret in ("hunter2", "secret-token", str(settings.patient_key)):
        assert secret not in repr(settings)


def test_ready_when_everything_is_there(service: Service) -> None:
    with service.client(None) as client:
        answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "record": True, "inference": True})


def test_without_inference_it_says_so_and_the_rest_goes_on(service: Service, line: str, tmp_path: Path) -> None:
    gone = {**service.environment, "OVERREAD_INFERENCE_URL": f"http://127.0.0.1:{free_port()}"}
    port, log = free_port(), tmp_path / "api.log"
    headers = {"Authorization": f"Bearer {service.keys['submitter']}"}
    with log.open("wb") as output:
        process = start_api(gone, port=port, log=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live", process=process, log=log)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as client:
                ready = client.get("/health/ready")
                sent = client.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png()})
                read = client.get(f"/v1/lines/{line}")
        finally:
            process.terminate()
            process.wait(timeout=120)
    assert (ready.status_code, ready.json()["record"], ready.json()["inference"]) == (503, True, False)
    assert (sent.status_code, sent.json()["type"]) == (503, "/problems/inference-unavailable")
    assert int(sent.headers["retry-after"]) > 0
    assert read.status_code == 200
    assert read.json()["counts"]["cases"] == 0


def test_without_the_record_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "api.log"
    with log.open("wb") as output:
        process = start_api({**GIVEN, "OVERREAD_HOME": str(tmp_path)}, port=port, log=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live", process=process, log=log)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                ready = client.get("/health/ready")
                asked = client.get("/v1/lines", headers={"Authorization": "Bearer ovr_1_x"})
        finally:
            process.terminate()
            process.wait(timeout=120)
    assert (ready.status_code, ready.json()["record"]) == (503, False)
    assert (asked.status_code, asked.json()["type"]) == (503, "/problems/record-unavailable")


def test_what_is_not_there_is_a_problem_document_too(service: Service) -> None:
    with service.client("operator") as client:
        missing, wrong = client.get("/v1/nothing"), client.delete("/v1/lines")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/not-found")
    assert (wrong.status_code, wrong.json()["type"]) == (405, "/problems/method-not-allowed")
    for answer in (missing, wrong):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.json().keys() == {"type", "title", "status", "detail"}
