"""What one person has said, and how far it went: the dataset versions that considered it, the models made of those."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from registry.confirmations import Confirmation
from registry.db import Connection, fetch_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A dataset version that considered some of a person's rows; `share` is theirs of its new labels, in [0, 1].

    `number` and `state` are those of the model made from it, None where none was.
    """

    dataset_version_id: int
    version: int
    created_at: datetime
    considered: int
    share: float
    candidate_id: int | None
    number: int | None
    state: str | None


def of_person(conn: Connection, *, user_id: int, before: int | None = None, limit: int = 50) -> list[Confirmation]:
    """What a person sent, newest first, with ids below `before`; superseded rows too."""
    return fetch_all(
        conn,
        Confirmation,
        "SELECT this.*, users.name AS submitter, later.confirmation_id AS superseded_by FROM confirmations this"
        " JOIN users ON user_id = this.submitted_by LEFT JOIN confirmations later"
        " ON later.supersedes = this.confirmation_id WHERE this.submitted_by = %(user_id)s"
        " AND (%(before)s::bigint IS NULL OR this.confirmation_id < %(before)s)"
        " ORDER BY this.confirmation_id DESC LIMIT %(limit)s",
        {"user_id": user_id, "before": before, "limit": limit},
    )


def lines_of_person(conn: Connection, user_id: int) -> Collection[int]:
    """Lines of which a person has said something."""
    rows = conn.execute(
        "SELECT line_id FROM lines WHERE EXISTS (SELECT FROM confirmations WHERE submitted_by = %s"
        " AND confirmations.line_id = lines.line_id) ORDER BY name",
        (user_id,),
    ).fetchall()
    return [int(line_id) for (line_id,) in rows]


def reached(conn: Connection, *, user_id: int, name: str, line_id: int, limit: int = 20) -> list[Reached]:
    """Dataset versions of a line that were the first to consider what a person said, newest first."""
    return fetch_all(
        conn,
        Reached,
        # The person's own rows first, by their index: of all rows of a version they are few.
        "WITH said AS MATERIALIZED (SELECT confirmation_id FROM confirmations WHERE submitted_by = %(user_id)s"
        " AND line_id = %(line_id)s), versions AS (SELECT *, lag(last_confirmation_id, 1, 0::bigint)"
        " OVER (ORDER BY number) AS earlier FROM dataset_versions WHERE line_id = %(line_id)s)"
        " SELECT versions.dataset_version_id, versions.number AS version, versions.created_at, considered,"
        " coalesce((submitter_shares ->> %(name)s)::double precision, 0) AS share, candidate_id,"
        " candidates.number, candidates.state FROM versions CROSS JOIN LATERAL (SELECT count(*) AS considered"
        " FROM said WHERE confirmation_id > earlier AND confirmation_id <= last_confirmation_id) mine"
        " LEFT JOIN candidates ON candidates.dataset_version_id = versions.dataset_version_id"
        " WHERE considered > 0 ORDER BY versions.number DESC LIMIT %(limit)s",
        {"user_id": user_id, "name": name, "line_id": line_id, "limit": limit},
    )
