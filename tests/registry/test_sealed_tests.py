"""The ledger of the sealed test in the record: nobody looks for free, and nobody spends what another has spent."""

from __future__ import annotations

from typing import Any

import pytest

from registry import audit, candidates, promotions, sealed_tests, verify
from registry.db import Connection
from registry.errors import EvidenceMismatch, NotFound, StateMoved
from registry.sealed_tests import Use
from tests import factories


def use_of(db: Connection, candidate: candidates.Candidate, **changes: Any) -> Use:
    """A use of the recipe's wallet, the first of its epoch unless told otherwise."""
    champion = promotions.champion(db, candidate.line_id)
    terms: dict[str, Any] = {
        "champion_candidate_id": None if champion is None else champion.candidate_id,
        "protocol_id": candidate.protocol_id,
        "epoch": 1,
        "after_version": 0,
        "wallet": "recipe",
        "place": 1,
        "wallet_before": 0.03,
        "level": 0.024,
    }
    return sealed_tests.record_use(db, candidate_id=candidate.candidate_id, **{**terms, **changes})


def answer(db: Connection, candidate: candidates.Candidate, use: Use | None, **changes: Any) -> candidates.GateReport:
    """Record a passing report that names a use."""
    made = factories.gate_report_values(db, candidate, use=use)
    return candidates.record_gate_report(db, **{**made, **changes})


def test_a_use_is_told_of_by_an_event_that_vouches_for_its_row(db: Connection) -> None:
    candidate = factories.candidate(db, factories.line(db))
    use = use_of(db, candidate)
    assert (use.wallet_before, use.level, use.passed) == (0.03, 0.024, None)
    assert use.wallet_after == 0.03 - 0.024
    (event,) = [event for event in audit.list_events(db, limit=1000) if event.action == "sealed_test:use"]
    assert event.subject == f"candidate/{candidate.candidate_id}"
    assert event.details["row"] == f"sealed_test_uses/{use.sealed_test_use_id}"
    assert (event.details["level"], event.details["wallet"]) == (0.024, "recipe")


def test_the_answer_of_a_use_is_the_report_that_names_it(db: Connection) -> None:
    line = factories.line(db)
    passing = factories.champion(db, line)
    failing = factories.gated_candidate(db, line, verdict="insufficient")
    first, second = sealed_tests.list_uses(db, line.line_id)
    assert (first.candidate_id, first.passed) == (passing.candidate_id, True)
    assert (second.candidate_id, second.passed) == (failing.candidate_id, False)
    assert second.champion_candidate_id == passing.candidate_id


