"""A client that repeats what was not answered, and an API that is killed again and again."""

from __future__ import annotations

import random
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry import audit, users
from registry.db import connect
from tests import factories
from tests.api.service import free_port, start_api, wait_for

CLIENTS = 6
KILLS = 5
PATIENCE_SECONDS = 120.0


@dataclass
class Api:
    """The API on one port, however often it is started."""

    environment: dict[str, str]
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = start_api(self.environment, port=self.port, log=output)
        wait_for(f"http://127.0.0.1:{self.port}/health/live", process=self.process, log=self.log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=60)


@pytest.fixture
def api(fresh_database: str, tmp_path: Path) -> Iterator[Api]:
    """A running API with a record of its own."""
    port = free_port()
    environment = {
        "OVERREAD_HOME": str(tmp_path / "home"),
        "OVERREAD_DATABASE_URL": fresh_database,
        "OVERREAD_INFERENCE_TOKEN": secrets.token_hex(16),
        "OVERREAD_INFERENCE_URL": f"http://127.0.0.1:{free_port()}",
        "OVERREAD_PATIENT_KEY": secrets.token_hex(32),
    }
    api = Api(environment=environment, port=port, log=tmp_path / "api.log")
    api.start()
    yield api
    api.kill()


def test_what_is_repeated_until_it_is_answered_is_recorded_once_however_often_the_api_dies(
    api: Api, fresh_database: str
) -> None:
    with connect(fresh_database) as conn:
        line, sender = factories.line(conn), factories.user(conn, "submitter")
        cases = [factories.case(conn, line).case_id for _ in range(4)]
        key = users.create_api_key(conn, user_id=sender.user_id)
    answers: dict[str, Any] = {}
    repeated: Counter[str] = Counter()
    over = threading.Event()

    def client(number: int) -> None:
        draw = random.Random(number)
        headers = {"Authorization": f"Bearer {key}"}
        last: dict[int, int] = {}  # case -> this client's latest confirmation of it
        with httpx.Client(base_url=f"http://127.0.0.1:{api.port}", headers=headers, timeout=PATIENCE_SECONDS) as http:
            count = 0
            while not over.is_set():
                count += 1
                case = draw.choice(cases)
                said = {"finding": draw.choice(("normal", "pneumonia")), "evidence": "single_read"}
                said |= {"ai_exposure": "blind", "reader": f"reader-{number}"}
                corrects = {"supersedes": last[case]} if case in last and draw.random() < 0.5 else {}
                name = f"client-{number}-{count}"
                answer = _until_answered(http, f"/v1/cases/{case}/confirmations", said | corrects, name, repeated)
                assert answer.status_code == 201, answer.text
                answers[name] = answer.json()
                last[case] = answer.json()["confirmation_id"]

    draw = random.Random(0)
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                enough, end = len(answers) + draw.randint(1, 25), time.monotonic() + PATIENCE_SECONDS
                while len(answers) < enough and time.monotonic() < end and not any(one.done() for one in running):
                    time.sleep(0.001)
                api.kill()
                api.start()
        finally:
            over.set()
        for one in running:
            one.result(timeout=PATIENCE_SECONDS)

    with connect(fresh_database) as conn:
        rows = conn.execute("SELECT confirmation_id, supersedes FROM confirmations ORDER BY 1").fetchall()
        stored: dict[str, Any] = dict(conn.execute("SELECT key, response_body FROM idempotency_keys").fetchall())
        events = [e for e in audit.list_events(conn, limit=100_000) if e.action == "confirmation:add"]
        assert audit.first_broken(conn) is None
    assert sorted(answer["confirmation_id"] for answer in answers.values()) == [row[0] for row in rows]
    assert {row[0]: row[1] for row in rows} == {a["confirmation_id"]: a["supersedes"] for a in answers.values()}
    assert stored == answers
    assert sorted(event.details["confirmation"] for event in events) == [row[0] for row in rows]
    print(f"{len(rows)} confirmations, {KILLS} kills, {dict(repeated)}")
    assert repeated["unanswered"] > 0


def _until_answered(
    http: httpx.Client, path: str, body: dict[str, Any], key: str, repeated: Counter[str]
) -> httpx.Response:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            answer = http.post(path, json=body, headers={"Idempotency-Key": key})
        except httpx.TransportError:
            repeated["unanswered"] += 1
            time.sleep(0.1)
            continue
        # The session of the killed process is on its way out, or the new one has no connection yet.
        if answer.status_code in {429, 503} or answer.json().get("type", "").endswith("idempotency-in-flight"):
            repeated[f"{answer.status_code}"] += 1
            time.sleep(0.01)
            continue
        if answer.headers.get("idempotent-replayed"):
            repeated["replayed"] += 1
        return answer
    pytest.fail("the API did not come back")
