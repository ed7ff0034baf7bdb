"""Workers as they run: settings for a database and a home of the test's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import db
from tests.forks import Forks
from workers.lease import Workshop
from workers.settings import WorkerSettings


def make_settings(database_url: str, home: Path) -> WorkerSettings:
    """Settings with leases short enough to watch them run out."""
    given = {
        "OVERREAD_HOME": str(home),
        "OVERREAD_DATABASE_URL": database_url,
        "OVERREAD_BROKER_URL": "memory://",
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9",  # the discard port: nobody answers
        "OVERREAD_INFERENCE_TOKEN": "for-tests-only",
        "OVERREAD_MIRROR_NICENESS": "0",  # the tests do wait for it, beside others that hold the processors
    }
    made = WorkerSettings.from_environment(given)
    return dataclasses.replace(made, lease_seconds=3.0, heartbeat_seconds=0.2, resend_seconds=1.0)


@pytest.fixture
def settings(fresh_database: str, tmp_path: Path) -> WorkerSettings:
    """Settings on a database and a home of the test's own."""
    return make_settings(fresh_database, tmp_path / "home")


@pytest.fixture
def workshop(settings: WorkerSettings) -> Iterator[Workshop]:
    """A workshop on those settings."""
    made = Workshop(settings)
    yield made
    made.close()


@pytest.fixture
def record(fresh_database: str) -> Iterator[db.Connection]:
    """A connection for the test itself, which commits what others are to see."""
    with db.connect(fresh_database) as connection:
        yield connection


@pytest.fixture
def at_hand(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have jobs forked: for tests that ask what becomes of them, not how they are started."""
    monkeypatch.setattr("workers.supervise.start", forks.start)


def state_of(record: db.Connection, table: str, **key: Any) -> str:
    """State of a row, as others see it now."""
    record.rollback()
    ((name, value),) = key.items()
    row = record.execute(f"SELECT state FROM {table} WHERE {name} = %s", (value,)).fetchone()  # type: ignore[arg-type]  # noqa: S608 - names from the tests
    assert row is not None
    return str(row[0])
