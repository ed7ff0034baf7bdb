"""An import reads several findings as the service does: any order, one form, refused in words."""

from __future__ import annotations

from typing import Any

from api.cli.rules import Ready, Rules
from api.cli.sources import Row, Wrong

CLASSES = ["effusion", "pneumonia", "nodule"]
DEFAULTS = {"site": "north", "evidence": "single_read", "ai_exposure": "blind", "reader": "reader-1"}


def judged(finding: str, **named: str) -> Ready | Wrong:
    rules = Rules(classes=CLASSES, several=True, findings=named, defaults=DEFAULTS, unconfirmed=False)
    return rules.judge(Row(number=1, name="row 1", image=b"", size=0, fields={"finding": finding}))


def test_findings_of_a_row_are_brought_into_the_form_of_the_record() -> None:
    for said, written in (("nodule+effusion", "effusion+nodule"), ("none_of_these", "none_of_these")):
        ready = judged(said)
        assert isinstance(ready, Ready), ready
        assert ready.diagnosis is not None
        assert ready.diagnosis["finding"] == written
    ready = judged("No Finding", **{"No Finding": "none_of_these"})
    assert isinstance(ready, Ready)


def test_a_row_that_names_what_the_line_does_not_know_is_wrong_and_says_what_it_knows() -> None:
    wrong: Any = judged("effusion+cardiomegaly")
    assert isinstance(wrong, Wrong)
    assert wrong.kind == "/problems/unknown-finding"
    assert wrong.detail.startswith(
        "'cardiomegaly' is not a finding of this line; it knows effusion, pneumonia, nodule, "
    )
    assert isinstance(judged("nodule+nodule"), Wrong)
