"""More than the database can take: requests are refused in seconds and say when to come back, and the process lives."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
import uvicorn

from api.app import create_app
from api.settings import ApiSettings
from registry import db
from tests.api.service import Service, free_port
from tests.conftest import as_superuser

CLIENTS = 60


@pytest.fixture
def narrow(service: Service) -> Iterator[httpx.Client]:
    """An API with two connections and little patience, as the reviewer sees it."""
    settings = ApiSettings.from_environment(service.environment)
    hasty = dataclasses.replace(settings, pool_size=2, statement_seconds=2.0, lock_seconds=2.0)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(hasty), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    key = {"Authorization": f"Bearer {service.keys['reviewer']}"}
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=key, timeout=60, limits=limits) as client:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield client
    server.should_exit = True
    thread.join(timeout=30)


def test_with_every_connection_stuck_requests_are_refused_and_the_process_is_alive(
    service: Service, narrow: httpx.Client
) -> None:
    slowest_sign_of_life = 0.0
    superuser = as_superuser(service.environment["OVERREAD_DATABASE_URL"])
    with ThreadPoolExecutor(CLIENTS) as clients, psycopg.connect(superuser) as holder:
        holder.execute("LOCK TABLE lines IN ACCESS EXCLUSIVE MODE")
        asking = [clients.submit(narrow.get, "/v1/lines") for _ in range(CLIENTS)]
        while not all(one.done() for one in asking):
            began = time.monotonic()
            assert narrow.get("/health/live").status_code == 200
            slowest_sign_of_life = max(slowest_sign_of_life, time.monotonic() - began)
            time.sleep(0.05)
    answers = [one.result() for one in asking]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["type"] for answer in answers} == {"/problems/record-busy", "/problems/record-unavailable"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    print(f"{CLIENTS} refused; the slowest sign of life took {slowest_sign_of_life:.2f} s")
    assert slowest_sign_of_life < 5  # a request that waits for a thread waits until the others gave up
    assert narrow.get("/v1/lines").status_code == 200


def test_a_slow_statement_is_cancelled(shared_database: str) -> None:
    with db.pool(shared_database, statement_seconds=0.2) as pool:
        with pytest.raises(psycopg.errors.QueryCanceled), db.transaction(pool) as connection:
            connection.execute("SELECT pg_sleep(60)")
        with db.transaction(pool) as connection:
            assert db.fetch_value(connection, "SELECT 1") == 1


def test_a_process_that_hangs_in_a_transaction_gives_up_its_locks(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "IDLE_SECONDS", 1.0)
    with db.pool(fresh_database) as pool, pool.connection() as hanging, db.connect(fresh_database) as other:
        hanging.execute("SELECT pg_advisory_xact_lock(1)")
        other.execute("SET lock_timeout = '30s'")
        other.execute("SELECT pg_advisory_xact_lock(1)")
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            hanging.execute("SELECT 1")
