"""`overread up` under faults: its database killed, its MLflow mute, its processes hung.

MLflow is a port that takes connections and never answers, as one does that hangs: the loop must turn without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from api.cli.processes import PROCESSES
from api.cli.stack import Stack
from registry import candidates, db, jobs, users
from tests import factories
from tests.api.pictures import png
from tests.api.service import free_port
from tests.waiting import descendants, until
from tests.workers.lines import approved, make_line, start_run

SILENCE_SECONDS = 20.0
CASES = 1000
HUNG = ("api", "inference", "relay", "beat", "worker")
ROLES = ("submitter", "approver", "reviewer")
READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


@dataclasses.dataclass(kw_only=True)
class Service:
    """A running service and ways into it."""

    stack: Stack
    headers: dict[str, str]

    def client(self) -> httpx.Client:
        """The API, for somebody who may do most things."""
        return httpx.Client(base_url=self.stack.url, headers=self.headers, timeout=60)

    def connect(self) -> db.Connection:
        """The record."""
        return db.connect(self.stack.environment["OVERREAD_DATABASE_URL"])

    def promoted(self, name: str) -> tuple[candidates.Candidate, float]:
        """Promote a model on a new line over HTTP; return it, and how many seconds the promotion took."""
        with self.connect() as record, self.client() as client:
            line, _ = make_line(record, name=name)
            made = approved(record, blob_root=self.stack.home / "blobs", line=line, seed=len(name))
            began = time.monotonic()
            wish = {"expected_champion": None, "reason": "a test asked for it"}
            answer = client.post(f"/v1/candidates/{made.candidate_id}/promotion", json=wish)
            assert answer.status_code == 201, answer.text
            return made, time.monotonic() - began

    def serves(self, name: str, digest: str) -> bool:
        """Whether the inference process predicts with these weights, by way of the API."""
        with self.client() as client:
            answer = client.post("/v1/predictions", params={"line": name}, files={"image": ("x.png", png())})
        return answer.status_code == 200 and answer.json()["weights_digest"] == digest

    def worked(self, name: str) -> None:
        """Return once relay, broker and worker have brought a job to its end: a freeze of nothing, refused in words."""
        with self.connect() as record:
            line, _ = make_line(record, name=name)
            start_run(record, line)
            until(lambda: not jobs.list_jobs(record, line_id=line.line_id, states=["queued", "running"]), record=record)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Everything but MLflow, as `overread up` starts it, with less patience for silence."""
    table = tuple(dataclasses.replace(process, silence_seconds=SILENCE_SECONDS) for process in PROCESSES)
    ports = {f"OVERREAD_{name}_PORT": str(free_port()) for name in ("API", "INFERENCE")}
    short = {"OVERREAD_LEASE_SECONDS": "6", "OVERREAD_HEARTBEAT_SECONDS": "1", "OVERREAD_RESEND_SECONDS": "4"}
    with socket.socket() as mute, tempfile.TemporaryDirectory(prefix="ovr-", ignore_cleanup_errors=True) as folder:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)
        settings = {**ports, **short, "OVERREAD_MLFLOW_URL": f"http://127.0.0.1:{mute.getsockname()[1]}"}
        with Stack(Path(folder), settings=settings, report=print, processes=table) as stack:
            with db.connect(stack.environment["OVERREAD_DATABASE_URL"]) as record:
                person = users.create_user(record, name="anna", printed_name="Dr Anna", roles=ROLES)
                key = users.create_api_key(record, user_id=person.user_id)
                record.commit()
            yield Service(stack=stack, headers={"Authorization": f"Bearer {key}"})


