"""Who is champion, from when to when; and the one transaction that changes it.

Three locks, because each alone has let two champions through under load or mistake: an advisory lock per line, a
compare-and-set on the champion everybody was looking at, and the unique index `promotions_one_champion_per_line`.
MLflow follows by a job; if it is down, the promotion stands.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from registry import approvals, audit, candidates, jobs, lines
from registry.candidates import Candidate
from registry.db import Connection, constraint_means, fetch_all, fetch_one, fetch_value, lock_line
from registry.errors import ChampionMoved, GateNotPassed, Invalid, NothingToRollBackTo, StateMoved
from registry.users import User

Kind = Literal["promotion", "roll_back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One reign; `ended_at` is None for the champion of today."""

    promotion_id: int
    line_id: int
    candidate_id: int
    kind: str
    replaced_candidate_id: int | None
    gate_report_id: int | None
    bound_digest: str | None
    reason: str
    promoted_by: int
    promoted_at: datetime
    ended_at: datetime | None


def champion(conn: Connection, line_id: int) -> Candidate | None:
    """Return the champion of a line, None before the first."""
    return fetch_one(
        conn,
        Candidate,
        "SELECT candidates.* FROM promotions JOIN candidates USING (candidate_id)"
        " WHERE promotions.line_id = %s AND ended_at IS NULL",
        (line_id,),
    )


def current(conn: Connection, line_id: int) -> Promotion | None:
    """Return the promotion that made the champion, None before the first."""
    return fetch_one(conn, Promotion, "SELECT * FROM promotions WHERE line_id = %s AND ended_at IS NULL", (line_id,))


def previous(conn: Connection, line_id: int) -> Candidate | None:
    """Return the candidate a roll back would bring back: the one the champion replaced when it was promoted."""
    return fetch_one(
        conn,
        Candidate,
        "SELECT earlier.* FROM promotions now JOIN promotions first ON first.candidate_id = now.candidate_id"
        " AND first.kind = 'promotion' JOIN candidates earlier ON earlier.candidate_id = first.replaced_candidate_id"
        " WHERE now.line_id = %s AND now.ended_at IS NULL",
        (line_id,),
    )


def approved(conn: Connection, line_id: int) -> list[Candidate]:
    """Every candidate of a line that was ever promoted, in the order in which people approved them."""
    return fetch_all(
        conn,
        Candidate,
        "SELECT candidates.* FROM candidates JOIN (SELECT candidate_id, min(promotion_id) AS earliest FROM promotions"
        " WHERE line_id = %s AND kind = 'promotion' GROUP BY candidate_id) AS approvals USING (candidate_id)"
        " ORDER BY earliest",
        (line_id,),
    )


def promote(
    conn: Connection, *, candidate_id: int, expected_champion_id: int | None, actor: User, reason: str
) -> Promotion:
    """Make a candidate the champion in place of `expected_champion_id` (None: of nobody).

    Needs a passing gate report on exactly this candidate under the current protocol against the current champion, and
    the protocol's number of standing approvals. Raises Forbidden, ChampionMoved, GateNotPassed, StateMoved,
    ApprovalMissing, ApprovalVoid, NotFound, Invalid.
    """
    actor.require("approver")
    line_id = candidates.get(conn, candidate_id).line_id
    incumbent = _take_the_line(conn, line_id, expected_champion_id=expected_champion_id)
    candidate = candidates.lock(conn, candidate_id)
    report, bound = check_promotable(conn, candidate, champion_id=expected_champion_id)
    return _crown(
        conn,
        candidate,
        incumbent=incumbent,
        kind="promotion",
        gate_report_id=report.gate_report_id,
        bound_digest=bound,
        actor=actor,
        reason=reason,
    )


def check_promotable(
    conn: Connection, candidate: Candidate, *, champion_id: int | None
) -> tuple[candidates.GateReport, str]:
    """Return the report on which a candidate may take the place of a champion, and the digest that people signed.

    Raises GateNotPassed, ChampionMoved, StateMoved, ApprovalMissing, ApprovalVoid.
    """
    report = candidates.latest_report(conn, candidate.candidate_id)
    protocol = lines.current_protocol(conn, candidate.line_id)
    if report is None or report.verdict != "pass":
        raise GateNotPassed(f"candidate {candidate.number} has not passed its gates")
    if report.champion_candidate_id != champion_id:
        raise ChampionMoved(f"candidate {candidate.number} was compared with a former champion; start a new run")
    if report.protocol_id != protocol.protocol_id:
        raise GateNotPassed(
            f"candidate {candidate.number} was gated under an earlier protocol; version {protocol.version} now counts"
        )
    if report.dataset_version_id != candidate.dataset_version_id:
        raise GateNotPassed(f"the gate report is on other data than candidate {candidate.number} was trained on")
    if candidate.state != "gates_passed":
        raise StateMoved(f"candidate {candidate.number} is {candidate.state}; only one that passed may be promoted")
    required = protocol.document["approvals"]["required"]
    return report, approvals.check_enough(conn, candidate_id=candidate.candidate_id, required=required)


