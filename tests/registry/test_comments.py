"""A conversation about a candidate: kept as it was said, open to whom the report is, and asking only who may sign."""

from __future__ import annotations

import pytest

from registry import audit, comments, passwords, rows
from registry.candidates import Candidate
from registry.db import Connection
from registry.errors import Forbidden, Invalid, NotFound
from registry.users import Role, User
from tests import factories


def person(db: Connection, *roles: Role, name: str) -> User:
    made = factories.user(db, *roles, name=name, printed_name=f"Dr {name.title()}")
    passwords.set_password(db, user=made, password="four words do well")
    return made


@pytest.fixture
def candidate(db: Connection) -> Candidate:
    return factories.gated_candidate(db, factories.line(db))


def test_what_is_said_is_kept_in_order_and_audited_with_its_row(db: Connection, candidate: Candidate) -> None:
    rita, anna = person(db, "reviewer", name="rita"), person(db, "approver", name="anna")
    comments.add(db, candidate_id=candidate.candidate_id, author=rita, text="  eleven are from the new scanner ")
    comments.add(db, candidate_id=candidate.candidate_id, author=anna, text="I looked at them")
    said = comments.list_for_candidate(db, candidate.candidate_id)
    assert [(one.printed_name, one.text) for one in said] == [
        ("Dr Rita", "eleven are from the new scanner"),
        ("Dr Anna", "I looked at them"),
    ]
    event = audit.find_events(db, action="candidate:comment", limit=1)[0]
    assert (event.actor, event.subject) == ("anna", f"candidate/{candidate.candidate_id}")
    assert event.details["row"] == f"comments/{said[1].comment_id}"
    assert "I looked at them" in (rows.text(db, event.details["row"]) or "")
    assert "looked" not in str(event.details)


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001])
def test_nothing_and_too_much_are_refused(db: Connection, candidate: Candidate, text: str) -> None:
    with pytest.raises(Invalid, match="say something"):
        comments.add(db, candidate_id=candidate.candidate_id, author=person(db, "reviewer", name="rita"), text=text)


def test_others_than_reviewers_and_approvers_say_nothing(db: Connection, candidate: Candidate) -> None:
    with pytest.raises(Forbidden):
        comments.add(db, candidate_id=candidate.candidate_id, author=person(db, "submitter", name="carl"), text="x")
    with pytest.raises(NotFound):
        comments.add(db, candidate_id=999_999, author=person(db, "reviewer", name="rita"), text="x")


def test_whoever_asked_for_the_run_reads_and_says_nothing_before_somebody_has_decided(db: Connection) -> None:
    rita, anna = person(db, "reviewer", name="rita"), person(db, "approver", name="anna")
    made = factories.gated_candidate(db, factories.line(db), requested_by=rita)
    assert not comments.may_read(db, made, reader=rita)
    assert comments.may_read(db, made, reader=anna)
    with pytest.raises(Forbidden, match="not open to rita yet"):
        comments.add(db, candidate_id=made.candidate_id, author=rita, text="please sign")


def test_only_who_may_still_sign_is_asked(db: Connection, candidate: Candidate) -> None:
    rita, anna, ben = (
        person(db, role, name=name)
        for role, name in (("reviewer", "rita"), ("approver", "anna"), ("approver", "ben"))  # type: ignore[arg-type]
    )
    factories.user(db, "approver", name="a-program")
    assert [one.name for one in comments.may_still_sign(db, candidate)] == ["anna", "ben"]
    made = comments.add(db, candidate_id=candidate.candidate_id, author=rita, text="", asks="anna")
    assert (made.text, made.asks, made.asked) == (comments.ASK, "anna", "Dr Anna")
    assert audit.find_events(db, action="candidate:ask", limit=1)[0].details["asks"] == "anna"
    assert comments.asked_of(db, user_id=anna.user_id) == {candidate.candidate_id}
    assert comments.asked_of(db, user_id=ben.user_id) == set()
    factories.signatures(db, candidate, [anna])
    assert [one.name for one in comments.may_still_sign(db, candidate)] == ["ben"]
    for name, why in (("anna", "signed already"), ("rita", "role"), ("a-program", "no password")):
        with pytest.raises(Invalid, match=f"cannot be asked to sign: .*{why}"):
            comments.add(db, candidate_id=candidate.candidate_id, author=rita, text="", asks=name)


def test_nobody_is_asked_to_sign_what_failed(db: Connection) -> None:
    failed = factories.gated_candidate(db, factories.line(db), verdict="fail")
    person(db, "approver", name="anna")
    assert comments.may_still_sign(db, failed) == []
    with pytest.raises(Invalid, match="has not passed its gates"):
        comments.add(
            db, candidate_id=failed.candidate_id, author=person(db, "reviewer", name="rita"), text="", asks="anna"
        )