def test_a_mute_mlflow_holds_up_neither_a_promotion_nor_predictions(service: Service) -> None:
    made, seconds = service.promoted("mute-mlflow")
    served_after = until(lambda: service.serves("mute-mlflow", made.weights_digest))
    print(f"promoted in {seconds:.2f} s, served {served_after:.2f} s later")  # or the client had given up
    with service.connect() as record:
        until(
            lambda: any(job.kind.startswith("mirror_") and job.state == "running" for job in _all(record)),
            record=record,
        )
        assert candidates.get(record, made.candidate_id).mlflow_model_version is None
        assert service.serves("mute-mlflow", made.weights_digest)  # while the mirror waits for an answer


def test_a_killed_database_loses_no_acknowledged_confirmation_and_all_comes_back(service: Service) -> None:
    with service.connect() as record:
        line, sender = factories.line(record), factories.user(record, "submitter")
        cases = [factories.case(record, line, actor=sender).case_id for _ in range(CASES)]
        record.commit()
    queue, turn = iter(cases), threading.Lock()
    given = threading.Semaphore(CASES // 4)  # the rest is given out later, or a quick machine might be done too soon
    answers: list[tuple[float, int, int]] = []
    stopping = threading.Event()

    def confirm() -> None:
        with service.client() as client:
            while not stopping.is_set():
                if not given.acquire(timeout=0.1):
                    continue
                with turn:
                    case = next(queue)
                headers = {"Idempotency-Key": f"case-{case}"}
                while True:
                    answer = client.post(f"/v1/cases/{case}/confirmations", json=READ, headers=headers)
                    answers.append((time.monotonic(), case, answer.status_code))
                    if answer.status_code == 201:
                        break
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["retry-after"]) > 0
                    time.sleep(0.1)

    def acknowledged() -> int:
        return sum(status == 201 for _, _, status in list(answers))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(confirm) for _ in range(4)]
        try:
            until(lambda: acknowledged() > 50)
            began = time.monotonic()
            _kill_with_children(service.stack.pids["postgres"])
            given.release(CASES // 4)
            # Told to come again; or the database was back before anybody had waited too long.
            until(
                lambda: (
                    acknowledged() == 2 * (CASES // 4)
                    or any(at > began and status == 503 for at, _, status in list(answers))
                ),
                what="an answer after the kill",
            )
            until(lambda: _connects(service))
            back, sure = time.monotonic(), acknowledged()
            given.release(CASES // 2)
            recovered = until(lambda: acknowledged() > sure + 20)
        finally:
            stopping.set()
        for client in clients:
            client.result()
    told = sorted(case for _, case, status in answers if status == 201)
    with service.connect() as record:
        rows = record.execute(
            "SELECT case_id FROM confirmations WHERE case_id = ANY(%s) ORDER BY case_id", (cases,)
        ).fetchall()
    assert [row[0] for row in rows] == told  # each once: none lost, none doubled
    print(f"{len(told)} acknowledged; away for {back - began:.1f} s, confirming again {recovered:.1f} s after that")

    service.worked("after-the-kill")
    made, _ = service.promoted("after-the-kill-too")
    until(lambda: service.serves("after-the-kill-too", made.weights_digest))


def test_processes_that_hang_are_killed_and_started_again(service: Service) -> None:
    before = service.stack.pids
    for name in HUNG:
        os.kill(before[name], signal.SIGSTOP)

    def all_new() -> bool:
        now = service.stack.pids
        return all(now.get(name, before[name]) != before[name] for name in HUNG)

    took = until(all_new)
    print(f"all started again within {took:.1f} s of hanging")
    until(lambda: _answers(f"{service.stack.url}/health/live"))
    made, _ = service.promoted("after-the-hang")
    until(lambda: service.serves("after-the-hang", made.weights_digest))
    service.worked("after-the-hang-too")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _connects(service: Service) -> bool:
    try:
        service.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def _all(record: db.Connection) -> list[jobs.Job]:
    return jobs.list_jobs(record, limit=1000)


def _kill_with_children(pid: int) -> None:
    for process in (psutil.Process(pid), *descendants(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends as soon as the first of them does
            process.kill()