def roll_back(
    conn: Connection, *, line_id: int, expected_champion_id: int | None, actor: User, reason: str
) -> Promotion:
    """Bring back the candidate that the champion replaced. One person may: waiting would leave a bad model serving.

    Raises Forbidden, ChampionMoved, NothingToRollBackTo, Invalid.
    """
    actor.require("approver", "operator")
    incumbent = _take_the_line(conn, line_id, expected_champion_id=expected_champion_id)
    earlier = previous(conn, line_id)
    if incumbent is None or earlier is None:
        raise NothingToRollBackTo("the champion replaced nobody; there is nothing to roll back to")
    return _crown(
        conn,
        candidates.lock(conn, earlier.candidate_id),
        incumbent=incumbent,
        kind="roll_back",
        gate_report_id=None,
        bound_digest=None,
        actor=actor,
        reason=reason,
    )


def history(conn: Connection, line_id: int) -> list[Promotion]:
    """Every reign of a line, newest first."""
    return fetch_all(
        conn, Promotion, "SELECT * FROM promotions WHERE line_id = %s ORDER BY promotion_id DESC", (line_id,)
    )


def _take_the_line(conn: Connection, line_id: int, *, expected_champion_id: int | None) -> Candidate | None:
    lock_line(conn, line_id)
    incumbent = champion(conn, line_id)
    found = None if incumbent is None else incumbent.candidate_id
    if found != expected_champion_id:
        raise ChampionMoved(
            f"the champion is candidate {'none' if found is None else found}, not "
            f"{'none' if expected_champion_id is None else expected_champion_id}; look again before you decide",
            champion=found,
        )
    return incumbent


def _crown(
    conn: Connection,
    candidate: Candidate,
    *,
    incumbent: Candidate | None,
    kind: Kind,
    gate_report_id: int | None,
    bound_digest: str | None,
    actor: User,
    reason: str,
) -> Promotion:
    if not reason.strip():
        raise Invalid("say why the champion changes")
    with constraint_means(
        conn, promotions_one_champion_per_line=ChampionMoved("another promotion came first; look again")
    ):
        # One clock reading for both, after the locks: reigns follow each other without gap or overlap.
        now = fetch_value(conn, "SELECT clock_timestamp()")
        ended = None
        if incumbent is not None:
            ended = fetch_value(
                conn,
                "UPDATE promotions SET ended_at = %s WHERE line_id = %s AND ended_at IS NULL"
                " AND candidate_id = %s RETURNING promotion_id",
                (now, candidate.line_id, incumbent.candidate_id),
            )
        sys.audit("overread.fault", "promotion.insert.before")
        promotion = fetch_one(
            conn,
            Promotion,
            "INSERT INTO promotions (line_id, candidate_id, kind, replaced_candidate_id, gate_report_id, bound_digest,"
            " reason, promoted_by, promoted_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
            (
                candidate.line_id,
                candidate.candidate_id,
                kind,
                None if incumbent is None else incumbent.candidate_id,
                gate_report_id,
                bound_digest,
                reason.strip(),
                actor.user_id,
                now,
            ),
        )
    assert promotion is not None
    if incumbent is not None:
        candidates.set_state(conn, incumbent, "retired")
    candidates.set_state(conn, candidate, "champion")
    sys.audit("overread.fault", "promotion.mirror.before")
    # A key of its own: a mirror job that is under way may have read the record before this promotion.
    jobs.enqueue(
        conn,
        kind="mirror_promotion",
        line_id=candidate.line_id,
        payload={"promotion_id": promotion.promotion_id},
        unique_key=f"mirror_promotion:{promotion.promotion_id}",
    )
    audit.record(
        conn,
        actor=actor.name,
        action="promotion:promote" if kind == "promotion" else "promotion:roll_back",
        subject=f"candidate/{candidate.candidate_id}",
        details={
            "promotion": promotion.promotion_id,
            "replaced": promotion.replaced_candidate_id,
            "bound_digest": bound_digest,
            "reason": promotion.reason,
        },
        row=f"promotions/{promotion.promotion_id}",
        replaces=None if ended is None else f"promotions/{ended}",
    )
    return promotion
