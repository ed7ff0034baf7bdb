"""What a champion is watched by, in which order, and what of a look is on record."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import psycopg
import pytest

from registry import adjudications, audit, confirmations, jobs, promotions, verify, watches
from registry.cases import Case
from registry.db import Connection
from registry.lines import Line
from registry.users import User
from tests import factories

WATCHED: dict[str, Any] = {"tolerance": 0.05, "maturity_days": 30.0, "alpha": 0.05, "sample": "every_case"}


def age(owner_db: Connection, case: Case, days: float) -> None:
    """Make a case as old as that."""
    owner_db.execute(
        "UPDATE cases SET created_at = now() - make_interval(secs => %s * 86400) WHERE case_id = %s",
        (days, case.case_id),
    )


def said(owner_db: Connection, case: Case, *, days_ago: float = 0.0, **fields: Any) -> confirmations.Confirmation:
    """A word about a case, as old as that."""
    made = factories.confirmation(owner_db, case, **fields)
    owner_db.execute("ALTER TABLE confirmations DISABLE TRIGGER confirmations_are_append_only")
    owner_db.execute(
        "UPDATE confirmations SET confirmed_at = '2020-01-01', created_at = now() - make_interval(secs => %s * 86400)"
        " WHERE confirmation_id = %s",
        (days_ago, made.confirmation_id),
    )
    return made


def sample(db: Connection, line: Line, **changes: Any) -> list[watches.SampledCase]:
    asked: dict[str, Any] = {
        "after_confirmation_id": 0,
        "maturity_days": 30.0,
        "blind_fraction": None,
        "up_to": confirmations.last_id(db, line.line_id),
    }
    return watches.sample(db, line=line, **{**asked, **changes})


def findings(case: watches.SampledCase) -> list[str]:
    return [row["finding"] for row in case.said]


def test_cases_count_once_mature_in_the_order_in_which_they_became_mature_and_confirmed(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    first, second, third, young, unread = (factories.case(owner_db, line) for _ in range(5))
    for case, days, word in ((first, 60.0, 10.0), (second, 45.0, 44.0), (third, 35.0, 34.0), (young, 29.0, 1.0)):
        age(owner_db, case, days)
        said(owner_db, case, days_ago=word)
    age(owner_db, unread, 50.0)
    # `second` was mature 15 days ago, `first` confirmed 10 days ago, `third` mature 5 days ago
    expected = [second.case_id, first.case_id, third.case_id]
    found = sample(owner_db, line)
    assert [case.case_id for case in found] == [*expected, unread.case_id]
    assert [round(case.delay_days or 0.0, 3) for case in found] == [1.0, 50.0, 1.0, 0.0]
    assert (found[-1].delay_days, found[-1].said) == (None, [])
    later = sample(owner_db, line, maturity_days=20.0)
    assert [case.case_id for case in later if case.said][-1] == young.case_id


def test_a_look_tomorrow_only_adds_to_the_order_of_today(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    cases = [factories.case(owner_db, line) for _ in range(12)]
    for number, case in enumerate(cases):
        age(owner_db, case, 28.0 + (7 * number) % 12)
        said(owner_db, case, days_ago=(5 * number) % 11)

    def order() -> list[int]:
        return [case.case_id for case in sample(owner_db, line) if case.said]

    orders = [order()]
    for _ in range(4):  # a day goes by
        owner_db.execute(
            "UPDATE cases SET created_at = created_at - interval '1 day' WHERE line_id = %s", (line.line_id,)
        )
        owner_db.execute(
            "UPDATE confirmations SET created_at = created_at - interval '1 day' WHERE line_id = %s", (line.line_id,)
        )
        orders.append(order())
    assert len(orders[0]) < len(orders[-1]) == 12
    for today, tomorrow in pairwise(orders):
        assert tomorrow[: len(today)] == today


def test_only_what_was_said_before_the_model_was_seen_counts(owner_db: Connection) -> None:
    db, line = owner_db, factories.line(owner_db)
    reader, reviewer = factories.user(db, "submitter"), factories.user(db, "reviewer")
    aided, persuaded, corrected, taken_back = (factories.case(db, line, actor=reader) for _ in range(4))
    factories.confirmation(db, aided, ai_exposure="aided")
    factories.confirmation(db, aided, ai_exposure="blind")  # too late: somebody had seen it
    replaced(db, persuaded, reader=reader, exposure="aided")
    replaced(db, corrected, reader=reader, exposure="blind")
    word = factories.confirmation(db, taken_back, actor=reader)
    adjudications.retract(db, confirmation_id=word.confirmation_id, reason="another patient", actor=reviewer)
    found = {case.case_id: findings(case) for case in sample(db, line, maturity_days=0.0)}
    assert found == {
        aided.case_id: [],
        persuaded.case_id: ["normal"],
        corrected.case_id: ["pneumonia"],
        taken_back.case_id: [],
    }


def replaced(db: Connection, case: Case, *, reader: User, exposure: str) -> None:
    """A blind word that its reader replaces by another."""
    word = factories.confirmation(db, case, actor=reader, finding="normal")
    factories.confirmation(
        db, case, actor=reader, finding="pneumonia", ai_exposure=exposure, supersedes=word.confirmation_id
    )


def test_what_the_champion_may_have_learned_from_and_what_is_erased_or_not_in_the_lot_is_left_out(
    owner_db: Connection,
) -> None:
    db, line = owner_db, factories.line(owner_db)
    learned, *others = (factories.case(db, line) for _ in range(60))
    factories.confirmation(db, learned)
    known = confirmations.last_id(db, line.line_id)
    for case in others:
        factories.confirmation(db, case)
    found = sample(db, line, maturity_days=0.0, after_confirmation_id=known)
    assert {case.case_id for case in found} == {case.case_id for case in others}
    lots = dict(
        db.execute(
            "SELECT case_id, lot_of_case(%s, case_id) FROM cases WHERE line_id = %s", (line.split_key, line.line_id)
        )
    )
    blind = sample(db, line, maturity_days=0.0, after_confirmation_id=known, blind_fraction=0.4)
    assert {case.case_id for case in blind} == {case.case_id for case in others if lots[case.case_id] < 0.4}
    assert 0 < len(blind) < len(others)


def record(db: Connection, line: Line, **changes: Any) -> watches.Watch:
    """A look at the line's champion."""
    return factories.watch(db, promotions.champion(db, line.line_id) or factories.champion(db, line), **changes)


