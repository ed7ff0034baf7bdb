"""The inference process: predictions by digest, champions swapped under load, hostile input refused."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipelines import images
from registry import audit, blobs, db
from tests.api.service import free_port
from tests.waiting import PATIENCE_SECONDS, until
from workers.champions import Champions
from workers.settings import WorkerSettings

from .conftest import make_settings
from .lines import crown, make_line

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Inference:
    """A running inference process."""

    url: str
    process: subprocess.Popen[bytes]
    client: httpx.Client


def picture(seed: int = 0, *, shape: tuple[int, ...] = (28, 28)) -> bytes:
    return images.npy_bytes(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def settings(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """Settings that the tests of this module share with one inference process; each takes a line of its own."""
    return make_settings(module_database, tmp_path_factory.mktemp("home"))


@pytest.fixture
def record(settings: WorkerSettings) -> Iterator[db.Connection]:
    """A connection for the test itself, which commits what the process is to see."""
    with db.connect(settings.database_url) as connection:
        yield connection


@pytest.fixture
def alone(fresh_database: str, tmp_path: Path) -> Iterator[tuple[WorkerSettings, db.Connection]]:
    """Settings and a record that no other inference process follows."""
    with db.connect(fresh_database) as connection:
        yield make_settings(fresh_database, tmp_path / "home"), connection


@pytest.fixture(scope="module")
def inference(settings: WorkerSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inference]:
    """The process itself."""
    port, token = free_port(), secrets.token_hex(16)
    environment = {
        **os.environ,
        "OVERREAD_HOME": str(settings.home),
        "OVERREAD_DATABASE_URL": settings.database_url,
        "OVERREAD_INFERENCE_PORT": str(port),
        "OVERREAD_INFERENCE_TOKEN": token,
    }
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("logs") / "inference.log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "workers.inference"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)
    try:
        until(lambda: answers(client), what="an answer", log=log, process=process)
        yield Inference(url=url, process=process, client=client)
    finally:
        client.close()
        process.terminate()
        assert process.wait(timeout=PATIENCE_SECONDS) in {0, -15}, log.read_text()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def serves(inference: Inference, line: str, digest: str) -> bool:
    serving = inference.client.get("/health").json()["lines"].get(line)
    return bool(serving) and serving["digest"] == digest


def test_the_champion_answers_with_its_digest_and_decision(
    inference: Inference, record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record, name="chest")
    path = "/lines/chest/predictions"
    assert inference.client.post("/lines/nobody/predictions", content=picture()).status_code == 404
    answer = inference.client.post(path, content=picture())
    assert (answer.status_code, answer.json()["code"]) == (409, "no-champion")

    champion = crown(record, settings, line, seed=1)
    until(lambda: serves(inference, "chest", champion.weights_digest))
    answer = inference.client.post(path, content=picture())
    assert answer.status_code == 200
    said = answer.json()
    assert said["weights_digest"] == champion.weights_digest
    assert said["number"] == champion.number
    assert sum(said["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert said["decision"] == ("pneumonia" if said["scores"]["pneumonia"] >= said["threshold"] else "normal")
    assert said["latency_seconds"] > 0
    east, west = (inference.client.post(path, params={"site": site}, content=picture()).json() for site in ("east", ""))
    assert (east["threshold"], east["decision"], east["scores"]) == (0.0, "pneumonia", said["scores"])
    assert (west["threshold"], west["operating_point"]) == (0.4, said["operating_point"])

    heat = inference.client.post("/lines/chest/heat-map?finding=pneumonia", content=picture(shape=(90, 70, 3)))
    assert heat.status_code == 200
    assert images.decode(heat.content).pixels.shape == (28, 28)
    assert inference.client.post("/lines/chest/heat-map?finding=gout", content=picture()).status_code == 422


def test_no_door_but_health_opens_without_the_token(inference: Inference) -> None:
    with httpx.Client(base_url=inference.url, trust_env=False, timeout=120) as stranger:
        assert stranger.get("/health").status_code == 200
        for path in ("/decode", "/lines/chest/predictions", "/lines/chest/heat-map?finding=x", "/protocols/check"):
            assert stranger.post(path, content=b"").status_code == 401
            wrong = stranger.post(path, content=b"", headers={"Authorization": "Bearer nöt-it".encode()})
            assert wrong.status_code == 401


def test_images_are_decoded_in_the_jail_and_hostile_ones_refused(inference: Inference) -> None:
    honest = images.png_bytes(np.arange(100, dtype=np.uint8).reshape(10, 10))
    answer = inference.client.post("/decode", content=honest, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert np.load(io.BytesIO(answer.content)).shape == (10, 10)
    assert json.loads(answer.headers["x-overread-attributes"]) == {}
    refused = inference.client.post("/decode", content=b"%PDF-1.7")
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported-format")
    assert inference.client.post("/decode", content=b"\0" * (64 * 1024**2 + 1)).status_code == 413
    damaged = inference.client.post("/lines/chest/predictions", content=b"\x93NUMPY" + b"\xff" * 50)
    assert damaged.status_code == 422


def test_a_protocol_is_checked_field_by_field(inference: Inference) -> None:
    text = (ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml").read_text(encoding="utf-8")
    good = inference.client.post("/protocols/check", content=text)
    assert good.status_code == 200
    assert len(good.json()["digest"]) == 64
    bad = inference.client.post("/protocols/check", content=text.replace("positive: pneumonia", "positive: gout"))
    assert bad.status_code == 422
    assert "gout" in bad.json()["errors"][0]["message"]


def test_champions_are_swapped_under_load_without_one_failed_request(
    inference: Inference, record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record, name="busy")
    first = crown(record, settings, line, seed=1)
    until(lambda: serves(inference, "busy", first.weights_digest))
    stop, failures, digests = threading.Event(), [], []

    def client() -> None:
        with httpx.Client(
            base_url=inference.url, headers=inference.client.headers, timeout=60, trust_env=False
        ) as http:
            while not stop.is_set():
                try:
                    answer = http.post("/lines/busy/predictions", content=picture())
                except httpx.HTTPError as error:
                    failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    digests.append(answer.json()["weights_digest"])
                else:
                    failures.append(answer.text)

    clients = [threading.Thread(target=client) for _ in range(8)]
    for thread in clients:
        thread.start()
    for seed in range(2, 6):
        promoted = crown(record, settings, line, seed=seed)
        until(lambda digest=promoted.weights_digest: digest in digests[-20:])  # type: ignore[misc]
    stop.set()
    for thread in clients:
        thread.join()
    assert failures == []
    assert len(set(digests)) == 5
    assert len(digests) > 50


def test_weights_damaged_before_they_are_loaded_never_serve_and_raise_one_alarm(
    alone: tuple[WorkerSettings, db.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, record = alone
    line, _ = make_line(record, name="careful")
    first = crown(record, settings, line, seed=1)
    champions = Champions(settings)  # not started: it looks when it is told to
    champions.refresh(record)
    second = crown(record, settings, line, seed=2)
    path = blobs.path_of(settings.blob_root, second.weights_digest)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    monkeypatch.setattr("workers.champions.RETRY_SECONDS", 0.0)
    for _ in range(3):
        champions.refresh(record)
    assert champions.serving("careful").candidate.candidate_id == first.candidate_id
    assert champions.score("careful", images.from_npy(picture()))[0].candidate.candidate_id == first.candidate_id
    assert champions.alarms()["careful"].startswith(f"candidate {second.number}: it cannot serve, nothing is swapped")
    assert alarms_of(record, second.candidate_id) == [second.weights_digest]
    path.write_bytes(whole)  # as from a backup
    champions.refresh(record)
    assert champions.serving("careful").candidate.candidate_id == second.candidate_id
    assert champions.alarms() == {}
    close(champions)


def test_weights_damaged_while_they_serve_stop_nobody_and_raise_one_alarm_until_they_are_back(
    alone: tuple[WorkerSettings, db.Connection],
) -> None:
    settings, record = alone
    line, _ = make_line(record, name="watched")
    champion = crown(record, settings, line, seed=1)
    champions = Champions(settings)
    champions.refresh(record)
    champions.check_weights(record)
    assert champions.alarms() == {}
    path = blobs.path_of(settings.blob_root, champion.weights_digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    for _ in range(3):
        champions.check_weights(record)
    assert "is damaged; restore it from a backup; it goes on serving from memory" in champions.alarms()["watched"]
    assert alarms_of(record, champion.candidate_id) == [champion.weights_digest]
    assert champions.score("watched", images.from_npy(picture()))[0].candidate.candidate_id == champion.candidate_id
    path.write_bytes(whole)
    champions.check_weights(record)
    assert champions.alarms() == {}
    close(champions)


def test_the_alarm_is_in_the_health_of_the_inference_process(
    inference: Inference, record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record, name="alarmed")
    first = crown(record, settings, line, seed=1)
    until(lambda: serves(inference, "alarmed", first.weights_digest))
    inference.process.send_signal(signal.SIGSTOP)  # or it might be faster than the damage
    try:
        second = crown(record, settings, line, seed=2)
        blobs.path_of(settings.blob_root, second.weights_digest).write_bytes(b"not these")
    finally:
        inference.process.send_signal(signal.SIGCONT)
    until(lambda: "alarmed" in inference.client.get("/health").json()["alarms"])
    assert serves(inference, "alarmed", first.weights_digest)
    assert f"candidate {second.number}" in inference.client.get("/health").json()["alarms"]["alarmed"]


def alarms_of(record: db.Connection, candidate_id: int) -> list[str]:
    record.rollback()
    events = audit.list_events(record, subject=f"candidate/{candidate_id}", limit=1000)
    return [event.details["weights"] for event in events if event.action == "weights:alarm"]


def close(champions: Champions) -> None:
    for serving in champions.lines().values():
        if serving is not None:
            serving.batcher.close()


def test_the_old_champion_keeps_serving_while_the_record_is_away(
    settings: WorkerSettings, record: db.Connection
) -> None:
    line, _ = make_line(record, name="steady")
    first = crown(record, settings, line, seed=1)
    champions = Champions(settings)
    champions.start()
    try:
        record.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        record.commit()
        pixels = images.from_npy(picture())
        assert champions.score("steady", pixels)[0].candidate.candidate_id == first.candidate_id
        second = crown(record, settings, line, seed=2)
        until(lambda: champions.serving("steady").candidate.candidate_id == second.candidate_id)
    finally:
        champions.stop()
