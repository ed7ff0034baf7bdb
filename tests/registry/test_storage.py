"""Blobs, lines, and the ground they stand on: durability, migrations, the schema file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from registry import audit, blobs, db, guard, lines, migrate
from registry.db import Connection, connect
from registry.errors import (
    AlreadyExists,
    BlobCorrupt,
    EvidenceMismatch,
    Invalid,
    MigrationRefused,
    NotDurable,
    NotFound,
    WrongLine,
)
from tests import factories
from tests.conftest import as_service, as_superuser
from tests.waiting import until


def test_a_stored_file_comes_back_by_its_digest(db: Connection, tmp_path: Path) -> None:
    digest = blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy")
    assert digest == hashlib.sha256(b"pixels").hexdigest()
    assert blobs.read(tmp_path, digest) == b"pixels"
    assert blobs.path_of(tmp_path, digest) == tmp_path / digest[:2] / digest
    assert blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy") == digest
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [digest]
    assert db.execute("SELECT size_bytes FROM blobs WHERE digest = %s", (digest,)).fetchall() == [(6,)]


def test_a_damaged_file_is_refused_and_mended_by_storing_it_again(db: Connection, tmp_path: Path) -> None:
    digest = blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy")
    blobs.path_of(tmp_path, digest).write_bytes(b"pixelz")
    with pytest.raises(BlobCorrupt):
        blobs.read(tmp_path, digest)
    blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy")
    assert blobs.read(tmp_path, digest) == b"pixels"


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        blobs.read(tmp_path, "0" * 64)
    with pytest.raises(Invalid):
        blobs.read(tmp_path, "../../etc/passwd")


def test_a_full_disk_leaves_no_halves_and_no_row(
    db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    digest = hashlib.sha256(b"pixels").hexdigest()
    assert db.execute("SELECT count(*) FROM blobs WHERE digest = %s", (digest,)).fetchone() == (0,)


def test_what_a_killed_write_left_is_swept_and_what_is_being_written_is_not(db: Connection, tmp_path: Path) -> None:
    left, written = (tmp_path / ".partial" / name for name in ("left", "written"))
    left.parent.mkdir()
    for path in (left, written):
        path.write_bytes(b"half of an image")
    os.utime(left, (0, 0))
    blobs.put(db, tmp_path, b"pixels", media_type="application/x-npy")
    assert list(left.parent.iterdir()) == [written]


def test_a_line_starts_with_the_first_version_of_its_protocol(db: Connection) -> None:
    line = factories.line(db)
    protocol = lines.current_protocol(db, line.line_id)
    assert (protocol.version, protocol.document["line"], len(line.split_key)) == (1, line.name, 32)
    assert protocol.classes == ("normal", "pneumonia")
    assert lines.protocol(db, protocol.protocol_id) == protocol
    assert line in lines.list_lines(db)
    assert line.split_key.hex() not in repr(line)


def test_a_line_is_not_made_twice_nor_from_a_protocol_of_another(db: Connection) -> None:
    actor = factories.user(db, "operator")
    document = factories.protocol_document(line="one")
    digest = audit.digest_of(document)
    lines.create_line(db, name="one", document=document, digest=digest, actor=actor)
    with pytest.raises(AlreadyExists):
        lines.create_line(db, name="one", document=document, digest=digest, actor=actor)
    with pytest.raises(WrongLine):
        lines.create_line(db, name="two", document=document, digest=digest, actor=actor)
    with pytest.raises(EvidenceMismatch):
        lines.create_line(db, name="one", document=document, digest="0" * 64, actor=actor)


def test_a_server_that_may_lose_what_it_acknowledged_is_refused(fresh_database: str) -> None:
    with connect(as_superuser(fresh_database)) as conn:
        conn.autocommit = True
        with pytest.raises(NotDurable, match="fsync = on"):  # the tests' own server runs without
            guard.assert_durable(conn)
        try:
            _set_fsync(conn, "on")
            guard.assert_durable(conn)
            conn.execute("SET synchronous_commit = off")
            with pytest.raises(NotDurable, match="synchronous_commit"):
                guard.assert_durable(conn)
        finally:
            _set_fsync(conn, "off")


def test_a_transaction_is_kept_whole_or_not_at_all(fresh_database: str) -> None:
    with db.pool(fresh_database, minimum=1, maximum=2) as pool:
        with db.transaction(pool) as conn:
            kept = factories.user(conn)
        with pytest.raises(NotFound), db.transaction(pool) as conn:
            blobs.read(Path(factories.user(conn).name), "0" * 64)
        with db.transaction(pool) as conn:
            assert conn.execute("SELECT name FROM users").fetchall() == [(kept.name,)]
            assert conn.execute("SHOW timezone").fetchone() == ("UTC",)


def test_migrating_twice_changes_nothing_the_second_time(empty_database: str) -> None:
    with connect(empty_database) as conn:
        waiting = migrate.pending(conn)
        assert migrate.migrate(conn) == waiting
        assert waiting[0] == "0001_create_the_record"
        assert migrate.migrate(conn) == []
        assert migrate.pending(conn) == []


def test_two_processes_that_start_at_once_migrate_once(empty_database: str) -> None:
    def start(_number: int) -> list[str]:
        with connect(empty_database) as conn:
            return migrate.migrate(conn)

    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(start, range(4)))
    assert sorted(len(names) > 0 for names in applied) == [False, False, False, True]


def test_a_migration_that_changed_or_vanished_is_refused(empty_database: str, tmp_path: Path) -> None:
    first, second = tmp_path / "0001_make_a.sql", tmp_path / "0002_make_b.sql"
    first.write_text("CREATE TABLE a ();")
    second.write_text("CREATE TABLE b ();")
    with connect(empty_database) as conn:
        assert migrate.migrate(conn, tmp_path) == ["0001_make_a", "0002_make_b"]
        first.write_text("CREATE TABLE a (x integer);")
        with pytest.raises(MigrationRefused, match="0001_make_a"):
            migrate.migrate(conn, tmp_path)
        first.write_text("CREATE TABLE a ();")
        second.unlink()
        with pytest.raises(MigrationRefused, match="newer version"):
            migrate.migrate(conn, tmp_path)


def test_a_migration_that_fails_leaves_nothing_behind(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "0001_make_a.sql").write_text("CREATE TABLE a ();")
    broken = tmp_path / "0002_make_b.sql"
    broken.write_text("CREATE TABLE b (); SELECT 1 / 0;")
    with connect(empty_database) as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrate.migrate(conn, tmp_path)
        assert conn.execute("SELECT to_regclass('a')::text, to_regclass('b')").fetchone() == ("a", None)
        broken.write_text("CREATE TABLE b ();")
        assert migrate.migrate(conn, tmp_path) == ["0002_make_b"]


def test_a_gap_in_the_numbers_is_refused(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "0002_make_b.sql").write_text("CREATE TABLE b ();")
    with connect(empty_database) as conn, pytest.raises(MigrationRefused, match="0001_verb_noun"):
        migrate.migrate(conn, tmp_path)


def test_the_command_migrates_as_the_owner_and_refuses_what_is_not_safe(empty_database: str, template: str) -> None:
    del template  # it made the service's login

    def run(service: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "registry.migrate"],
            env={**os.environ, "OVERREAD_OWNER_DATABASE_URL": empty_database, "OVERREAD_DATABASE_URL": service},
            check=False,
            capture_output=True,
            text=True,
        )

    with connect(empty_database) as conn:
        conn.autocommit = True
        first = run(as_service(empty_database))
        assert "applied 0001_create_the_record" in first.stdout
        assert first.returncode == 1, "the tests' own server runs without fsync"
        assert "fsync = off" in first.stderr
        try:
            _set_fsync(conn, "on")
            again = run(as_service(empty_database))
            assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
            owner = run(empty_database)
            assert owner.returncode == 1
            assert "signs in as postgres, who owns the record" in owner.stderr
            conn.execute("ALTER TABLE approvals DISABLE TRIGGER approvals_are_not_truncated")
            opened = run(as_service(empty_database))
            assert opened.returncode == 1
            assert "approvals lost a trigger" in opened.stderr
        finally:
            _set_fsync(conn, "off")


def test_schema_sql_is_what_the_migrations_add_up_to(template: str) -> None:
    written = migrate.SCHEMA.read_text(encoding="utf-8")
    assert written == migrate.dump(as_superuser(template)), "run python -m registry.migrate --dump"


def _set_fsync(conn: Connection, value: str) -> None:
    conn.execute("ALTER SYSTEM SET fsync = off" if value == "off" else "ALTER SYSTEM SET fsync = on")
    conn.execute("SELECT pg_reload_conf()")
    until(lambda: conn.execute("SHOW fsync").fetchone() == (value,), what=f"fsync = {value}")