def test_an_alarm_is_told_of_once_as_it_rises(db: Connection) -> None:
    line = factories.line(db)
    calm = {"verdict": "in_order", "raised_at": None}
    looks = [record(db, line, **calm), record(db, line), record(db, line)]
    events = [event for event in audit.list_events(db, limit=1000) if event.action.startswith("champion:")]
    assert [event.action for event in events] == ["champion:watch", "champion:alarm", "champion:watch"]
    assert [event.details["row"] for event in events] == [f"watches/{look.watch_id}" for look in looks]
    factories.champion(db, line)
    another = record(db, line)
    assert another.candidate_id != looks[0].candidate_id
    assert audit.find_events(db, action="champion:")[0].action == "champion:alarm"
    assert [look.watch_id for look in watches.list_for_line(db, line.line_id)] == [
        look.watch_id for look in [another, *looks[::-1]]
    ]


def test_an_alarm_says_what_to_do(db: Connection) -> None:
    line = factories.line(db)
    told = watches.what_to_do(record(db, line), line=line.name)
    assert told is not None
    assert "(9, 7)" in told
    assert f"overread roll-back --line {line.name}" in told
    assert watches.what_to_do(record(db, line, verdict="in_order", raised_at=None), line=line.name) is None


@pytest.mark.parametrize(
    "change",
    [{"n": 41}, {"errors": 31}, {"raised_at": 31}, {"risk": 1.2}, {"verdict": "fine"}, {"verified_share": -0.1}],
)
def test_a_look_that_cannot_be_is_refused_by_the_database(db: Connection, change: dict[str, Any]) -> None:
    line = factories.line(db)
    factories.champion(db, line)
    with pytest.raises(psycopg.errors.CheckViolation), db.transaction():
        record(db, line, **change)


def test_verifying_finds_a_look_that_was_rewritten(owner_db: Connection) -> None:
    record(owner_db, factories.line(owner_db))

    def state() -> dict[str, str]:
        return {one.check: one.state for one in verify.check_rows(owner_db, tell=lambda _what, _done: None)}

    assert state()["watches"] == "fine"
    owner_db.execute("ALTER TABLE watches DISABLE TRIGGER watches_are_append_only")
    owner_db.execute("UPDATE watches SET verdict = 'in_order', reason = 'all is well'")
    assert state()["watches"] == "damaged"


def test_a_champion_that_is_to_be_watched_is_due_once_a_day_and_under_each_protocol(owner_db: Connection) -> None:
    db = owner_db
    factories.champion(db, factories.line(db))  # not to be watched
    factories.line(db, monitoring=WATCHED)  # without a champion
    line = factories.line(db, monitoring=WATCHED)
    champion = factories.champion(db, line)

    def due() -> list[str]:
        return [found.name for found, _, _ in watches.due(db)]

    assert due() == [line.name]
    (_, _, protocol_id) = watches.due(db)[0]
    asked = {"line_id": line.line_id, "candidate_id": champion.candidate_id, "protocol_id": protocol_id}
    job_id = watches.ask(db, **asked)
    assert job_id is not None
    assert (watches.ask(db, **asked), due()) == (None, [])
    db.execute(
        "UPDATE jobs SET state = 'succeeded', created_at = now() - interval '25 hours' WHERE job_id = %s", (job_id,)
    )
    assert due() == [line.name]
    watches.ask(db, **asked)
    assert due() == []
    factories.new_protocol(db, line, title="Pneumonia, more strictly")
    assert due() == [line.name]
    assert {job.kind for job in jobs.list_jobs(db, line_id=line.line_id, states=("queued",))} >= {"watch_champion"}
