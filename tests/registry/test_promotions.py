"""Who becomes champion, and who does not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from registry import approvals, candidates, jobs, lines, promotions
from registry.candidates import Candidate
from registry.db import Connection, connect, lock_line
from registry.errors import (
    ApprovalMissing,
    ApprovalVoid,
    ChampionMoved,
    Forbidden,
    GateNotPassed,
    NothingToRollBackTo,
    StateMoved,
)
from registry.users import User
from tests import factories
from tests.waiting import PATIENCE_SECONDS, until


def _promote(db: Connection, candidate: Candidate, expected: int | None, actor: User | None = None) -> None:
    promotions.promote(
        db,
        candidate_id=candidate.candidate_id,
        expected_champion_id=expected,
        actor=actor or factories.user(db, "approver"),
        reason="it is better",
    )


def test_an_approved_candidate_becomes_champion_and_mlflow_is_told_by_a_job(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.approved_candidate(db, line)
    promotion = factories.promotion(db, candidate)
    champion = promotions.champion(db, line.line_id)
    assert champion is not None
    assert (champion.candidate_id, champion.state) == (candidate.candidate_id, "champion")
    assert promotion.bound_digest == approvals.bound_digest(db, candidate_id=candidate.candidate_id)
    mirrors = [job for job in jobs.list_jobs(db, line_id=line.line_id) if job.kind == "mirror_promotion"]
    assert [job.payload for job in mirrors] == [{"promotion_id": promotion.promotion_id}]


def test_the_next_champion_retires_the_one_before(db: Connection) -> None:
    line = factories.line(db)
    first = factories.champion(db, line)
    second = factories.champion(db, line)
    assert candidates.get(db, first.candidate_id).state == "retired"
    newest, oldest = promotions.history(db, line.line_id)
    assert (newest.candidate_id, newest.replaced_candidate_id) == (second.candidate_id, first.candidate_id)
    assert newest.ended_at is None
    assert oldest.ended_at is not None


def test_every_candidate_that_people_approved_is_remembered_in_order_and_once(db: Connection) -> None:
    line, other = factories.line(db), factories.line(db)
    assert promotions.approved(db, line.line_id) == []
    first, second = factories.champion(db, line), factories.champion(db, line)
    factories.champion(db, other)
    factories.approved_candidate(db, line)
    promotions.roll_back(
        db,
        line_id=line.line_id,
        expected_champion_id=second.candidate_id,
        actor=factories.user(db, "approver"),
        reason="it was not better after all",
    )
    found = [candidate.candidate_id for candidate in promotions.approved(db, line.line_id)]
    assert found == [first.candidate_id, second.candidate_id]


def test_twenty_racing_promotions_leave_one_champion(fresh_database: str) -> None:
    racers = 20
    with connect(fresh_database) as conn:
        line = factories.line(conn)
        actor = factories.user(conn, "approver")
        approved = [factories.approved_candidate(conn, line) for _ in range(racers)]
    start = threading.Barrier(racers)

    def race(candidate: Candidate) -> str:
        with connect(fresh_database) as conn:
            start.wait()
            try:
                _promote(conn, candidate, None, actor)
            except ChampionMoved as refusal:
                conn.rollback()
                return refusal.slug
        return "promoted"

    with ThreadPoolExecutor(racers) as threads:
        outcomes = list(threads.map(race, approved))
    assert sorted(outcomes) == ["champion-moved"] * (racers - 1) + ["promoted"]
    with connect(fresh_database) as conn:
        champion = promotions.champion(conn, line.line_id)
        assert champion is not None
        assert champion.candidate_id == approved[outcomes.index("promoted")].candidate_id
        assert len(promotions.history(conn, line.line_id)) == 1


def test_a_second_champion_is_refused_even_to_one_who_takes_no_lock(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        line = factories.line(conn)
        actor = factories.user(conn, "approver")
        first, second = factories.approved_candidate(conn, line), factories.approved_candidate(conn, line)
    started = threading.Event()

    def promote_second() -> str:
        with connect(fresh_database) as conn:
            started.set()
            with pytest.raises(ChampionMoved) as refusal:
                _promote(conn, second, None, actor)
            conn.rollback()
            return str(refusal.value)

    with connect(fresh_database) as rude, ThreadPoolExecutor(1) as threads:
        rude.execute(
            "INSERT INTO promotions (line_id, candidate_id, kind, gate_report_id, bound_digest, reason, promoted_by)"
            " SELECT line_id, candidate_id, 'promotion', gate_report_id, repeat('0', 64), 'rude', %s FROM candidates"
            " JOIN gate_reports USING (candidate_id) WHERE candidate_id = %s",
            (actor.user_id, first.candidate_id),
        )
        outcome = threads.submit(promote_second)
        started.wait()
        _wait_until_blocked(fresh_database)
        rude.commit()
        assert "came first" in outcome.result(
            timeout=PATIENCE_SECONDS
        )  # the unique index spoke, not the check before it


def test_promotions_of_one_line_take_turns(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        line, other = factories.line(conn), factories.line(conn)
        actor = factories.user(conn, "approver")
        waits, goes_on = factories.approved_candidate(conn, line), factories.approved_candidate(conn, other)
    with connect(fresh_database) as holder, connect(fresh_database) as conn:
        lock_line(holder, line.line_id)
        conn.execute("SET lock_timeout = '100ms'")
        _promote(conn, goes_on, None, actor)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            _promote(conn, waits, None, actor)
        conn.rollback()


def test_two_open_reigns_of_one_line_cannot_be_written(db: Connection) -> None:
    line = factories.line(db)
    champion = factories.champion(db, line)
    with pytest.raises(psycopg.errors.UniqueViolation, match="promotions_one_champion_per_line"):
        db.execute(
            "INSERT INTO promotions (line_id, candidate_id, kind, reason, promoted_by)"
            " SELECT line_id, candidate_id, 'roll_back', 'x', promoted_by FROM promotions WHERE candidate_id = %s",
            (champion.candidate_id,),
        )


def test_a_caller_who_looked_at_another_champion_is_refused(db: Connection) -> None:
    line = factories.line(db)
    champion = factories.champion(db, line)
    candidate = factories.approved_candidate(db, line)
    for looked_at in (None, candidate.candidate_id):
        with pytest.raises(ChampionMoved) as refusal:
            _promote(db, candidate, looked_at)
        assert refusal.value.extra == {"champion": champion.candidate_id}


def test_a_candidate_compared_with_a_former_champion_is_refused(db: Connection) -> None:
    line = factories.line(db)
    early = factories.approved_candidate(db, line)
    champion = factories.champion(db, line)
    with pytest.raises(ChampionMoved, match="former champion"):
        _promote(db, early, champion.candidate_id)


@pytest.mark.parametrize("verdict", ["fail", "insufficient"])
def test_gates_that_did_not_pass_stop_a_promotion(db: Connection, verdict: str) -> None:
    candidate = factories.gated_candidate(db, factories.line(db), verdict=verdict)
    assert candidate.state == "gates_failed"
    with pytest.raises(GateNotPassed):
        _promote(db, candidate, None)


def test_no_gate_report_no_promotion(db: Connection) -> None:
    with pytest.raises(GateNotPassed):
        _promote(db, factories.candidate(db, factories.line(db)), None)


def test_a_new_protocol_asks_for_new_gates(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.approved_candidate(db, line)
    factories.new_protocol(db, line, title="Pneumonia, more strictly")
    with pytest.raises(GateNotPassed, match="earlier protocol"):
        _promote(db, candidate, None)


def test_one_signature_is_not_enough(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db))
    factories.signatures(db, candidate, [factories.user(db, "approver")])
    with pytest.raises(ApprovalMissing, match="1 of 2") as refusal:
        _promote(db, candidate, None)
    assert refusal.value.extra == {"given": 1, "required": 2}


def test_weights_that_changed_after_signing_void_the_signatures(owner_db: Connection) -> None:
    candidate = factories.approved_candidate(owner_db, factories.line(owner_db))
    owner_db.execute(
        "UPDATE candidates SET weights_digest = %s WHERE candidate_id = %s",
        (factories.blob(owner_db), candidate.candidate_id),
    )
    with pytest.raises(ApprovalVoid):
        _promote(owner_db, candidate, None)


def test_only_an_approver_promotes(db: Connection) -> None:
    candidate = factories.approved_candidate(db, factories.line(db))
    with pytest.raises(Forbidden, match="approver"):
        _promote(db, candidate, None, factories.user(db, "operator", "submitter"))


def test_a_champion_is_not_promoted_again(db: Connection) -> None:
    champion = factories.champion(db, factories.line(db))
    with pytest.raises((StateMoved, ChampionMoved)):
        _promote(db, champion, champion.candidate_id)


def test_rolling_back_brings_the_replaced_one_back_step_by_step(db: Connection) -> None:
    line = factories.line(db)
    first, second, third = (factories.champion(db, line) for _ in range(3))
    operator = factories.user(db, "operator")
    for wrong, right in ((third, second), (second, first)):
        promotion = promotions.roll_back(
            db,
            line_id=line.line_id,
            expected_champion_id=wrong.candidate_id,
            actor=operator,
            reason="misses small infiltrates",
        )
        champion = promotions.champion(db, line.line_id)
        assert champion is not None
        assert (champion.candidate_id, champion.state) == (right.candidate_id, "champion")
        assert (promotion.kind, promotion.replaced_candidate_id) == ("roll_back", wrong.candidate_id)
        assert candidates.get(db, wrong.candidate_id).state == "retired"
    with pytest.raises(NothingToRollBackTo):
        promotions.roll_back(
            db, line_id=line.line_id, expected_champion_id=first.candidate_id, actor=operator, reason="again"
        )
    assert [event.kind for event in promotions.history(db, line.line_id)] == ["roll_back"] * 2 + ["promotion"] * 3


def test_reigns_follow_each_other_without_gap_or_overlap_whoever_began_first(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        line = factories.line(conn)
    with connect(fresh_database) as early, connect(fresh_database) as late:
        early.execute("SELECT now()")  # begins before the first promotion, and promotes after it
        factories.champion(late, line)
        late.commit()
        factories.champion(early, line)
        second, first = promotions.history(early, line.line_id)
    assert first.promoted_at < second.promoted_at
    assert first.ended_at == second.promoted_at


def test_rolling_back_what_is_no_longer_champion_is_refused(db: Connection) -> None:
    line = factories.line(db)
    first = factories.champion(db, line)
    factories.champion(db, line)
    with pytest.raises(ChampionMoved):
        promotions.roll_back(
            db,
            line_id=line.line_id,
            expected_champion_id=first.candidate_id,
            actor=factories.user(db, "approver"),
            reason="late",
        )


def test_a_line_without_champion_has_nothing_to_roll_back_to(db: Connection) -> None:
    line = factories.line(db)
    with pytest.raises(NothingToRollBackTo):
        promotions.roll_back(
            db, line_id=line.line_id, expected_champion_id=None, actor=factories.user(db, "approver"), reason="?"
        )
    assert lines.get_line(db, line.name).line_id == line.line_id


def _wait_until_blocked(url: str) -> None:
    with connect(url) as conn:
        conn.autocommit = True
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        until(lambda: conn.execute(waiting).fetchall(), what="the second promotion at the index")