def test_what_its_data_stopped_is_reported_and_nothing_was_spent(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.candidate(db, line)
    rows = [{"name": "submitters", "requirement": "no flips", "verdict": "fail", "reason": "52 of 60"}]
    report = candidates.record_gate_report(db, **factories.unused_report_values(db, candidate, results=rows))
    assert (report.sealed_test_use_id, report.verdict) == (None, "fail")
    assert candidates.get(db, candidate.candidate_id).state == "gates_failed"
    assert sealed_tests.list_uses(db, line.line_id) == []
    assert use_of(db, factories.candidate(db, line)).place == 1


@pytest.mark.parametrize(
    ("verdict", "row"),
    [("pass", {}), ("fail", {"candidate": {"value": 0.9}}), ("fail", {"difference": {"value": 0.1}})],
)
def test_a_report_that_passes_or_tells_of_a_score_has_paid_for_it(
    db: Connection, verdict: str, row: dict[str, Any]
) -> None:
    candidate = factories.candidate(db, factories.line(db))
    free = factories.unused_report_values(db, candidate, verdict=verdict, results=[{"name": "auroc", **row}])
    with pytest.raises(EvidenceMismatch, match="nothing was paid"):
        candidates.record_gate_report(db, **free)


def test_the_same_question_is_never_paid_for_twice(db: Connection) -> None:
    candidate = factories.candidate(db, factories.line(db))
    use = use_of(db, candidate)
    with pytest.raises(StateMoved, match="the answer stands"):
        use_of(db, candidate, place=2, wallet_before=use.wallet_after, level=0.001)
    found = sealed_tests.of_hypothesis(
        db, candidate_id=candidate.candidate_id, champion_candidate_id=None, protocol_id=candidate.protocol_id
    )
    assert found == use


def test_two_candidates_cannot_spend_the_same_level(db: Connection) -> None:
    line = factories.line(db)
    first = factories.gated_candidate(db, line)
    second = factories.candidate(db, line)
    use_of(db, first, champion_candidate_id=first.candidate_id)
    with pytest.raises(StateMoved, match="used the sealed test meanwhile"):
        use_of(db, second)


@pytest.mark.parametrize(
    "change", [{"level": 0.5}, {"level": 0.0}, {"wallet_before": None}, {"wallet_before": 0.02}, {"wallet": "mine"}]
)
def test_a_use_that_does_not_pay_what_it_costs_is_refused_by_the_database(
    db: Connection, change: dict[str, Any]
) -> None:
    candidate = factories.candidate(db, factories.line(db))
    with pytest.raises(Exception, match="sealed_test_uses"), db.transaction():
        use_of(db, candidate, **change)


def test_no_report_is_recorded_without_the_use_that_paid_for_it(db: Connection) -> None:
    line = factories.line(db)
    other = factories.gated_candidate(db, line)
    candidate = factories.candidate(db, line)
    (taken,) = sealed_tests.list_uses(db, line.line_id)
    assert taken.candidate_id == other.candidate_id
    with pytest.raises(EvidenceMismatch, match="of another candidate"):
        answer(db, candidate, taken)
    with pytest.raises(NotFound, match="no use 0 of a sealed test"):
        answer(db, candidate, taken, sealed_test_use_id=0)
    assert candidates.latest_report(db, candidate.candidate_id) is None
    own = use_of(db, candidate)
    assert answer(db, candidate, own).sealed_test_use_id == own.sealed_test_use_id


def test_a_use_is_answered_once(db: Connection) -> None:
    candidate = factories.gated_candidate(db, factories.line(db), verdict="fail")
    (use,) = sealed_tests.list_uses(db, candidate.line_id)
    with pytest.raises(StateMoved, match="has its gate report already; it stands"):
        answer(db, candidate, use)
    assert candidates.get(db, candidate.candidate_id).state == "gates_failed"


def test_verifying_finds_a_wallet_that_was_filled_again(db: Connection) -> None:
    line = factories.line(db)
    first = factories.candidate(db, line)
    use = use_of(db, first)
    answer(db, first, use)
    second = factories.candidate(db, line)
    fine = use_of(db, second, place=2, wallet_before=use.level, level=0.01)
    answer(db, second, fine, **factories.gate_report_values(db, second, use=fine, verdict="fail"))
    assert verify.check_sealed_tests(db).state == "fine"
    third = use_of(db, factories.candidate(db, line), place=3, wallet_before=0.03, level=0.01)
    found = verify.check_sealed_tests(db)
    assert found.state == "damaged"
    assert f"sealed_test_uses/{third.sealed_test_use_id} of line {line.name} was not paid" in found.detail


def test_verifying_finds_more_spent_than_the_protocol_has(db: Connection) -> None:
    candidate = factories.candidate(db, factories.line(db))
    use_of(db, candidate, wallet_before=0.2, level=0.15)
    assert verify.check_sealed_tests(db).state == "damaged"


def test_what_was_left_under_an_earlier_protocol_is_no_damage(db: Connection) -> None:
    line = factories.line(db)
    first = factories.candidate(db, line)
    use = use_of(db, first, wallet_before=0.05, level=0.01)
    answer(db, first, use, **factories.gate_report_values(db, first, use=use, verdict="fail"))
    gates = factories.lines.current_protocol(db, line.line_id).document["gates"]
    factories.new_protocol(db, line, gates={**gates, "alpha": 0.03})
    use_of(db, factories.candidate(db, line), place=2, wallet_before=use.wallet_after, level=0.02)
    assert verify.check_sealed_tests(db).state == "fine"


def test_verifying_finds_an_epoch_of_worn_cases(db: Connection) -> None:
    line = factories.line(db)
    factories.gated_candidate(db, line, verdict="fail")
    factories.gated_candidate(db, line, verdict="fail")
    assert verify.check_sealed_tests(db).state == "fine"
    use_of(db, factories.candidate(db, line), epoch=2, after_version=1)  # versions 1 and 2 were judged by
    found = verify.check_sealed_tests(db)
    assert (found.state, "looks at worn cases" in found.detail) == ("damaged", True)
