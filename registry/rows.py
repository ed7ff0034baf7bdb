"""What of a row the audit trail vouches for: the text of the row, and the digest of that text.

Invariant: every row of these tables is named by an audit event (`details.row`, e.g. `confirmations/9`) that carries the
SHA-256 of its text (`details.new_digest`), written in the transaction that made the row. The text is the row as
PostgreSQL prints it as jsonb in UTC, without columns that are empty, that later steps change (their value follows from
other events; `registry.verify` works it out again) or that may name a person. A column added later must be empty in the
rows that are older, or `older` must say the one value that all of them have: that value is left out of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from registry.db import Connection, fetch_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A table whose rows the trail vouches for; `without` are the columns left out, separated by commas.

    `older` is a JSON object: columns that were added later, with the value they have in the rows that are older.
    """

    table: LiteralString
    key: LiteralString
    without: LiteralString = ""
    older: LiteralString = ""

    @property
    def text(self) -> LiteralString:
        """SQL: the text of a row that the query calls `bound`."""
        older: LiteralString = ""
        if self.older:
            older = " AND NOT jsonb_build_object(key, value) <@ '" + self.older + "'"
        return (
            "(SELECT jsonb_object_agg(key, value)::text FROM jsonb_each(to_jsonb(bound))"
            " WHERE value <> 'null' AND NOT key = ANY('{" + self.without + "}'::text[])" + older + ")"
        )

    @property
    def digest(self) -> LiteralString:
        """SQL: the digest of a row that the query calls `bound`."""
        return "encode(sha256(convert_to(" + self.text + ", 'UTF8')), 'hex')"

    @property
    def digest_by_id(self) -> LiteralString:
        """SQL: the digest of the row whose id is the query's parameter at this place; NULL where there is none."""
        return "(SELECT " + self.digest + " FROM " + self.table + " bound WHERE " + self.key + " = %s)"


BOUND: dict[str, Bound] = {
    bound.table: bound
    for bound in (
        Bound(table="protocols", key="protocol_id"),
        Bound(table="amendments", key="amendment_id"),
        Bound(table="amendment_approvals", key="amendment_approval_id"),
        Bound(table="cases", key="case_id", without="external_id"),
        Bound(table="confirmations", key="confirmation_id", older='{"kind": "confirmation"}'),
        Bound(table="dataset_versions", key="dataset_version_id"),
        Bound(table="candidates", key="candidate_id", without="state,mlflow_model_version"),
        Bound(table="sealed_test_uses", key="sealed_test_use_id"),
        Bound(table="gate_reports", key="gate_report_id"),
        Bound(table="approvals", key="approval_id"),
        Bound(table="comments", key="comment_id"),
        Bound(table="rejections", key="rejection_id"),
        Bound(table="promotions", key="promotion_id", without="ended_at"),
        Bound(table="watches", key="watch_id"),
        Bound(table="erasures", key="erasure_id"),
    )
}


def split(row: str) -> tuple[Bound, int]:
    """Take `confirmations/9` apart. Raises KeyError where the trail does not vouch for that table."""
    table, _, number = row.partition("/")
    return BOUND[table], int(number)


def text(conn: Connection, row: str) -> str | None:
    """Return the text of a row as it is now, None where there is no such row."""
    bound, number = split(row)
    query: LiteralString = "SELECT " + bound.text + " FROM " + bound.table + " bound WHERE " + bound.key + " = %s"
    found = fetch_value(conn, query, (number,))
    return None if found is None else str(found)
