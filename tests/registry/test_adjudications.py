"""What overrules confirmations: adjudications, retractions, and the queue of cases that wait for one."""

from __future__ import annotations

from typing import Any, get_args

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.protocol import ReferenceStandardRule
from pipelines.reference_standard import Settled, settle
from registry import adjudications, audit, cases, confirmations, erasures, passwords
from registry import db as database
from registry.adjudications import Decision
from registry.cases import Case
from registry.confirmations import AiExposure, Confirmation, Evidence
from registry.db import Connection, connect
from registry.errors import (
    AlreadySuperseded,
    Forbidden,
    Invalid,
    NotFound,
    RecordMoved,
    RegistryError,
    UnknownFinding,
    WrongLine,
)
from registry.users import User
from tests import factories
from workers.translate import confirmed_cases


def reviewer(db: Connection) -> User:
    """A reviewer who is a person."""
    made = factories.user(db, "reviewer")
    passwords.set_password(db, user=made, password="four words do well")
    return made


def adjudicate(db: Connection, case: Case, *, actor: User | None = None, **fields: Any) -> Confirmation:
    newest = confirmations.list_for_case(db, case.case_id)
    values = {"finding": "pneumonia", "ai_exposure": "blind", "reason": "the lateral view shows it"}
    last = {"last_seen": newest[-1].confirmation_id if newest else 1}
    decision = Decision(case_id=case.case_id, **{**values, **last, **fields})
    return adjudications.adjudicate(db, decision, actor=actor or reviewer(db))


def queue(db: Connection, line_id: int, **page: int) -> list[int]:
    return [case.case_id for case in adjudications.discordances(db, line_id=line_id, **page)]


@pytest.fixture
def case(db: Connection) -> Case:
    """A case of which two readers say different things."""
    made = factories.case(db, factories.line(db))
    factories.confirmation(db, made)
    factories.confirmation(db, made, finding="pneumonia", reader="reader-2", evidence="report_text")
    factories.confirmation(db, made, finding="pneumonia", reader="reader-2")
    return made


def test_an_adjudication_is_a_named_persons_with_a_reason_and_leaves_the_others_standing(
    db: Connection, case: Case
) -> None:
    rita = reviewer(db)
    made = adjudicate(db, case, actor=rita, reason="  the lateral view shows it ")
    assert (made.kind, made.finding, made.reader, made.submitter) == ("adjudication", "pneumonia", rita.name, rita.name)
    assert (made.reason, made.evidence, made.supersedes) == ("the lateral view shows it", "single_read", None)
    listed = confirmations.list_for_case(db, case.case_id)
    assert [row.superseded_by for row in listed] == [None] * 4
    event = audit.list_events(db, limit=10_000)[-1]
    assert (event.actor, event.action, event.subject) == (rita.name, "confirmation:adjudicate", f"case/{case.case_id}")
    assert event.details["considered"] == [row.confirmation_id for row in listed[:-1]]
    assert "reason" not in event.details


def test_an_adjudication_takes_the_strongest_evidence_it_looked_at_and_is_a_read_at_least(db: Connection) -> None:
    line = factories.line(db)
    for tier, expected in (("report_text", "single_read"), ("follow_up", "follow_up")):
        case = factories.case(db, line)
        factories.confirmation(db, case, evidence="report_text")
        factories.confirmation(db, case, finding="pneumonia", evidence=tier)
        assert adjudicate(db, case).evidence == expected


def test_a_case_that_cannot_be_answered_is_adjudicated_without_a_finding(db: Connection, case: Case) -> None:
    assert adjudicate(db, case, finding=None).finding is None
    assert queue(db, case.line_id) == []


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"finding": "fracture"}, UnknownFinding),
        ({"ai_exposure": "perhaps"}, Invalid),
        ({"reason": "  "}, Invalid),
        ({"last_seen": 10**9}, WrongLine),
    ],
)
def test_an_adjudication_that_cannot_be_right_is_refused(
    db: Connection, case: Case, fields: dict[str, Any], refusal: type[RegistryError]
) -> None:
    with pytest.raises(refusal):
        adjudicate(db, case, **fields)
    assert len(confirmations.list_for_case(db, case.case_id)) == 3


def test_only_a_reviewer_who_is_a_person_adjudicates(db: Connection, case: Case) -> None:
    with pytest.raises(Forbidden, match="role reviewer"):
        adjudicate(db, case, actor=factories.user(db, "submitter"))
    with pytest.raises(Forbidden, match="named person"):
        adjudicate(db, case, actor=factories.user(db, "reviewer"))


