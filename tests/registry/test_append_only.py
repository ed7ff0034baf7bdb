"""What happened stays as it was written, even for whoever holds the database."""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import LiteralString

import psycopg
import pytest
from psycopg import sql

from registry import audit, comments, erasures, predictions, reads
from registry.db import Connection
from registry.guard import APPEND_ONLY
from tests import factories


@pytest.fixture
def filled(owner_db: Connection) -> Connection:
    """A record with at least one row in every append-only table, held by somebody who may do anything."""
    db = owner_db
    line = factories.line(db)
    case = factories.case(db, line)
    factories.confirmation(db, case)
    factories.case(db, line, patient="somebody")
    erasures.erase(db, patient_digest=erasures.digest_of_patient("somebody"), line=None, reason="asked", actor="olga")
    champion = factories.champion(db, line)
    predictions.log_prediction(
        db,
        line_id=line.line_id,
        case_id=case.case_id,
        candidate_id=champion.candidate_id,
        weights_digest=champion.weights_digest,
        image_digest=case.image_digest,
        scores={"normal": 0.75, "pneumonia": 0.25},
        decision="normal",
        threshold=0.5,
        shown=True,
        latency_seconds=0.01,
        requested_by=case.submitted_by,
    )
    comments.add(
        db, candidate_id=champion.candidate_id, author=factories.user(db, "reviewer"), text="look at the north"
    )
    factories.rejection(db, case, champion)
    reads.record(db, user_id=case.submitted_by, action="case:read", case_id=case.case_id)
    factories.watch(db, champion)
    factories.new_protocol(db, line, title="Pneumonia, more strictly")
    return db


@pytest.mark.parametrize("role", ["origin", "replica"])
@pytest.mark.parametrize("table", APPEND_ONLY)
def test_an_append_only_table_refuses_every_change(filled: Connection, table: str, role: str) -> None:
    columns = {row[0] for row in filled.execute(_on(table, "SELECT * FROM {}")).description or ()}
    assert filled.execute(_on(table, "SELECT count(*) FROM {}")).fetchone() != (0,)
    filled.execute("SELECT set_config('session_replication_role', %s, true)", (role,))
    column = sql.Identifier(
        next(iter(columns & {*("digest", "finding", "reason"), *("decision", "purpose", "subject", "wallet", "text")}))
    )
    for statement in (
        sql.SQL("UPDATE {} SET {} = {}").format(sql.Identifier(table), column, column),
        _on(table, "DELETE FROM {}"),
        _on(table, "TRUNCATE {} CASCADE"),
    ):
        refused = pytest.raises(psycopg.errors.RestrictViolation, match=f"{table} is append-only")
        with refused, filled.transaction():
            filled.execute(statement)


def test_the_service_itself_may_only_add_to_the_record_and_change_what_is_not_history(db: Connection) -> None:
    may = {
        "SELECT": set[str](),
        "INSERT": set[str](),
        "UPDATE": set[str](),
        "DELETE": set[str](),
        "TRUNCATE": set[str](),
    }
    for table, right in db.execute(
        "SELECT relname, right_ FROM pg_class, unnest(ARRAY['SELECT','INSERT','UPDATE','DELETE','TRUNCATE']) AS right_"
        " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND"
        " CASE WHEN right_ IN ('DELETE', 'TRUNCATE') THEN has_table_privilege(oid, right_)"
        " ELSE has_any_column_privilege(oid, right_) END"
    ):
        may[right].add(table)
    assert may["INSERT"] == may["SELECT"] - {"schema_migrations", "erasures", "erasure_effects", "discordances"}
    assert may["UPDATE"] == {
        *("users", "api_keys", "passwords", "sessions"),
        *("jobs", "lines", "runs", "candidates", "promotions"),
    }
    assert may["DELETE"] == {"sessions", "sign_in_links", "worklists", "worklist_cases"}
    assert may["TRUNCATE"] == set()


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_the_service_cannot_take_the_protection_away(db: Connection, table: str) -> None:
    for statement in (
        _on(table, "ALTER TABLE {} DISABLE TRIGGER ALL"),
        _on(table, "DELETE FROM {}"),
        _on(table, "TRUNCATE {} CASCADE"),
        sql.SQL("SET session_replication_role = replica"),
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute(statement)


def test_every_table_of_what_happened_is_protected(db: Connection) -> None:
    protected = db.execute(
        "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgfoid = 'refuse_change'::regproc"
        " AND tgenabled = 'A' AND tgtype & 32 = 32"
    ).fetchall()
    assert {row[0] for row in protected} == set(APPEND_ONLY)


def test_the_audit_chain_can_be_recomputed_outside_the_database(filled: Connection) -> None:
    events = audit.list_events(filled, limit=10_000)
    assert len(events) > 10
    texts = dict(filled.execute("SELECT audit_event_id, details::text FROM audit_events").fetchall())
    previous = "0" * 64
    for number, event in enumerate(events, start=1):
        assert (event.audit_event_id, event.previous_digest) == (number, previous)
        at = event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        parts = (str(number), at, event.actor, event.action, event.subject, texts[number], previous)
        previous = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
        assert event.digest == previous
    assert audit.first_broken(filled) is None


@pytest.mark.parametrize(
    ("tampering", "shows_at"),
    [
        ("UPDATE audit_events SET actor = 'somebody else' WHERE audit_event_id = 3", 3),
        ("UPDATE audit_events SET details = '{\"a\": 1}' WHERE audit_event_id = 3", 3),
        ("DELETE FROM audit_events WHERE audit_event_id = 3", 4),
        ("DELETE FROM audit_events WHERE audit_event_id = 1", 2),
    ],
)
def test_tampering_with_the_trail_shows(filled: Connection, tampering: str, shows_at: int) -> None:
    filled.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
    filled.execute(tampering)
    assert audit.first_broken(filled) == shows_at


def test_nobody_writes_the_chain_by_hand(db: Connection) -> None:
    db.execute(
        "INSERT INTO audit_events (audit_event_id, at, actor, action, subject, details, previous_digest, digest)"
        " VALUES (99, '2001-01-01', 'x', 'case:submit', 'case/1', '{}', 'forged', 'forged')"
    )
    (event,) = audit.list_events(db, subject="case/1")
    assert (event.audit_event_id, event.previous_digest) == (1, "0" * 64)
    assert event.at.year > 2001
    assert audit.first_broken(db) is None


def _on(table: str, statement: LiteralString) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(table))
