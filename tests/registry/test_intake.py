"""Cases and confirmations: what the record takes in, what it refuses, and what it never takes twice."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from registry import audit, cases, confirmations, rows
from registry.db import Connection, connect
from registry.errors import (
    AlreadyExists,
    AlreadySuperseded,
    Forbidden,
    FutureDate,
    Invalid,
    NotFound,
    UnknownFinding,
    WrongLine,
)
from tests import factories
from tests.conftest import as_superuser


def test_a_case_comes_back_as_it_was_sent(db: Connection) -> None:
    line = factories.line(db)
    submitter = factories.user(db, "submitter")
    case = factories.case(
        db,
        line,
        actor=submitter,
        patient="a1" * 32,
        scanner="DX-1",
        sex="female",
        age_band="1-5",
        attributes={"Modality": "DX"},
        external_id="PACS-1",
    )
    assert cases.get_case(db, case.case_id) == case
    assert (case.submitter, case.patient, case.attributes) == (submitter.name, "a1" * 32, {"Modality": "DX"})


def test_the_same_case_sent_again_is_the_same_case(db: Connection) -> None:
    line = factories.line(db)
    submitter = factories.user(db, "submitter")
    first = factories.case(db, line, actor=submitter, external_id="PACS-1")
    again = factories.case(db, line, actor=submitter, external_id="PACS-1", image_digest=first.image_digest)
    assert again == first
    with pytest.raises(AlreadyExists, match="another image"):
        factories.case(db, line, actor=submitter, external_id="PACS-1")
    somebody_else = factories.case(db, line, external_id="PACS-1", image_digest=first.image_digest)
    assert somebody_else.case_id != first.case_id


@pytest.mark.parametrize("fields", [{"sex": "F"}, {"age_band": "forty"}, {"age_band": "47"}])
def test_a_case_with_unknown_words_is_refused(db: Connection, fields: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        factories.case(db, factories.line(db), **fields)


def test_cases_are_listed_in_pages_with_or_without_confirmation(db: Connection) -> None:
    line = factories.line(db)
    first, second, third = (factories.case(db, line) for _ in range(3))
    factories.confirmation(db, second)

    def listed(**question: int | bool | None) -> list[int]:
        return [case.case_id for case in cases.list_cases(db, line_id=line.line_id, **question)]

    assert listed(limit=2) == [first.case_id, second.case_id]
    assert listed(after=second.case_id) == [third.case_id]
    assert listed(confirmed=True) == [second.case_id]
    assert listed(confirmed=False) == [first.case_id, third.case_id]
    assert cases.count_cases(db, line.line_id) == (3, 1)


def test_a_confirmation_supersedes_and_is_never_edited(db: Connection) -> None:
    case = factories.case(db, factories.line(db))
    reader = factories.user(db, "submitter")
    wrong = factories.confirmation(db, case, actor=reader)
    right = factories.confirmation(
        db, case, actor=reader, finding="pneumonia", evidence="pathology", supersedes=wrong.confirmation_id
    )
    before, after = confirmations.list_for_case(db, case.case_id)
    assert (before.finding, before.superseded_by) == ("normal", right.confirmation_id)
    assert (after.finding, after.superseded_by, after.submitter) == ("pneumonia", None, reader.name)


def test_only_what_stands_counts_up_to_a_point(db: Connection) -> None:
    line = factories.line(db)
    case, other = factories.case(db, line), factories.case(db, line)
    reader = factories.user(db, "submitter")
    first = factories.confirmation(db, case, actor=reader)
    second = factories.confirmation(db, other, actor=reader)
    third = factories.confirmation(db, case, actor=reader, supersedes=first.confirmation_id)

    def standing(up_to: int) -> list[int]:
        rows = confirmations.standing_for_line(db, line_id=line.line_id, up_to=up_to)
        return [row.confirmation_id for row in rows]

    assert standing(second.confirmation_id) == [first.confirmation_id, second.confirmation_id]
    assert standing(third.confirmation_id) == [third.confirmation_id, second.confirmation_id]
    (row,) = confirmations.standing_for_line(db, line_id=line.line_id, up_to=first.confirmation_id)
    assert (row.case_id, row.image_digest, row.site, row.submitter) == (
        case.case_id,
        case.image_digest,
        case.site,
        reader.name,
    )
    assert confirmations.last_id(db, line.line_id) == third.confirmation_id
    assert confirmations.count_new(db, line_id=line.line_id, after_confirmation_id=first.confirmation_id) == 2


def test_a_confirmation_that_cannot_be_right_is_refused_and_the_rest_goes_on(db: Connection) -> None:
    line = factories.line(db)
    case, other = factories.case(db, line), factories.case(db, line)
    reader = factories.user(db, "submitter")
    standing = factories.confirmation(db, case, actor=reader)
    tomorrow = datetime.now(UTC) + timedelta(days=2)
    for refusal, fields in (
        (UnknownFinding, {"finding": "fracture"}),
        (Invalid, {"evidence": "hearsay"}),
        (Invalid, {"ai_exposure": "maybe"}),
        (FutureDate, {"confirmed_at": tomorrow}),
        (NotFound, {"supersedes": 10**9}),
    ):
        with pytest.raises(refusal):
            factories.confirmation(db, case, actor=reader, **fields)
    with pytest.raises(WrongLine):
        factories.confirmation(db, other, actor=reader, supersedes=standing.confirmation_id)
    assert [found.confirmation_id for found in confirmations.list_for_case(db, case.case_id)] == [
        standing.confirmation_id
    ]


def test_a_confirmation_of_an_unknown_case_is_refused(owner_db: Connection) -> None:
    case = factories.case(owner_db, factories.line(owner_db))
    owner_db.execute("DELETE FROM cases WHERE case_id = %s", (case.case_id,))
    with pytest.raises(NotFound):
        factories.confirmation(owner_db, case)


def test_a_confirmation_is_superseded_once(db: Connection) -> None:
    case = factories.case(db, factories.line(db))
    reader = factories.user(db, "submitter")
    first = factories.confirmation(db, case, actor=reader)
    factories.confirmation(db, case, actor=reader, supersedes=first.confirmation_id)
    with pytest.raises(AlreadySuperseded):
        factories.confirmation(db, case, actor=reader, supersedes=first.confirmation_id)


def test_of_many_each_is_judged_and_the_right_ones_are_recorded_in_their_order(db: Connection) -> None:
    line, sender = factories.line(db), factories.user(db, "submitter")
    case, other = (factories.case(db, where, actor=sender) for where in (line, factories.line(db)))
    first = factories.confirmation(db, case, actor=sender)

    def diagnosis(case_id: int, **fields: Any) -> confirmations.Diagnosis:
        values = {"finding": "normal", "evidence": "single_read", "ai_exposure": "blind", "reader": "reader-1"}
        nothing = {"confirmed_at": None, "supersedes": None}
        return confirmations.Diagnosis(case_id=case_id, **{**values, **nothing, **fields})

    results = confirmations.confirm_many(
        db,
        [
            diagnosis(case.case_id, finding="pneumonia", supersedes=first.confirmation_id),
            diagnosis(case.case_id, finding="fracture"),
            diagnosis(case.case_id, supersedes=first.confirmation_id),
            diagnosis(other.case_id),
            diagnosis(2**70),
            diagnosis(case.case_id, supersedes=2**70),
            diagnosis(case.case_id),
        ],
        actor=sender,
        line_id=line.line_id,
    )
    kinds = [type(result) for result in results]
    refused = [UnknownFinding, AlreadySuperseded, WrongLine, NotFound, NotFound]
    assert kinds == [confirmations.Confirmation, *refused, confirmations.Confirmation]
    made = [result for result in results if isinstance(result, confirmations.Confirmation)]
    assert confirmations.list_for_case(db, case.case_id)[1:] == made
    assert [one.finding for one in made] == ["pneumonia", "normal"]


def test_each_of_many_confirmations_has_an_event_that_vouches_for_it(db: Connection) -> None:
    line, sender = factories.line(db), factories.user(db, "submitter")
    cases_ = [factories.case(db, line, actor=sender) for _ in range(3)]
    first = factories.confirmation(db, cases_[0], actor=sender)
    asked = [
        confirmations.Diagnosis(
            case_id=case.case_id,
            finding="normal",
            evidence="consensus",
            ai_exposure="aided",
            reader="reader-1",
            confirmed_at=datetime(2026, 3, 2, 9, 30, tzinfo=UTC),
            supersedes=first.confirmation_id if place == 0 else None,
        )
        for place, case in enumerate(cases_)
    ]
    before = audit.list_events(db, limit=1000)[-1].audit_event_id
    made = confirmations.confirm_many(db, asked, actor=sender)
    for one, event in zip(made, audit.list_events(db, after=before), strict=True):
        assert isinstance(one, confirmations.Confirmation)
        names = [f"confirmations/{number}" for number in (one.confirmation_id, one.supersedes) if number is not None]
        digests = [hashlib.sha256(str(rows.text(db, name)).encode()).hexdigest() for name in names]
        known = {"row": names[0], **dict(zip(("new_digest", "old_digest"), digests, strict=False))}
        said = {"confirmation": one.confirmation_id, "finding": "normal", "evidence": "consensus"}
        assert event.details == {**said, "supersedes": one.supersedes, **known}
        assert (event.actor, event.action, event.subject) == (sender.name, "confirmation:add", f"case/{one.case_id}")
    assert audit.first_broken(db) is None


def test_nobody_but_a_reviewer_supersedes_what_others_said(db: Connection) -> None:
    case = factories.case(db, factories.line(db))
    first = factories.confirmation(db, case)
    with pytest.raises(Forbidden, match="somebody else"):
        factories.confirmation(db, case, finding="pneumonia", supersedes=first.confirmation_id)
    reviewer = factories.user(db, "reviewer")
    factories.confirmation(db, case, actor=reviewer, finding="pneumonia", supersedes=first.confirmation_id)


def test_the_schema_itself_refuses_a_confirmation_across_cases(db: Connection) -> None:
    line = factories.line(db)
    first = factories.confirmation(db, factories.case(db, line))
    other = factories.confirmation(db, factories.case(db, line))
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="confirmations_supersede_within_their_case"):
        db.execute(
            "INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at,"
            " submitted_by, supersedes) SELECT case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at,"
            " submitted_by, %s FROM confirmations WHERE confirmation_id = %s",
            (first.confirmation_id, other.confirmation_id),
        )


def test_ids_of_confirmations_grow_in_the_order_of_commits(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        line = factories.line(conn)
        reader = factories.user(conn, "submitter")
        first, second = factories.case(conn, line), factories.case(conn, line)
    with connect(fresh_database) as slow, connect(fresh_database) as quick:
        earlier = factories.confirmation(slow, first, actor=reader)
        quick.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            factories.confirmation(quick, second, actor=reader)
        quick.rollback()
        # It did not even get a number while it waited: with one, a freeze could step over it before it is committed.
    with connect(as_superuser(fresh_database)) as holder:
        given = holder.execute("SELECT last_value FROM confirmations_confirmation_id_seq").fetchone()
        assert given == (earlier.confirmation_id,)