def test_nobody_adjudicates_what_does_not_exist_or_of_which_nothing_stands(db: Connection) -> None:
    line, sender = factories.line(db), factories.user(db, "submitter")
    decision = Decision(case_id=10**9, finding=None, ai_exposure="blind", reason="r", last_seen=1)
    with pytest.raises(NotFound):
        adjudications.adjudicate(db, decision, actor=reviewer(db))
    case = factories.case(db, line)
    only = factories.confirmation(db, case, actor=sender)
    adjudications.retract(db, confirmation_id=only.confirmation_id, reason="another patient", actor=sender)
    with pytest.raises(Invalid, match="nothing stands"):
        adjudicate(db, case)


@pytest.mark.parametrize("news", ["confirmation", "retraction", "adjudication"])
def test_what_has_come_in_since_the_last_look_stops_an_adjudication(db: Connection, case: Case, news: str) -> None:
    last = confirmations.list_for_case(db, case.case_id)[-1].confirmation_id
    if news == "confirmation":
        factories.confirmation(db, case, reader="reader-3")
    elif news == "retraction":
        adjudications.retract(db, confirmation_id=last, reason="another patient", actor=reviewer(db))
    else:
        adjudicate(db, case)
    newest = confirmations.list_for_case(db, case.case_id)[-1].confirmation_id
    with pytest.raises(RecordMoved, match="has come in since") as refused:
        adjudicate(db, case, last_seen=last)
    assert refused.value.extra == {"last_confirmation": newest}


