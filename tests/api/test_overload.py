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
from tests.waiting import PATIENCE_SECONDS, until

CLIENTS = 60
THREADS = 40
"""What Starlette has for requests that may block."""


@pytest.fixture
def narrow(service: Service) -> Iterator[tuple[httpx.Client, uvicorn.Server]]:
    """An API with two connections and little patience, as the reviewer sees it, and the server it runs in."""
    settings = ApiSettings.from_environment(service.environment)
    hasty = dataclasses.replace(settings, pool_size=2, statement_seconds=5.0, lock_seconds=5.0)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(hasty), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    key = {"Authorization": f"Bearer {service.keys['reviewer']}"}
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers=key, timeout=PATIENCE_SECONDS, limits=limits
    ) as client:
        until(lambda: server.started or not thread.is_alive())
        yield client, server
    server.should_exit = True
    thread.join(timeout=PATIENCE_SECONDS)


def test_with_every_connection_stuck_requests_are_refused_and_the_process_is_alive(
    service: Service, narrow: tuple[httpx.Client, uvicorn.Server]
) -> None:
    client, server = narrow
    refused_at_signs_of_life = []
    superuser = as_superuser(service.environment["OVERREAD_DATABASE_URL"])
    with ThreadPoolExecutor(CLIENTS) as clients, psycopg.connect(superuser) as holder:
        holder.execute("LOCK TABLE lines IN ACCESS EXCLUSIVE MODE")
        asking = [clients.submit(client.get, "/v1/lines") for _ in range(CLIENTS)]
        until(lambda: len(server.server_state.tasks) == CLIENTS)
        while not all(one.done() for one in asking):
            assert client.get("/health/live").status_code == 200
            refused_at_signs_of_life.append(sum(one.done() for one in asking))
            time.sleep(0.05)
    answers = [one.result() for one in asking]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["type"] for answer in answers} == {"/problems/record-busy", "/problems/record-unavailable"}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    # A request that waits for a thread has its turn when those before it gave up: all but as many as there are threads.
    assert min(refused_at_signs_of_life) < CLIENTS - THREADS
    until(lambda: client.get("/v1/lines").status_code == 200)


def test_a_slow_statement_is_cancelled(shared_database: str) -> None:
    with db.pool(shared_database, statement_seconds=2.0) as pool:
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
        other.execute("SET lock_timeout = '120s'")
        other.execute("SELECT pg_advisory_xact_lock(1)")
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            hanging.execute("SELECT 1")
