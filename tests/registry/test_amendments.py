"""A registered protocol is replaced by an amendment that enough others have signed, and in no other way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from registry import amendments, audit, lines, promotions, verify
from registry.db import Connection, connect
from registry.errors import (
    AlreadyExists,
    AlreadySigned,
    EvidenceMismatch,
    Forbidden,
    GateNotPassed,
    Invalid,
    NotDistinct,
    NotFound,
    ProtocolMoved,
    StateMoved,
    WrongLine,
)
from registry.lines import Line
from registry.users import User
from tests import factories
from tests.conftest import as_superuser
from tests.waiting import PATIENCE_SECONDS, until

STRICTER = {"title": "Pneumonia, more strictly"}


def sign(db: Connection, amendment_id: int, approver: User | None = None, **changes: Any) -> amendments.Signature:
    """Somebody approves, unless told otherwise."""
    wish: dict[str, Any] = {"decision": "approve", "reason": "I read what changes", **changes}
    return amendments.sign(db, amendment_id=amendment_id, approver=approver or factories.user(db, "approver"), **wish)


def version(db: Connection, line: Line) -> int:
    return lines.current_protocol(db, line.line_id).version


def test_an_amendment_is_in_force_with_the_last_signature_it_needs_and_not_before(db: Connection) -> None:
    line = factories.line(db)
    before = lines.current_protocol(db, line.line_id)
    proposed = factories.amendment(db, line, **STRICTER)
    assert (proposed.state, proposed.protocol_id) == ("proposed", before.protocol_id)
    first = sign(db, proposed.amendment_id)
    assert lines.current_protocol(db, line.line_id) == before
    sign(db, proposed.amendment_id)
    now = lines.current_protocol(db, line.line_id)
    assert (now.version, now.digest, now.document) == (2, proposed.digest, proposed.document)
    assert (now.amendment_id, now.created_by) == (proposed.amendment_id, proposed.proposed_by)
    assert amendments.get(db, proposed.amendment_id).state == "adopted"
    assert first.bound_digest == audit.digest_of({"before": before.digest, "after": now.digest})


def test_every_step_is_told_of_by_an_event_that_vouches_for_its_row(db: Connection) -> None:
    line = factories.line(db)
    factories.new_protocol(db, line, **STRICTER)
    now = lines.current_protocol(db, line.line_id)
    events = audit.list_events(db, subject=f"line/{line.line_id}", limit=1000)
    assert [event.action for event in events] == [
        *("line:create", "amendment:propose", "amendment:approve", "amendment:approve", "protocol:amend")
    ]
    assert events[-1].details["row"] == f"protocols/{now.protocol_id}"
    assert events[-1].details["old_digest"] != events[-1].details["new_digest"]
    assert events[1].details["row"] == f"amendments/{now.amendment_id}"


def test_whoever_proposed_it_cannot_sign_it(db: Connection) -> None:
    proposer = factories.user(db, "operator", "approver")
    proposed = factories.amendment(db, factories.line(db), actor=proposer, **STRICTER)
    with pytest.raises(NotDistinct, match="proposed this amendment"):
        sign(db, proposed.amendment_id, proposer)


def test_the_same_person_does_not_count_twice(db: Connection) -> None:
    line = factories.line(db)
    proposed = factories.amendment(db, line, **STRICTER)
    approver = factories.user(db, "approver")
    sign(db, proposed.amendment_id, approver)
    with pytest.raises(AlreadySigned):
        sign(db, proposed.amendment_id, approver)
    assert (version(db, line), len(amendments.signatures(db, proposed.amendment_id))) == (1, 1)


def test_as_many_sign_as_the_protocol_in_force_asks_for_whatever_the_new_one_says(db: Connection) -> None:
    line = factories.line(db, approvals={"required": 3, "maximum_submitter_share": 0.2})
    proposed = factories.amendment(db, line, approvals={"required": 2, "maximum_submitter_share": 0.2})
    for expected in (1, 1, 2):
        sign(db, proposed.amendment_id)
        assert version(db, line) == expected


def test_one_rejection_ends_it(db: Connection) -> None:
    line = factories.line(db)
    proposed = factories.amendment(db, line, **STRICTER)
    sign(db, proposed.amendment_id)
    sign(db, proposed.amendment_id, decision="reject", reason="too loose")
    with pytest.raises(StateMoved, match="is rejected"):
        sign(db, proposed.amendment_id)
    assert version(db, line) == 1


def test_what_was_proposed_to_an_earlier_protocol_takes_no_signature(db: Connection) -> None:
    line = factories.line(db)
    late = factories.amendment(db, line, title="Pneumonia, for adults")
    sign(db, late.amendment_id)
    factories.new_protocol(db, line, **STRICTER)
    assert amendments.get(db, late.amendment_id).state == "outdated"
    with pytest.raises(ProtocolMoved, match="propose it anew"):
        sign(db, late.amendment_id)
    with pytest.raises(ProtocolMoved, match="version 2 of the protocol came into force meanwhile"):
        propose(db, line, protocol_id=late.protocol_id)
    assert version(db, line) == 2
    assert [one.state for one in amendments.list_for_line(db, line.line_id)] == ["adopted", "outdated"]


def propose(db: Connection, line: Line, **changes: Any) -> amendments.Amendment:
    """Propose another title, with some values changed."""
    now = lines.current_protocol(db, line.line_id)
    document = changes.pop("document", {**now.document, **STRICTER})
    values: dict[str, Any] = {
        "protocol_id": now.protocol_id,
        "digest": audit.digest_of(document),
        "changes": ["title: another"],
        "reason": "it has to change",
        "actor": factories.user(db, "reviewer"),
    }
    return amendments.propose(db, line_id=line.line_id, document=document, **{**values, **changes})


def test_a_proposal_that_can_never_be_right_is_refused(db: Connection) -> None:
    line = factories.line(db)
    same = lines.current_protocol(db, line.line_id).document
    with pytest.raises(Invalid, match="say why"):
        propose(db, line, reason="  ")
    with pytest.raises(Invalid, match="in force already"):
        propose(db, line, document=same)
    with pytest.raises(WrongLine):
        propose(db, line, document={**same, "line": "another"})
    with pytest.raises(Invalid, match="images cannot become one of volumes"):
        propose(db, line, document={**same, "input": {**same["input"], "depth": 16}})
    with pytest.raises(EvidenceMismatch):
        propose(db, line, digest="0" * 64)
    with pytest.raises(Forbidden):
        propose(db, line, actor=factories.user(db, "submitter", "approver", "auditor"))
    with pytest.raises(NotFound, match="no amendment 0"):
        sign(db, 0)
    proposed = propose(db, line)
    with pytest.raises(Invalid, match="a signature needs a reason"):
        sign(db, proposed.amendment_id, reason=" ")
    with pytest.raises(Invalid, match="approve or reject"):
        sign(db, proposed.amendment_id, decision="abstain")
    with pytest.raises(Forbidden):
        sign(db, proposed.amendment_id, factories.user(db, "operator", "reviewer"))


def test_a_line_is_not_made_again_to_change_its_protocol(db: Connection) -> None:
    line = factories.line(db)
    document = {**lines.current_protocol(db, line.line_id).document, **STRICTER}
    digest, operator = audit.digest_of(document), factories.user(db, "operator")
    with pytest.raises(AlreadyExists, match="overread protocol amend"):
        lines.create_line(db, name=line.name, document=document, digest=digest, actor=operator)


INSERT = (
    "INSERT INTO protocols (line_id, version, document, digest, created_by, amendment_id)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, "protocols_are_amended_by_enough_people"),
        ({"document": {"approvals": {"required": 0}}}, "protocols_follow_the_one_that_was_amended"),
        ({"version": 3}, "protocols_follow_the_one_that_was_amended"),
        ({"amendment_id": None}, "protocols_follow_the_one_that_was_amended"),
        ({"version": 1, "amendment_id": None}, "protocols_one_row_per_version"),
    ],
)
@pytest.mark.parametrize("signed", [0, 1])
def test_the_service_itself_cannot_put_a_protocol_in_force_that_too_few_have_signed(
    db: Connection, change: dict[str, Any], rule: str, signed: int
) -> None:
    line = factories.line(db)
    proposed = factories.amendment(db, line, **STRICTER)
    for _ in range(signed):
        sign(db, proposed.amendment_id)
    values = {"version": 2, "document": proposed.document, "amendment_id": proposed.amendment_id, **change}
    row = (line.line_id, values["version"], Jsonb(values["document"]), proposed.digest, proposed.proposed_by)
    with pytest.raises(psycopg.IntegrityError) as refused, db.transaction():
        db.execute(INSERT, (*row, values["amendment_id"]))
    assert refused.value.diag.constraint_name == rule


def test_a_signature_of_its_proposer_counts_for_nothing_even_in_the_database(db: Connection) -> None:
    line = factories.line(db)
    proposed = factories.amendment(db, line, **STRICTER)
    sign(db, proposed.amendment_id)
    db.execute(
        "INSERT INTO amendment_approvals (amendment_id, approver_id, printed_name, decision, meaning, reason,"
        " bound_digest) VALUES (%s, %s, 'me', 'approve', 'mine', 'mine', %s)",
        (proposed.amendment_id, proposed.proposed_by, "0" * 64),
    )
    row = (line.line_id, 2, Jsonb(proposed.document), proposed.digest, proposed.proposed_by)
    with pytest.raises(psycopg.IntegrityError, match="too few signatures"), db.transaction():
        db.execute(INSERT, (*row, proposed.amendment_id))


def test_a_candidate_of_the_earlier_protocol_is_not_promoted_by_its_approvals(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.approved_candidate(db, line)
    factories.new_protocol(db, line, **STRICTER)
    with pytest.raises(GateNotPassed, match="gated under an earlier protocol; version 2 now counts"):
        factories.promotion(db, candidate)
    assert promotions.champion(db, line.line_id) is None


def test_of_two_that_sign_last_at_once_one_puts_it_in_force(fresh_database: str) -> None:
    with connect(fresh_database) as db:
        line = factories.line(db)
        proposed = factories.amendment(db, line, **STRICTER)
        people = [factories.user(db, "approver") for _ in range(6)]
        db.commit()

    def one(person: User) -> str:
        with connect(fresh_database) as own:
            try:
                sign(own, proposed.amendment_id, person)
            except StateMoved as refusal:
                return str(refusal)
            own.commit()
            return "signed"

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, people))
    assert sorted(answers)[-2:] == ["signed", "signed"]
    assert all("is adopted" in answer for answer in sorted(answers)[:4])
    with connect(fresh_database) as db:
        assert version(db, line) == 2
        assert verify.check_protocols(db).state == "fine"


def test_verifying_finds_a_protocol_that_nobody_signed(owner_db: Connection) -> None:
    line = factories.line(owner_db)
    factories.new_protocol(owner_db, line, **STRICTER)
    assert verify.check_protocols(owner_db).state == "fine"
    proposed = factories.amendment(owner_db, line, title="Pneumonia, as I like it")
    sign(owner_db, proposed.amendment_id)
    owner_db.execute("ALTER TABLE protocols DISABLE TRIGGER protocols_are_amended")
    row = (line.line_id, 3, Jsonb(proposed.document), proposed.digest, proposed.proposed_by)
    owner_db.execute(INSERT, (*row, proposed.amendment_id))
    found = verify.check_protocols(owner_db)
    assert (found.state, f"version 3 of line {line.name}" in found.detail) == ("damaged", True)


def test_confirming_and_amending_do_not_wait_for_each_other_in_a_circle(fresh_database: str) -> None:
    # Whoever confirms has the trail and then the discordances, so an amendment takes the trail before it touches these.
    with connect(fresh_database) as db:
        line = factories.line(db)
        case = factories.case(db, line)
        factories.confirmation(db, case, finding="normal", reader="r1")
        proposed = factories.amendment(db, line, reference_standard={"exposures": ["aided", "blind"]})
        sign(db, proposed.amendment_id)
        people = factories.user(db, "approver"), factories.user(db, "submitter")
        db.commit()
        audit.take_turn(db)  # somebody confirms just now

        def amend() -> None:
            with connect(fresh_database) as own:
                sign(own, proposed.amendment_id, people[0])
                own.commit()

        with ThreadPoolExecutor(1) as pool, connect(as_superuser(fresh_database)) as watcher:
            watcher.autocommit = True
            meanwhile = pool.submit(amend)
            waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid)))"
            until(lambda: meanwhile.done() or watcher.execute(waits, (db.info.backend_pid,)).fetchone() == (True,))
            assert not meanwhile.done()
            factories.confirmation(db, case, actor=people[1], finding="pneumonia", reader="r2")
            db.commit()
            meanwhile.result(timeout=PATIENCE_SECONDS)
        assert version(db, line) == 2
        assert db.execute("SELECT count(*) FROM discordances WHERE line_id = %s", (line.line_id,)).fetchone() == (1,)