def test_an_adjudication_waits_for_whoever_is_about_to_say_something(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        rita, case = reviewer(conn), factories.case(conn, factories.line(conn))
        seen = factories.confirmation(conn, case).confirmation_id
    with connect(fresh_database) as slow, connect(fresh_database) as quick:
        factories.confirmation(slow, case, finding="pneumonia", actor=rita)
        quick.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            adjudicate(quick, case, actor=rita, last_seen=seen)
        quick.rollback()
        slow.commit()
        with pytest.raises(RecordMoved):
            adjudicate(quick, case, actor=rita, last_seen=seen)


def test_a_retraction_takes_the_place_of_one_row_and_can_be_corrected(db: Connection) -> None:
    case, sender = factories.case(db, factories.line(db)), factories.user(db, "submitter")
    first = factories.confirmation(db, case, actor=sender, evidence="pathology", ai_exposure="aided")
    made = adjudications.retract(db, confirmation_id=first.confirmation_id, reason="another patient", actor=sender)
    assert (made.kind, made.finding, made.supersedes) == ("retraction", None, first.confirmation_id)
    assert (made.evidence, made.ai_exposure, made.reader) == ("pathology", "aided", first.reader)
    assert audit.list_events(db, limit=10_000)[-1].action == "confirmation:retract"
    with pytest.raises(AlreadySuperseded):
        adjudications.retract(db, confirmation_id=first.confirmation_id, reason="twice", actor=sender)
    with pytest.raises(Invalid, match="is a retraction"):
        adjudications.retract(db, confirmation_id=made.confirmation_id, reason="after all", actor=sender)
    again = factories.confirmation(db, case, actor=sender, supersedes=made.confirmation_id)
    (row,) = confirmations.standing_for_line(db, line_id=case.line_id, up_to=again.confirmation_id)
    assert (row.confirmation_id, row.kind, row.finding) == (again.confirmation_id, "confirmation", "normal")


def test_whoever_sent_it_retracts_it_or_a_reviewer(db: Connection) -> None:
    case = factories.case(db, factories.line(db))
    first, second = factories.confirmation(db, case), factories.confirmation(db, case)
    stranger = factories.user(db, "submitter")
    with pytest.raises(Forbidden, match="somebody else"):
        adjudications.retract(db, confirmation_id=first.confirmation_id, reason="not mine", actor=stranger)
    adjudications.retract(
        db, confirmation_id=second.confirmation_id, reason="another patient", actor=factories.user(db, "reviewer")
    )
    with pytest.raises(NotFound):
        adjudications.retract(db, confirmation_id=10**9, reason="nothing", actor=factories.user(db, "reviewer"))
    with pytest.raises(Invalid, match="say why"):
        adjudications.retract(db, confirmation_id=first.confirmation_id, reason=" ", actor=reviewer(db))


def test_an_adjudication_is_retracted_and_never_superseded_by_a_vote(db: Connection, case: Case) -> None:
    rita = reviewer(db)
    made = adjudicate(db, case, actor=rita)
    with pytest.raises(Invalid, match="is an adjudication"):
        factories.confirmation(db, case, actor=rita, supersedes=made.confirmation_id)
    assert queue(db, case.line_id) == []
    adjudications.retract(db, confirmation_id=made.confirmation_id, reason="wrong case", actor=rita)
    assert queue(db, case.line_id) == [case.case_id]


def test_the_queue_tells_who_said_what_the_longest_waiting_first(db: Connection) -> None:
    line = factories.line(db)
    made = [factories.case(db, line) for _ in range(4)]
    for one in made:
        factories.confirmation(db, one)
    for one in (made[2], made[0], made[3]):
        factories.confirmation(db, one, finding="pneumonia", reader="reader-2")
    factories.confirmation(db, made[1], reader="reader-2")
    found = adjudications.discordances(db, line_id=line.line_id)
    assert [case.case_id for case in found] == [made[2].case_id, made[0].case_id, made[3].case_id]
    assert [(row.reader, row.finding) for row in found[0].standing] == [
        ("reader-1", "normal"),
        ("reader-2", "pneumonia"),
    ]
    assert found[0].last_confirmation == found[0].since == found[0].standing[-1].confirmation_id
    assert found[0].since_at == found[0].standing[-1].created_at
    assert queue(db, line.line_id, limit=1) == [made[2].case_id]
    assert queue(db, line.line_id, after=found[0].since, limit=1) == [made[0].case_id]
    assert queue(db, factories.line(db).line_id) == []
    factories.confirmation(db, made[2], reader="reader-3")
    assert queue(db, line.line_id)[0] == made[2].case_id, "another voice does not send it to the end"
    adjudicate(db, made[2])
    assert queue(db, line.line_id) == [made[0].case_id, made[3].case_id]


def test_an_erased_case_waits_for_nobody(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    case = factories.case(owner_db, line, patient="somebody")
    factories.confirmation(owner_db, case)
    factories.confirmation(owner_db, case, finding="pneumonia", reader="reader-2")
    assert queue(owner_db, line.line_id) == [case.case_id]
    erasures.erase(
        owner_db, patient_digest=erasures.digest_of_patient("somebody"), line=None, reason="asked", actor="olga"
    )
    assert queue(owner_db, line.line_id) == []


def test_a_new_protocol_decides_anew_which_voices_count(db: Connection) -> None:
    line = factories.line(db)
    case = factories.case(db, line)
    factories.confirmation(db, case)
    factories.confirmation(db, case, finding="pneumonia", reader="reader-2", ai_exposure="aided")
    assert queue(db, line.line_id) == [case.case_id]
    factories.new_protocol(db, line, reference_standard={"exposures": ["blind"]})
    assert queue(db, line.line_id) == []
    factories.new_protocol(db, line, reference_standard={"exposures": ["aided", "blind"]})
    assert queue(db, line.line_id) == [case.case_id]


@pytest.mark.parametrize(
    ("kind", "finding", "reason", "supersedes", "constraint"),
    [
        ("retraction", "normal", "why", 1, "confirmations_have_a_finding_unless_retracted"),
        ("confirmation", None, None, None, "confirmations_have_a_finding_unless_retracted"),
        ("confirmation", "normal", " ", None, "confirmations_overrule_with_a_reason"),
        ("adjudication", "normal", " ", None, "confirmations_overrule_with_a_reason"),
        ("adjudication", None, None, None, "confirmations_overrule_with_a_reason"),
        ("retraction", None, "why", None, "confirmations_retract_one_row"),
        ("adjudication", "normal", "why", 1, "confirmations_adjudicate_beside_the_others"),
        ("rumour", "normal", None, None, "confirmations_kind_is_known"),
    ],
)
def test_the_schema_itself_refuses_what_is_neither(
    *, db: Connection, kind: str, finding: str | None, reason: str | None, supersedes: int | None, constraint: str
) -> None:
    made = factories.confirmation(db, factories.case(db, factories.line(db)))
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        db.execute(
            "INSERT INTO confirmations (case_id, line_id, evidence, ai_exposure, reader, confirmed_at, submitted_by,"
            " kind, finding, reason, supersedes) SELECT case_id, line_id, evidence, ai_exposure, reader, confirmed_at,"
            " submitted_by, %s, %s, %s, %s FROM confirmations WHERE confirmation_id = %s",
            (kind, finding, reason, supersedes, made.confirmation_id),
        )
    assert refused.value.diag.constraint_name == constraint


def test_a_case_whose_only_row_was_retracted_counts_as_unconfirmed(db: Connection) -> None:
    line, sender = factories.line(db), factories.user(db, "submitter")
    case = factories.case(db, line)
    only = factories.confirmation(db, case, actor=sender)
    assert [row.case_id for row in cases.list_cases(db, line_id=line.line_id, confirmed=True)] == [case.case_id]
    adjudications.retract(db, confirmation_id=only.confirmation_id, reason="another patient", actor=sender)
    assert cases.list_cases(db, line_id=line.line_id, confirmed=True) == []
    assert [row.case_id for row in cases.list_cases(db, line_id=line.line_id, confirmed=False)] == [case.case_id]


def test_what_changed_since_a_point_is_all_that_stands_about_the_cases_concerned(db: Connection) -> None:
    line, sender = factories.line(db), factories.user(db, "submitter")
    still, corrected, retracted, adjudicated = (factories.case(db, line) for _ in range(4))
    for case in (still, corrected, retracted, adjudicated):
        factories.confirmation(db, case, actor=sender)
        factories.confirmation(db, case, actor=sender, reader="reader-2")
    since = confirmations.last_id(db, line.line_id)
    first = {
        case.case_id: confirmations.list_for_case(db, case.case_id)[0].confirmation_id
        for case in (corrected, retracted)
    }
    factories.confirmation(db, corrected, actor=sender, supersedes=first[corrected.case_id])
    adjudications.retract(db, confirmation_id=first[retracted.case_id], reason="another patient", actor=sender)
    factories.confirmation(db, factories.case(db, factories.line(db)))
    adjudicate(db, adjudicated)

    def rows(up_to: int, after: int = 0) -> list[tuple[int, str]]:
        found = confirmations.standing_for_line(db, line_id=line.line_id, up_to=up_to, after=after)
        return [(row.case_id, row.kind) for row in found]

    now = confirmations.last_id(db, line.line_id)
    expected = [
        *[(corrected.case_id, "confirmation")] * 2,
        *[(retracted.case_id, "confirmation"), (retracted.case_id, "retraction")],
        *[(adjudicated.case_id, "confirmation")] * 2,
        (adjudicated.case_id, "adjudication"),
    ]
    assert rows(now, after=since) == expected
    assert rows(now) == [(still.case_id, "confirmation")] * 2 + expected
    assert rows(since, after=since) == []
    assert rows(now - 1, after=since) == expected[:4]


def test_rows_come_with_the_day_in_utc_and_the_reason(db: Connection, case: Case) -> None:
    db.execute("SET timezone = 'Asia/Tokyo'")
    adjudicate(db, case)
    found = list(confirmations.standing_for_line(db, line_id=case.line_id, up_to=10**9))
    assert [row.reason for row in found] == [None, None, None, "the lateral view shows it"]
    today = database.fetch_value(db, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')")
    assert {row.confirmed_on for row in found} == {today}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["confirm", "confirm", "confirm", "correct", "retract", "adjudicate"]),
        st.sampled_from(["normal", "pneumonia", None]),
        st.sampled_from(get_args(Evidence)),
        st.sampled_from(get_args(AiExposure)),
        st.integers(0, 10),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.sampled_from([("blind", "unknown", "aided"), ("blind",), ("blind", "unknown")]))
def test_the_queue_and_the_rule_of_the_science_agree(
    db: Connection, steps: list[tuple[str, str | None, str, str, int]], exposures: tuple[AiExposure, ...]
) -> None:
    line = factories.line(db, reference_standard={"exposures": list(exposures)})
    case, rita = factories.case(db, line), reviewer(db)
    for what, finding, evidence, exposure, number in steps:
        standing = list(confirmations.standing_for_line(db, line_id=line.line_id, up_to=2**62))
        fields = {"evidence": evidence, "ai_exposure": exposure, "reader": f"reader-{number % 3}", "actor": rita}
        target = standing[number % len(standing)] if standing else None
        if what == "confirm" or (what == "correct" and target is not None and target.kind != "adjudication"):
            supersedes = target.confirmation_id if what == "correct" and target else None
            factories.confirmation(db, case, finding=finding or "normal", supersedes=supersedes, **fields)
        elif what == "retract" and target is not None and target.kind != "retraction":
            adjudications.retract(db, confirmation_id=target.confirmation_id, reason="why", actor=rita)
        elif what == "adjudicate" and any(row.kind == "confirmation" for row in standing):
            adjudicate(db, case, actor=rita, finding=finding, ai_exposure=exposure)
        rows = confirmations.standing_for_line(db, line_id=line.line_id, up_to=2**62)
        found = [
            settle(one.confirmations, ReferenceStandardRule(minimum_evidence="report_text", exposures=exposures))
            for one in confirmed_cases(rows)
        ]
        assert queue(db, line.line_id) == [case.case_id for settled in found if waits(settled)]


def waits(settled: Settled | str) -> bool:
    """Whether a reviewer has to look at it: nothing settles it, or a majority does against the votes of others."""
    if isinstance(settled, str):
        return settled.startswith(("discordant:", "new evidence since the adjudication:"))
    votes = {finding for row in settled.votes.values() for finding in row}
    return len(votes) > 1 and not settled.why.startswith("adjudicated")
