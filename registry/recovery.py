"""What a backup says it holds, and what the record does when it has been put back from one.

Invariant: an inventory is taken in the transaction that the dump is taken in, so a restored record can be held against
it exactly. What is only a mirror (MLflow) is not backed up: the jobs that fill it are asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql

from registry import audit, jobs
from registry.db import Connection, fetch_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The record in numbers: rows by table, the end of the audit trail, weights of the champion by line."""

    rows: dict[str, int]
    last_audit_event: int
    last_audit_digest: str | None
    champions: dict[str, str]

    def differences(self, other: Inventory) -> list[str]:
        """Say in words where `other`, found later, is not what this says."""
        found = [
            f"{name}: {self.rows.get(name, 0)} rows were backed up, {other.rows.get(name, 0)} are here"
            for name in sorted({*self.rows, *other.rows})
            if self.rows.get(name) != other.rows.get(name)
        ]
        if (self.last_audit_event, self.last_audit_digest) != (other.last_audit_event, other.last_audit_digest):
            found.append(
                f"the audit trail ended with event {self.last_audit_event}, here it ends with {other.last_audit_event}"
            )
        if self.champions != other.champions:
            found.append(f"the champions were {self.champions}, here they are {other.champions}")
        return found


def take_inventory(conn: Connection) -> Inventory:
    """Count every table and name the champions, as this transaction sees them."""
    names = conn.execute(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    ).fetchall()
    counted = {
        name: int(conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchall()[0][0])
        for (name,) in names
    }
    last = conn.execute(
        "SELECT audit_event_id, digest FROM audit_events ORDER BY audit_event_id DESC LIMIT 1"
    ).fetchone()
    champions = conn.execute(
        "SELECT lines.name, weights_digest FROM promotions JOIN candidates USING (candidate_id)"
        " JOIN lines ON lines.line_id = promotions.line_id WHERE ended_at IS NULL ORDER BY lines.name"
    ).fetchall()
    return Inventory(
        rows=counted,
        last_audit_event=int(last[0]) if last else 0,
        last_audit_digest=str(last[1]) if last else None,
        champions={str(line): str(digest) for line, digest in champions},
    )


def stored_files(conn: Connection) -> list[tuple[str, int]]:
    """Digest and size of every stored file whose bytes the record needs, in order of digest; none that was erased."""
    rows = conn.execute(
        "SELECT digest, size_bytes FROM blobs WHERE NOT blob_is_erased(digest) ORDER BY digest"
    ).fetchall()
    return [(str(digest), int(size)) for digest, size in rows]


def stored_files_since(conn: Connection, *, after: int) -> list[tuple[str, int]]:
    """Digest and size of the stored files that audit events with an id above `after` brought in; none that was erased.

    Events have their ids in the order in which they are committed, so that nothing comes in unseen below the last one.
    """
    rows = conn.execute(
        "WITH news AS MATERIALIZED (SELECT action, split_part(subject, '/', 2)::bigint AS id FROM audit_events"
        " WHERE audit_event_id > %s AND action IN ('case:submit', 'candidate:train'))"
        " SELECT digest, size_bytes FROM blobs WHERE NOT blob_is_erased(digest) AND digest IN ("
        " SELECT image_digest FROM cases JOIN news ON id = case_id AND action = 'case:submit' UNION ALL"
        " SELECT unnest(ARRAY[weights_digest, metadata_digest]) FROM candidates"
        " JOIN news ON id = candidate_id AND action = 'candidate:train') ORDER BY digest",
        (after,),
    ).fetchall()
    return [(str(digest), int(size)) for digest, size in rows]


def dataset_versions(conn: Connection) -> dict[str, str]:
    """Map the git tag of every dataset version on record to its commit."""
    rows = conn.execute("SELECT git_tag, git_commit FROM dataset_versions").fetchall()
    return {str(tag): str(commit) for tag, commit in rows}


def mark_restored(conn: Connection, *, details: dict[str, Any]) -> None:
    """Note in the audit trail that the record was put back from a backup, and ask for MLflow's mirror anew.

    A later tail that somebody kept a checkpoint of is missing from here on; this event says since when, and why.
    """
    mirror_again(conn)
    audit.record(conn, actor=audit.SYSTEM, action="record:restore", subject="record/1", details=details)


def mirror_again(conn: Connection) -> int:
    """Forget what MLflow showed and ask for all of it once more; return the number of candidates to be shown.

    A server that still has them recognises them, so that nothing is shown twice.
    """
    conn.execute("UPDATE candidates SET mlflow_model_version = NULL WHERE mlflow_model_version IS NOT NULL")
    shown = conn.execute("SELECT candidate_id, line_id, run_id FROM candidates ORDER BY candidate_id").fetchall()
    for candidate_id, line_id, run_id in shown:
        jobs.enqueue(
            conn,
            kind="mirror_candidate",
            line_id=line_id,
            payload={"candidate_id": candidate_id, "run_id": run_id},
            unique_key=f"mirror_candidate:candidate:{candidate_id}",
        )
    reigns = conn.execute("SELECT promotion_id, line_id FROM promotions WHERE ended_at IS NULL").fetchall()
    for promotion_id, line_id in reigns:
        jobs.enqueue(
            conn,
            kind="mirror_promotion",
            line_id=line_id,
            payload={"promotion_id": promotion_id},
            unique_key=f"mirror_promotion:{promotion_id}",
        )
    return len(shown)


def is_empty(conn: Connection) -> bool:
    """Say whether a database has no tables yet."""
    return not fetch_value(
        conn, "SELECT EXISTS (SELECT FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)"
    )
