"""The doctor and the people commands against a real database: each fault is found, named and given its fix."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from api.cli.doctor import CHECKS, Finding, examine
from api.cli.home import home_at
from registry import checkpoints, db, notes, users
from registry.guard import APPEND_ONLY
from tests import factories
from tests.conftest import as_superuser

MIGRATION = Path(__file__).parents[2] / "registry" / "migrations" / "0001_create_the_record.sql"


@pytest.fixture
def record(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the command line at a migrated database of the test's own."""
    monkeypatch.setenv("OVERREAD_DATABASE_URL", fresh_database)
    return fresh_database


def look(name: str, home: Path) -> Finding:
    """Run one check."""
    [finding] = examine(home_at(home), only=name)
    return finding


def test_a_sound_record_passes(record: str, tmp_path: Path) -> None:
    for name in ("database", "migrations", "append-only", "relay", "data-repository"):
        finding = look(name, tmp_path)
        assert finding.good, finding


def test_a_missing_migration_is_named(empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD_DATABASE_URL", empty_database)
    finding = look("migrations", tmp_path)
    assert not finding.good
    assert MIGRATION.stem in finding.detail
    assert "registry.migrate" in (finding.fix or "")


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_a_removed_or_disabled_trigger_is_found(table: str, record: str, tmp_path: Path) -> None:
    for damage in (
        f"ALTER TABLE {table} DISABLE TRIGGER {table}_are_not_truncated",
        f"ALTER TABLE {table} ENABLE TRIGGER {table}_are_not_truncated",  # no longer ALWAYS: replicas would pass
        f"DROP TRIGGER {table}_are_append_only ON {table}",
    ):
        with psycopg.connect(as_superuser(record)) as connection:
            connection.execute(damage.encode())
        finding = look("append-only", tmp_path)
        assert not finding.good
        assert f"can be rewritten: {table} lost a trigger" in finding.detail


def test_every_append_only_table_of_the_schema_is_looked_at(record: str) -> None:
    with psycopg.connect(as_superuser(record)) as connection:
        query = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgfoid = to_regproc('refuse_change')"
        assert {row[0] for row in connection.execute(query)} == set(APPEND_ONLY)


def test_a_server_that_may_lose_what_it_acknowledged_is_refused(record: str, tmp_path: Path) -> None:
    with psycopg.connect(as_superuser(record), autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    finding = look("durability", tmp_path)
    assert not finding.good
    assert re.search("(fsync|synchronous_commit) = off", finding.detail)  # the tests' own server may run without fsync


def test_jobs_that_nobody_sends_are_noticed(record: str, tmp_path: Path) -> None:
    with psycopg.connect(as_superuser(record)) as connection:
        connection.execute(
            "INSERT INTO jobs (kind, created_at, run_after) "
            "SELECT 'mirror_candidate', past, past FROM (SELECT now() - interval '2 minutes' AS past) AS earlier"
        )
    finding = look("relay", tmp_path)
    assert not finding.good
    assert finding.detail.startswith("1 jobs wait to be sent, the oldest for 1")


def test_a_trail_that_nobody_signs_is_noticed(record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look("checkpoints", tmp_path).good  # no key: it is another machine that signs
    signer = notes.signer_at(tmp_path / "checkpoint.key")
    with db.connect(record) as connection:
        factories.user(connection, "submitter")
        connection.commit()
        assert look("checkpoints", tmp_path).good  # a minute may pass

        now = datetime.now(UTC)
        monkeypatch.setattr("api.cli.doctor.LONGEST_UNSIGNED_SECONDS", -1.0)
        monkeypatch.setenv("OVERREAD_CHECKPOINT_SECONDS", "0")
        missing = look("checkpoints", tmp_path)
        assert "no checkpoint was ever kept; 1 events since then are not signed" in missing.detail
        assert "relay.log" in (missing.fix or "")
        assert checkpoints.take(connection, tmp_path / "checkpoints", signer=signer)
        assert look("checkpoints", tmp_path).good
        factories.user(connection, "submitter")
        connection.commit()
        old = look("checkpoints", tmp_path)
        assert f"the newest checkpoint is of {now:%F}" in old.detail
    (file,) = checkpoints.files(tmp_path / "checkpoints")
    file.write_text("nonsense")
    assert "no checkpoint can be read: " in look("checkpoints", tmp_path).detail


def test_a_lost_dataset_tag_is_named(record: str, tmp_path: Path) -> None:
    repository = tmp_path / "data-repository"
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    assert look("data-repository", tmp_path).good
    with db.connect(record) as connection:
        factories.dataset_version(connection, factories.line(connection))
    finding = look("data-repository", tmp_path)
    assert finding.detail.startswith("tags are missing: ")
    (repository / ".git" / "HEAD").unlink()
    assert "git cannot read" in look("data-repository", tmp_path).detail


def test_a_database_that_does_not_answer_is_a_finding_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE", "BROKER", "INFERENCE", "MLFLOW", "API"):
        scheme = {"DATABASE": "postgresql", "BROKER": "redis"}.get(name, "http")
        monkeypatch.setenv(f"OVERREAD_{name}_URL", f"{scheme}://127.0.0.1:1/")
    findings = {finding.name: finding for finding in examine(home_at(tmp_path))}
    assert set(findings) == set(CHECKS)
    for name in (
        "database",
        "migrations",
        "durability",
        "append-only",
        "broker",
        "relay",
        "api",
        "inference",
        "mlflow",
    ):
        assert not findings[name].good
        assert findings[name].fix


def test_a_user_gets_a_key_that_works_until_it_is_revoked(record: str, tmp_path: Path) -> None:
    made = _overread(
        "user", "create", "anna", "--printed-name", "Dr Anna", "--role", "approver", "--json", home=tmp_path
    )
    assert json.loads(made.stdout)["roles"] == ["approver"]
    key = _overread("key", "create", "anna", home=tmp_path).stdout.strip()
    assert key.startswith("ovr_")
    with db.connect(record) as connection:
        user = users.authenticate(connection, key)
        assert user is not None
        assert user.printed_name == "Dr Anna"
    listed = _overread("key", "list", "anna", "--json", home=tmp_path).stdout
    assert key.split("_")[1] in listed
    assert key.split("_", 2)[2] not in listed  # the secret may hold a _ itself
    _overread("key", "revoke", key.split("_")[1], home=tmp_path)
    with db.connect(record) as connection:
        assert users.authenticate(connection, key) is None


def test_a_user_who_is_shut_out_has_no_key_that_works(record: str, tmp_path: Path) -> None:
    _overread("user", "create", "eve", "--printed-name", "Eve", "--role", "submitter", home=tmp_path)
    key = _overread("key", "create", "eve", home=tmp_path).stdout.strip()
    _overread("user", "disable", "eve", home=tmp_path)
    with db.connect(record) as connection:
        assert users.authenticate(connection, key) is None


def test_what_the_record_refuses_is_said_without_a_stack_trace(record: str, tmp_path: Path) -> None:
    _overread("user", "create", "ben", "--printed-name", "Ben", "--role", "reviewer", home=tmp_path)
    for arguments, reason in (
        (["user", "create", "ben", "--printed-name", "Ben", "--role", "reviewer"], "'ben' already"),
        (["user", "create", "ann", "--printed-name", "Ann", "--role", "king"], "unknown role king"),
        (["key", "create", "nobody"], "no user 'nobody'"),
    ):
        run = _overread(*arguments, home=tmp_path, code=1)
        assert reason in run.stderr
        assert "Traceback" not in run.stderr


def _overread(*arguments: str, home: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OVERREAD_HOME": str(home)}
    command = [sys.executable, "-m", "api.cli", *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == code, run.stderr
    return run


def test_a_champion_that_errs_too_often_or_that_nobody_looks_at_is_found(
    record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.connect(record) as connection:
        line = factories.line(connection, monitoring={"tolerance": 0.05})
        champion = factories.champion(connection, line)
        unwatched = factories.line(connection)
        factories.champion(connection, unwatched)
        connection.commit()
        finding = look("champions", tmp_path)
        assert finding.good, finding
        assert f"{line.name}: not looked at yet" in finding.detail
        assert f"{unwatched.name}: not watched" in finding.detail
        with monkeypatch.context() as patched:
            patched.setattr("api.cli.doctor.LONGEST_UNWATCHED_DAYS", 0)
            finding = look("champions", tmp_path)
        assert not finding.good
        assert "nobody has looked at the champion" in finding.detail
        for changes in ({"verdict": "in_order", "raised_at": None}, {}):
            factories.watch(connection, champion, **changes)
            connection.commit()
            finding = look("champions", tmp_path)
            assert finding.good == (bool(changes)), finding
    assert "errs in more than 20.0% of cases" in finding.detail
    assert f"overread roll-back --line {line.name}" in (finding.fix or "")
