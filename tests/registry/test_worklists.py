"""The list of what to confirm next, and which cases are blind, in the record."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import LiteralString

import pytest

from registry import erasures, jobs, lines, predictions, worklists
from registry.cases import Case
from registry.db import Connection
from registry.errors import BlindCase, Invalid
from registry.lines import Line
from tests import factories


def put(db: Connection, line: Line, cases: Sequence[Case], *, arm: str = "random", left_out: int = 0) -> int:
    """A ranking of these cases in their order, as a worker would have left it."""
    last_case_id, last_confirmation_id = worklists.reach(db, line.line_id)
    return worklists.replace(
        db,
        line_id=line.line_id,
        candidate_id=None,
        protocol_id=lines.current_protocol(db, line.line_id).protocol_id,
        shares={"random": 1.0},
        left_out=left_out,
        last_case_id=last_case_id,
        last_confirmation_id=last_confirmation_id,
        case_ids=[case.case_id for case in cases],
        arms=[arm] * len(cases),
        reasons=[f"wanted as number {place}" for place, _ in enumerate(cases, start=1)],
    )


def listed(db: Connection, line: Line, **asked: object) -> list[int]:
    return [entry.case_id for entry in worklists.entries(db, line_id=line.line_id, **asked)]  # type: ignore[arg-type]


def test_a_ranking_takes_the_place_of_the_one_before(db: Connection) -> None:
    line, other = factories.line(db), factories.line(db)
    cases = [factories.case(db, line) for _ in range(3)]
    theirs = factories.case(db, other)
    assert put(db, other, [theirs]) == 1
    assert put(db, line, cases) == 3
    assert put(db, line, cases[::-1], left_out=2) == 3
    assert listed(db, line) == [case.case_id for case in cases[::-1]]
    assert listed(db, other) == [theirs.case_id]
    ranking = worklists.latest(db, line.line_id)
    assert ranking is not None
    assert (ranking.ranked, ranking.left_out, ranking.shares) == (3, 2, {"random": 1.0})


def test_a_case_of_another_line_is_not_listed(db: Connection) -> None:
    line = factories.line(db)
    assert put(db, line, [factories.case(db, factories.line(db))]) == 0


def test_the_list_is_read_in_pages_by_site_and_by_arm(db: Connection) -> None:
    line = factories.line(db)
    cases = [factories.case(db, line, site=site) for site in ("north", "south", "north", "south", "north")]
    put(db, line, cases)
    north = [case.case_id for case in cases if case.site == "north"]
    assert listed(db, line, limit=2) == [cases[0].case_id, cases[1].case_id]
    assert listed(db, line, after=2, limit=2) == [cases[2].case_id, cases[3].case_id]
    assert listed(db, line, site="north") == north
    assert listed(db, line, site="north", arm="random", after=1) == north[1:]
    assert listed(db, line, arm="blind") == []
    with pytest.raises(Invalid, match="no arm is called 'gut feeling'"):
        listed(db, line, arm="gut feeling")


def test_a_confirmed_case_is_given_out_no_more_and_listed_no_more(db: Connection) -> None:
    line = factories.line(db)
    cases = [factories.case(db, line) for _ in range(3)]
    put(db, line, cases)
    factories.confirmation(db, cases[0])
    assert listed(db, line) == [cases[1].case_id, cases[2].case_id]
    assert put(db, line, cases) == 2
    assert [case.case_id for case in pool(db, line)] == [cases[1].case_id, cases[2].case_id]


def test_an_erased_case_leaves_the_list_at_once_and_the_pool(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    cases = [factories.case(owner_db, line), factories.case(owner_db, line, patient="somebody")]
    put(owner_db, line, cases)
    erasures.erase(
        owner_db, patient_digest=erasures.digest_of_patient("somebody"), line=None, reason="asked", actor="olga"
    )
    assert owner_db.execute("SELECT case_id FROM worklist_cases WHERE line_id = %s", (line.line_id,)).fetchall() == [
        (cases[0].case_id,)
    ]
    assert [case.case_id for case in pool(owner_db, line)] == [cases[0].case_id]
    assert put(owner_db, line, cases) == 1


def pool(db: Connection, line: Line, candidate_id: int | None = None, limit: int = 100) -> list[worklists.Unconfirmed]:
    return worklists.pool(db, line=line, candidate_id=candidate_id, limit=limit)


def test_the_pool_knows_what_the_champion_said_and_not_what_another_did(db: Connection) -> None:
    line = factories.line(db)
    case = factories.case(db, line)
    champion, other = factories.champion(db, line), factories.candidate(db, factories.line(db))
    for candidate, score in ((champion, 0.25), (champion, 0.75), (other, 0.5)):
        predictions.log_prediction(
            db,
            line_id=line.line_id,
            case_id=case.case_id,
            candidate_id=candidate.candidate_id,
            weights_digest=candidate.weights_digest,
            image_digest=case.image_digest,
            scores={"normal": 1.0 - score, "pneumonia": score},
            decision="normal",
            threshold=0.5,
            shown=False,
            latency_seconds=0.01,
            requested_by=case.submitted_by,
        )
    (found,) = pool(db, line, champion.candidate_id)
    assert found.scores == {"normal": 0.25, "pneumonia": 0.75}
    assert 0.0 <= found.age_days < 1.0
    assert pool(db, line)[0].scores is None


def test_of_a_pool_that_is_too_large_the_newest_are_taken(db: Connection) -> None:
    line = factories.line(db)
    cases = [factories.case(db, line) for _ in range(6)]
    factories.confirmation(db, cases[4])
    assert [case.case_id for case in pool(db, line, limit=3)] == [cases[k].case_id for k in (2, 3, 5)]


def test_what_others_are_compared_with_is_confirmed_and_not_erased(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    cases = [factories.case(owner_db, line, site=site, patient=site) for site in ("north", "south", "east")]
    for case in (cases[0], cases[0], cases[1]):
        factories.confirmation(owner_db, case)
    erasures.erase(
        owner_db, patient_digest=erasures.digest_of_patient("south"), line=None, reason="asked", actor="olga"
    )
    assert [(one.image_digest, one.site) for one in worklists.known(owner_db, line_id=line.line_id)] == [
        (cases[0].image_digest, "north")
    ]
    assert worklists.confirmed_by_site(owner_db, line.line_id) == {"north": 1}


def test_lots_are_uniform_and_cannot_be_told_without_the_key(db: Connection) -> None:
    rows = db.execute(
        "SELECT lot_of_case(sha256('one'), n), lot_of_case(sha256('two'), n) FROM generate_series(1, 4000) n"
    ).fetchall()
    for column in (0, 1):
        lots = sorted(float(row[column]) for row in rows)
        assert lots[0] >= 0.0
        assert lots[-1] < 1.0
        assert max(abs(lot - place / 4000) for place, lot in enumerate(lots)) < 0.03  # Kolmogorov-Smirnov, p < .001
    assert sum((one < 0.05) == (other < 0.05) for one, other in rows) < 3800
    key = hashlib.sha256(b"one").digest()
    by_hand = hashlib.sha256(key + b"lot of case" + (7).to_bytes(8, "big")).digest()[:6]
    assert rows[6][0] == int.from_bytes(by_hand, "big") / 2**48


@pytest.mark.parametrize(("fraction", "blind"), [(1.0, True), (0.0, False)])
def test_a_blind_case_is_blind_until_its_first_confirmation(db: Connection, fraction: float, blind: bool) -> None:
    line = factories.line(db, blind_fraction=fraction)
    case = factories.case(db, line)
    assert worklists.is_blind(db, line=line, image_digest=case.image_digest) is blind
    if blind:
        with pytest.raises(BlindCase, match="confirm what you see in it first"):
            worklists.refuse_if_blind(db, line=line, image_digest=case.image_digest)
    assert not worklists.is_blind(db, line=factories.line(db, blind_fraction=1.0), image_digest=case.image_digest)
    factories.confirmation(db, case)
    worklists.refuse_if_blind(db, line=line, image_digest=case.image_digest)


def test_about_as_many_cases_are_blind_as_the_protocol_says(db: Connection) -> None:
    line = factories.line(db, blind_fraction=0.3)
    cases = [factories.case(db, line) for _ in range(200)]
    blind = [worklists.is_blind(db, line=line, image_digest=case.image_digest) for case in cases]
    assert 35 < sum(blind) < 85  # four standard deviations
    by_id = {case.case_id: case.lot < 0.3 for case in pool(db, line, limit=1000)}
    assert [by_id[case.case_id] for case in cases] == blind, "what the list calls blind is what is refused"


def test_a_line_is_due_when_enough_came_and_again_when_enough_was_confirmed(db: Connection) -> None:
    line = factories.line(db)
    cases = [factories.case(db, line) for _ in range(worklists.FEWEST_NEWS - 1)]
    assert not due(db, line)
    cases.append(factories.case(db, line))
    assert due(db, line) == "20 cases came or were confirmed"
    put(db, line, cases)
    assert not due(db, line)
    for case in cases:
        factories.confirmation(db, case)
    assert due(db, line)
    put(db, line, [])
    assert not due(db, line)


def test_cases_that_come_with_their_confirmation_are_no_reason_to_rank(db: Connection) -> None:
    line = factories.line(db)
    for _ in range(worklists.FEWEST_NEWS + 5):
        factories.confirmation(db, factories.case(db, line))
    assert not due(db, line)


def test_a_line_is_due_after_a_promotion_and_under_a_new_protocol(db: Connection) -> None:
    line = factories.line(db)
    cases = [factories.case(db, line)]
    put(db, line, cases)
    assert not due(db, line)
    factories.new_protocol(db, line, blind_fraction=0.5)
    assert due(db, line) == "there is another protocol"
    put(db, line, cases)
    factories.champion(db, line)
    assert due(db, line) == "there is another champion"


def due(db: Connection, line: Line) -> str | None:
    return {found.line_id: reason for found, reason in worklists.due(db)}.get(line.line_id)


def test_a_ranking_is_asked_for_once_and_not_again_at_once_where_it_failed(db: Connection) -> None:
    line = factories.line(db)
    for _ in range(worklists.FEWEST_NEWS):
        factories.case(db, line)
    job_id = worklists.ask(db, line.line_id)
    assert job_id is not None
    assert worklists.ask(db, line.line_id) is None
    assert jobs.get_job(db, job_id).maximum_attempts == 3
    assert due(db, line)
    db.execute("UPDATE jobs SET state = 'failed', finished_at = clock_timestamp() WHERE job_id = %s", (job_id,))
    assert not due(db, line)
    db.execute("UPDATE jobs SET finished_at = clock_timestamp() - interval '1 hour' WHERE job_id = %s", (job_id,))
    assert due(db, line)


def plan(db: Connection, query: LiteralString, parameters: Mapping[str, object]) -> str:
    """How PostgreSQL answers a query, with what it really read."""
    explained = db.execute("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) " + query, parameters)
    return "\n".join(str(row[0]) for row in explained)


def touched(text: str) -> int:
    """Pages that a plan read, by the buffers of its topmost node."""
    found = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", text)
    assert found, text
    return sum(int(number) for number in found.groups(default="0"))


def test_at_a_hundred_thousand_cases_a_page_of_the_list_costs_no_more_than_at_ten(db: Connection) -> None:
    line = factories.line(db)
    first = factories.case(db, line)
    db.execute(
        "INSERT INTO cases (line_id, image_digest, site, submitted_by) SELECT line_id, image_digest,"
        " CASE WHEN n %% 100 = 0 THEN 'south' ELSE 'north' END, submitted_by"
        " FROM cases, generate_series(1, 100000) n WHERE case_id = %s",
        (first.case_id,),
    )
    put(db, line, [])
    db.execute(
        "INSERT INTO worklist_cases (case_id, line_id, site, place, arm, reason) SELECT case_id, line_id, site,"
        " row_number() OVER (ORDER BY case_id), CASE WHEN case_id %% 20 = 0 THEN 'blind' ELSE 'random' END, 'x'"
        " FROM cases WHERE line_id = %s",
        (line.line_id,),
    )
    # Nobody may ANALYZE but the owner: the plans must hold with the statistics of an empty table.
    for after in (0, 90_000):
        asked = {"line_id": line.line_id, "after": after, "window": 100, "site": "south", "arm": "blind"}
        for query in worklists._WINDOWS.values():
            text = plan(db, query, asked)
            assert "Seq Scan on cases" not in text
            assert "Seq Scan on worklist_cases" not in text
            assert touched(text) < 2500, text
    news = {"line_id": line.line_id, "case_id": 0, "confirmation_id": 0, "most": worklists.MOST_NEWS}
    text = plan(db, worklists._NEWS, news)
    assert "Seq Scan on cases" not in text, text
    digest = {"line_id": line.line_id, "key": line.split_key, "digest": factories.case(db, line).image_digest}
    text = plan(db, worklists._IS_BLIND, digest)
    assert touched(text) < 40, text
