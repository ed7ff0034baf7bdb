"""The ledger of a line's sealed test: every use of it by a candidate, in an append-only row, at the level it was worth.

Invariant: no gate report without a use, and a use is on record before a score is computed. So a job that dies has paid,
and one that is repeated finds its row and pays no more. What a use is worth is worked out by the science
(`pipelines.sealed_ledger`); the record keeps that nobody spends twice, or what another has spent.

Reference: Feng, Pennello, Petrick, Sahiner, Pirracchio, Gossmann, UAI 2022 (SRGP).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_one
from registry.errors import EvidenceMismatch, NotFound, StateMoved


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One row of the ledger. `passed` is None until a gate report answers it; until then it counts as failed.

    `wallet_before` and `wallet_after` are None in the wallet `unlimited`, of a protocol that says nothing of wear.
    """

    sealed_test_use_id: int
    line_id: int
    epoch: int
    after_version: int
    wallet: str
    place: int
    candidate_id: int
    champion_candidate_id: int | None
    dataset_version_id: int
    protocol_id: int
    wallet_before: float | None
    level: float
    wallet_after: float | None
    created_at: datetime
    passed: bool | None

    def named(self) -> dict[str, Any]:
        """What a gate report says of the use that it answers."""
        return {
            "use": self.sealed_test_use_id,
            "epoch": self.epoch,
            "after_version": self.after_version,
            "wallet": self.wallet,
            "place": self.place,
            "level": self.level,
        }


def record_use(
    conn: Connection,
    *,
    candidate_id: int,
    champion_candidate_id: int | None,
    protocol_id: int,
    epoch: int,
    after_version: int,
    wallet: str,
    place: int,
    wallet_before: float | None,
    level: float,
) -> Use:
    """Spend a level on judging a candidate against a champion (None: the floors) by a protocol. Commit before scoring.

    Raises StateMoved where another use has come first, or this very one is on record already; NotFound.
    """
    with constraint_means(
        conn,
        sealed_test_uses_one_per_place=StateMoved("another candidate has used the sealed test meanwhile; try again"),
        sealed_test_uses_one_per_hypothesis=StateMoved(
            f"candidate {candidate_id} has been held against this champion by this protocol; the answer stands"
        ),
    ):
        row = conn.execute(
            "INSERT INTO sealed_test_uses (line_id, epoch, after_version, wallet, place, candidate_id,"
            " champion_candidate_id, dataset_version_id, protocol_id, wallet_before, level, wallet_after)"
            " SELECT line_id, %(epoch)s, %(after)s, %(wallet)s, %(place)s, candidate_id, %(champion)s,"
            " dataset_version_id, %(protocol)s, %(before)s, %(level)s, %(before)s::float8 - %(level)s::float8"
            " FROM candidates WHERE candidate_id = %(candidate)s RETURNING sealed_test_use_id",
            {
                "epoch": epoch,
                "after": after_version,
                "wallet": wallet,
                "place": place,
                "candidate": candidate_id,
                "champion": champion_candidate_id,
                "protocol": protocol_id,
                "before": wallet_before,
                "level": level,
            },
        ).fetchone()
    if row is None:
        raise NotFound(f"there is no candidate {candidate_id}")
    use = get(conn, row[0])
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="sealed_test:use",
        subject=f"candidate/{candidate_id}",
        details=use.named(),
        row=f"sealed_test_uses/{use.sealed_test_use_id}",
    )
    return use


def get(conn: Connection, sealed_test_use_id: int) -> Use:
    """Return a use by id. Raises NotFound."""
    found = fetch_one(conn, Use, _USES + " WHERE sealed_test_use_id = %s", (sealed_test_use_id,))
    if found is None:
        raise NotFound(f"there is no use {sealed_test_use_id} of a sealed test")
    return found


def of_hypothesis(
    conn: Connection, *, candidate_id: int, champion_candidate_id: int | None, protocol_id: int
) -> Use | None:
    """Return the use in which a candidate was held against a champion by a protocol, None before it."""
    return fetch_one(
        conn,
        Use,
        _USES + " WHERE candidate_id = %s AND champion_candidate_id IS NOT DISTINCT FROM %s AND protocol_id = %s",
        (candidate_id, champion_candidate_id, protocol_id),
    )


def list_uses(conn: Connection, line_id: int) -> list[Use]:
    """Every use of a line's sealed test, oldest first."""
    return fetch_all(conn, Use, _USES + " WHERE line_id = %s ORDER BY sealed_test_use_id", (line_id,))


def check_answers(
    conn: Connection, *, sealed_test_use_id: int, candidate_id: int, champion_id: int | None, protocol_id: int
) -> Use:
    """Return the use that a gate report answers. Raises EvidenceMismatch where it is another question's."""
    use = get(conn, sealed_test_use_id)
    if (use.candidate_id, use.champion_candidate_id, use.protocol_id) != (candidate_id, champion_id, protocol_id):
        raise EvidenceMismatch(
            f"use {sealed_test_use_id} of the sealed test is of another candidate, champion or protocol"
        )
    return use


_USES: LiteralString = (
    "SELECT uses.*, (SELECT verdict = 'pass' FROM gate_reports"
    " WHERE gate_reports.sealed_test_use_id = uses.sealed_test_use_id) AS passed FROM sealed_test_uses uses"
)
