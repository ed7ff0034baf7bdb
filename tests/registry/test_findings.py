"""Several findings of one image in the record: one form of every answer, and refusals that say what the line knows."""

from __future__ import annotations

import pytest

from pipelines.findings import CARRIED
from registry import adjudications, audit, confirmations, passwords, runs
from registry import strategy as strategies
from registry.adjudications import Decision
from registry.db import Connection
from registry.errors import Invalid, UnknownFinding
from registry.findings import canonical
from registry.lines import Line
from tests import factories

CLASSES = ["effusion", "pneumonia", "nodule"]
KNOWN = "it knows effusion, pneumonia, nodule, joined by + where several are present, or none_of_these"


@pytest.fixture
def line(db: Connection) -> Line:
    return factories.line(db, task="multilabel", classes=CLASSES, positive=None)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("nodule+effusion", "effusion+nodule"),
        (" pneumonia + effusion ", "effusion+pneumonia"),
        ("nodule", "nodule"),
        ("none_of_these", "none_of_these"),
    ],
)
def test_an_answer_is_accepted_in_any_order_and_written_in_one(
    db: Connection, line: Line, said: str, written: str
) -> None:
    made = factories.confirmation(db, factories.case(db, line), finding=said)
    assert made.finding == written
    assert audit.list_events(db, limit=10_000)[-1].details["finding"] == written


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("effusion+fracture", f"'fracture' is not a finding of this line; {KNOWN}"),
        ("effusion+effusion", f"'effusion+effusion' names effusion twice; {KNOWN}"),
        ("none_of_these+nodule", f"'none_of_these+nodule' says none_of_these and a finding; {KNOWN}"),
        ("normal", f"'normal' is not a finding of this line; {KNOWN}"),
        ("effusion+", f"'' is not a finding of this line; {KNOWN}"),
    ],
)
def test_an_answer_that_says_something_else_is_refused_in_words(
    db: Connection, line: Line, said: str, words: str
) -> None:
    with pytest.raises(UnknownFinding) as refused:
        factories.confirmation(db, factories.case(db, line), finding=said)
    assert str(refused.value) == words


def test_where_classes_exclude_each_other_an_answer_is_one_of_them() -> None:
    assert canonical("normal", classes=["normal", "pneumonia"], several=False) == "normal"
    with pytest.raises(UnknownFinding, match=r"it knows normal, pneumonia$"):
        canonical("normal+pneumonia", classes=["normal", "pneumonia"], several=False)


def test_who_says_the_same_in_another_order_does_not_differ_and_a_difference_is_settled_in_the_same_form(
    db: Connection, line: Line
) -> None:
    case = factories.case(db, line)
    factories.confirmation(db, case, finding="nodule+effusion")
    factories.confirmation(db, case, finding="effusion+nodule", reader="reader-2")
    assert not adjudications.is_discordant(db, case.case_id)
    last = factories.confirmation(db, case, finding="effusion", reader="reader-3")
    assert adjudications.is_discordant(db, case.case_id)
    reviewer = factories.user(db, "reviewer")
    passwords.set_password(db, user=reviewer, password="four words do well")
    decision = {
        "case_id": case.case_id,
        "ai_exposure": "blind",
        "reason": "I looked",
        "last_seen": last.confirmation_id,
    }
    with pytest.raises(UnknownFinding, match="or none_of_these, or null for none"):
        adjudications.adjudicate(db, Decision(finding="fracture", **decision), actor=reviewer)
    made = adjudications.adjudicate(db, Decision(finding="nodule+effusion", **decision), actor=reviewer)
    assert made.finding == "effusion+nodule"
    assert [row.finding for row in confirmations.list_for_case(db, case.case_id)][-1] == "effusion+nodule"
    assert not adjudications.is_discordant(db, case.case_id)


@pytest.mark.parametrize(
    "changes", [{"classes": [*CLASSES, "fracture"]}, {"task": "nominal"}, {"classes": CLASSES[::-1]}]
)
def test_the_findings_of_a_line_stay_as_they_are_for_nobody_was_asked_about_others(
    db: Connection, line: Line, changes: dict[str, object]
) -> None:
    with pytest.raises(Invalid, match="open another line for them"):
        factories.amendment(db, line, **changes)
    factories.amendment(db, line, title="The same findings, said otherwise")


def test_a_line_of_classes_does_not_become_one_of_findings(db: Connection) -> None:
    with pytest.raises(Invalid, match="`task` and `classes` stay as they are"):
        factories.amendment(db, factories.line(db), task="multilabel", positive=None)


def test_a_run_by_a_strategy_that_cannot_learn_several_findings_is_refused_as_it_is_asked_for(
    db: Connection, line: Line
) -> None:
    with pytest.raises(Invalid, match="lwf cannot learn several findings; there are full, auto"):
        runs.start_run(db, line_id=line.line_id, requested_by=None, reason="to try it", strategy="lwf")
    assert runs.start_run(db, line_id=line.line_id, requested_by=None, reason="to try it", strategy="warm").run_id
    assert strategies.SEVERAL == CARRIED
