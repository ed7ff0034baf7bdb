"""Dataset versions: what was frozen, under which protocol, from whom, up to which confirmation. Append-only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from registry import audit
from registry.db import Connection, fetch_all, fetch_known, fetch_one
from registry.errors import AlreadyExists


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """One frozen version; `submitter_shares` is user name -> share of its new labels, `waiting` reason -> cases."""

    dataset_version_id: int
    line_id: int
    number: int
    protocol_id: int
    digest: str
    git_tag: str
    git_commit: str
    manifest: dict[str, Any]
    submitter_shares: dict[str, float]
    waiting: dict[str, int]
    last_confirmation_id: int
    created_at: datetime


def record_version(
    conn: Connection,
    *,
    line_id: int,
    number: int,
    protocol_id: int,
    digest: str,
    git_tag: str,
    git_commit: str,
    manifest: Mapping[str, Any],
    submitter_shares: Mapping[str, float],
    waiting: Mapping[str, int],
    last_confirmation_id: int,
) -> DatasetVersion:
    """Record what a freeze made. Raises AlreadyExists if the line has a version of this number already."""
    version = fetch_one(
        conn,
        DatasetVersion,
        "INSERT INTO dataset_versions (line_id, number, protocol_id, digest, git_tag, git_commit, manifest,"
        " submitter_shares, waiting, last_confirmation_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT ON CONSTRAINT dataset_versions_one_row_per_number DO NOTHING RETURNING *",
        (
            line_id,
            number,
            protocol_id,
            digest,
            git_tag,
            git_commit,
            Jsonb(dict(manifest)),
            Jsonb(dict(submitter_shares)),
            Jsonb(dict(waiting)),
            last_confirmation_id,
        ),
    )
    if version is None:
        raise AlreadyExists(f"dataset version {number} of this line is on record already")
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="dataset:freeze",
        subject=f"dataset_version/{version.dataset_version_id}",
        details={"digest": digest, "number": number},
        row=f"dataset_versions/{version.dataset_version_id}",
    )
    return version


def latest(conn: Connection, line_id: int) -> DatasetVersion | None:
    """Return the newest version of a line, None before the first."""
    return fetch_one(
        conn,
        DatasetVersion,
        "SELECT * FROM dataset_versions WHERE line_id = %s ORDER BY number DESC LIMIT 1",
        (line_id,),
    )


def get(conn: Connection, dataset_version_id: int) -> DatasetVersion:
    """Return a version by id. Raises NotFound."""
    return fetch_known(conn, DatasetVersion, "dataset_version", dataset_version_id)


def before(conn: Connection, version: DatasetVersion) -> DatasetVersion | None:
    """Return the version that a version followed, None for the first, or where an erasure took its files."""
    return fetch_one(
        conn,
        DatasetVersion,
        "SELECT * FROM dataset_versions WHERE line_id = %s AND number < %s AND NOT EXISTS (SELECT FROM erasure_effects"
        " WHERE subject = 'dataset_version' AND subject_id = dataset_version_id) ORDER BY number DESC LIMIT 1",
        (version.line_id, version.number),
    )


def list_versions(conn: Connection, line_id: int) -> list[DatasetVersion]:
    """All versions of a line, newest first."""
    return fetch_all(
        conn, DatasetVersion, "SELECT * FROM dataset_versions WHERE line_id = %s ORDER BY number DESC", (line_id,)
    )
