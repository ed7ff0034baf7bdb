"""The log of reads: what it says, and that a range of it that was sealed cannot change unseen."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from typing import LiteralString

import psycopg
import pytest

from registry import audit, reads, verify
from registry.db import Connection, connect
from tests import factories
from tests.waiting import PATIENCE_SECONDS, until


def looked(db: Connection, count: int) -> None:
    """Somebody looks at as many cases."""
    line = factories.line(db)
    user = factories.user(db, "reviewer", name="rita")
    for _ in range(count):
        case = factories.case(db, line)
        with db.transaction(force_rollback=True):  # leaves a gap among the ids
            reads.record(db, user_id=user.user_id, action="case:read")
        reads.record(
            db, user_id=user.user_id, action="case:read", case_id=case.case_id, purpose="grüße", details={"n": 1}
        )


def test_a_read_says_who_what_and_what_for(db: Connection) -> None:
    looked(db, 2)
    first, second = reads.list_reads(db)
    assert (first.reader, first.action, first.purpose) == ("rita", "case:read", "grüße")
    assert first.at.utcoffset() is not None
    assert reads.list_reads(db, after=first.read_id) == [second]
    assert reads.list_reads(db, case_id=second.case_id) == [second]


@pytest.mark.parametrize("purpose", ["", "x" * 201])
def test_a_purpose_is_short_or_absent(db: Connection, purpose: str) -> None:
    user = factories.user(db)
    with pytest.raises(psycopg.errors.CheckViolation, match="reads_purpose_is_short"):
        reads.record(db, user_id=user.user_id, action="case:read", purpose=purpose)


def test_a_seal_binds_all_reads_since_the_last_one_into_the_chain(db: Connection) -> None:
    looked(db, 3)
    assert (reads.seal(db), reads.seal(db)) == (3, 0)
    rows = reads.list_reads(db)
    reads.record(db, user_id=rows[0].user_id, action="case:list", details={"cases": 100})
    assert reads.seal(db) == 1
    first, second = (event for event in audit.list_events(db, limit=1000) if event.action == "reads:seal")
    assert (first.details["count"], second.details["first"]) == (3, first.details["last"] + 1)
    # The digest, worked out as the documentation says.
    lines = [
        json.dumps(
            [row.read_id, row.at.astimezone(UTC).isoformat(timespec="microseconds"), row.user_id, row.action,
             row.line_id, row.case_id, row.purpose, row.details],
            sort_keys=True, separators=(",", ":"), ensure_ascii=False,
        ) + "\n"
        for row in rows
    ]  # fmt: skip
    assert first.details["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert reads.first_broken(db) is None
    assert verify.check_reads(db).state == "fine"
    assert audit.first_broken(db) is None


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE reads SET user_id = (SELECT min(user_id) FROM users) WHERE read_id = {id}",
        "UPDATE reads SET purpose = NULL WHERE read_id = {id}",
        "UPDATE reads SET at = at + interval '1 microsecond' WHERE read_id = {id}",
        "DELETE FROM reads WHERE read_id = {id}",
        "INSERT INTO reads (read_id, user_id, action) OVERRIDING SYSTEM VALUE VALUES ({id} + 1, {user}, 'case:read')",
    ],
)
def test_a_changed_or_missing_read_shows(owner_db: Connection, tampering: LiteralString) -> None:
    db = owner_db
    looked(db, 3)
    reads.seal(db)
    rows = reads.list_reads(db)
    before, middle, last = (row.read_id for row in rows)
    db.execute("ALTER TABLE reads DISABLE TRIGGER ALL")
    db.execute(tampering.format(id=middle, user=rows[0].user_id))
    found = reads.first_broken(db)
    assert found is not None
    assert found[0] <= before < last == found[1]
    finding = verify.check_reads(db)
    assert (finding.state, str(last) in finding.detail) == ("damaged", True)


def test_a_read_that_was_slow_to_commit_is_waited_for(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        user = factories.user(conn)
        conn.commit()
        with connect(fresh_database) as slow, connect(fresh_database) as quick, ThreadPoolExecutor(1) as pool:
            reads.record(slow, user_id=user.user_id, action="case:read")  # has the lower id, commits last
            reads.record(quick, user_id=user.user_id, action="case:read")
            quick.commit()
            sealing = pool.submit(reads.seal, conn)
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda: sealing.done() or quick.execute(waiting).fetchone() != (0,), record=quick)
            assert not sealing.done(), "sealed without the read that has an id already"
            slow.commit()
            assert sealing.result(timeout=PATIENCE_SECONDS) == 2
        assert reads.first_broken(conn) is None


def test_reads_do_not_wait_for_writes(fresh_database: str) -> None:
    with connect(fresh_database) as writer, connect(fresh_database) as reader:
        user = factories.user(writer)
        writer.commit()
        audit.take_turn(writer)  # a bulk upload holds the audit chain
        reader.execute("SET lock_timeout = '60s'")
        reads.record(reader, user_id=user.user_id, action="case:read")
        reader.commit()
