"""Is the record whole? What must hold at every moment, whatever has just been killed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import LiteralString

from registry import audit, rows
from registry.db import Connection

# Each query finds what must not be; its first column is named in the failure.
IMPOSSIBLE: dict[str, LiteralString] = {
    "a line with two champions": (
        "SELECT line_id FROM promotions WHERE ended_at IS NULL GROUP BY line_id HAVING count(*) > 1"
    ),
    "a line that had a champion and has none": (
        "SELECT DISTINCT line_id FROM promotions one WHERE NOT EXISTS"
        " (SELECT FROM promotions WHERE line_id = one.line_id AND ended_at IS NULL)"
    ),
    "a champion whose state says otherwise, or the other way round": (
        "SELECT candidate_id FROM candidates WHERE (state = 'champion') <> EXISTS"
        " (SELECT FROM promotions WHERE candidate_id = candidates.candidate_id AND ended_at IS NULL)"
    ),
    "a promotion that MLflow is never told of": (
        "SELECT promotion_id FROM promotions WHERE NOT EXISTS (SELECT FROM jobs WHERE kind = 'mirror_promotion'"
        " AND payload ->> 'promotion_id' = promotion_id::text)"
    ),
    "an unfinished run that nobody works for": (
        "SELECT run_id FROM runs WHERE state IN ('freezing', 'training', 'gating') AND NOT EXISTS"
        " (SELECT FROM jobs WHERE payload ->> 'run_id' = run_id::text AND state IN ('queued', 'running')"
        " AND kind = CASE runs.state WHEN 'freezing' THEN 'freeze_dataset' WHEN 'training' THEN 'train_candidate'"
        " ELSE 'gate_candidate' END)"
    ),
    "two unfinished runs of one line": (
        "SELECT line_id FROM runs WHERE state IN ('freezing', 'training', 'gating')"
        " GROUP BY line_id HAVING count(*) > 1"
    ),
    "two unfinished jobs for the same work": (
        "SELECT min(job_id) FROM jobs WHERE state IN ('queued', 'running') AND unique_key IS NOT NULL"
        " GROUP BY unique_key HAVING count(*) > 1"
    ),
    "a run with two candidates": "SELECT run_id FROM candidates GROUP BY run_id HAVING count(*) > 1",
    "a confirmation without exactly one event": (
        "SELECT confirmation_id FROM confirmations WHERE 1 <> (SELECT count(*) FROM audit_events"
        " WHERE action = 'confirmation:add' AND details ->> 'confirmation' = confirmation_id::text)"
    ),
    "an event of a confirmation that is not there": (
        "SELECT audit_event_id FROM audit_events WHERE action = 'confirmation:add' AND NOT EXISTS"
        " (SELECT FROM confirmations WHERE details ->> 'confirmation' = confirmation_id::text)"
    ),
    "an acknowledged confirmation that is not there": (
        "SELECT key FROM idempotency_keys WHERE response_body ? 'confirmation_id' AND NOT EXISTS"
        " (SELECT FROM confirmations WHERE response_body ->> 'confirmation_id' = confirmation_id::text)"
    ),
    "an amendment with signatures enough that is not in force": (
        "SELECT amended.amendment_id FROM amendments amended JOIN protocols before USING (protocol_id)"
        " WHERE (before.document #>> '{approvals,required}')::int <= (SELECT count(*) FROM amendment_approvals signed"
        " WHERE signed.amendment_id = amended.amendment_id AND decision = 'approve') AND NOT EXISTS"
        " (SELECT FROM protocols after WHERE after.amendment_id = amended.amendment_id)"
    ),
    "a reign without its event": (
        "SELECT promotion_id FROM promotions WHERE 1 <> (SELECT count(*) FROM audit_events"
        " WHERE action LIKE 'promotion:%' AND details ->> 'promotion' = promotion_id::text)"
    ),
}


def assert_record_whole(conn: Connection, blob_root: Path, *, imagined: frozenset[str] = frozenset()) -> None:
    """Fail naming what is broken; `imagined` are files that only a test's factory has put on record."""
    conn.rollback()
    broken = {name: [row[0] for row in conn.execute(query).fetchall()] for name, query in IMPOSSIBLE.items()}
    assert not any(broken.values()), {name: found for name, found in broken.items() if found}
    assert audit.first_broken(conn) is None, "the audit chain is broken"
    for event in audit.list_events(conn, limit=100_000):
        if "new_digest" in event.details:
            row = event.details["row"]
            now = rows.text(conn, row)
            same = now is not None and hashlib.sha256(now.encode()).hexdigest() == event.details["new_digest"]
            assert same, f"{row} is not what was written"
    for (digest,) in conn.execute("SELECT digest FROM blobs").fetchall():
        path = blob_root / digest[:2] / digest
        if digest not in imagined:
            assert path.exists(), f"a row without its bytes: {digest}"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, f"a row with other bytes: {digest}"
    conn.rollback()


def imagined_files(conn: Connection, blob_root: Path) -> frozenset[str]:
    """Digests of the files that the record names and that are not there: a test's factory has made them up."""
    digests = [row[0] for row in conn.execute("SELECT digest FROM blobs").fetchall()]
    conn.rollback()
    return frozenset(digest for digest in digests if not (blob_root / digest[:2] / digest).exists())
