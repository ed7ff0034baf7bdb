"""An import reads several findings as the service does: any order, one form, refused in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.cli.errors import Refused, SetupError
from api.cli.importing import _pairs
from api.cli.rules import Ready, Rules
from api.cli.sources import Row, Wrong
from api.cli.work import _looked_for
from api.console import facts, report
from api.console.pages.data import _cases
from registry.datasets import DatasetVersion
from registry.findings import NONE
from tests import factories
from tests.api.test_facts import SOURCES, row_of

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


def test_a_label_of_several_findings_is_named_as_a_whole_or_part_by_part() -> None:
    named = _pairs(["Both=nodule+effusion", "Eff=effusion", "Nod=nodule"], "--finding", known=CLASSES, several=True)
    for said, written in (
        ("Both", "effusion+nodule"),
        ("Nod+Eff", "effusion+nodule"),
        ("Nod + pneumonia", "pneumonia+nodule"),
    ):
        ready = judged(said, **named)
        assert isinstance(ready, Ready), ready
        assert ready.diagnosis is not None
        assert ready.diagnosis["finding"] == written
    for wrong in ("Both=nodule+fracture", "Both="):
        with pytest.raises(SetupError, match="says nothing"):
            _pairs([wrong], "--finding", known=CLASSES, several=True)
    with pytest.raises(SetupError, match="says nothing"):
        _pairs(["Both=effusion+nodule"], "--finding", known=CLASSES)


def test_a_heat_map_is_of_one_finding_and_of_more_it_has_to_be_said_which() -> None:
    scores = dict.fromkeys(CLASSES, 0.5)
    assert _looked_for({"decision": "nodule", "scores": scores}) == "nodule"
    for decision in ("effusion+nodule", NONE):
        with pytest.raises(Refused, match="a heat map is of one") as refused:
            _looked_for({"decision": decision, "scores": scores})
        assert refused.value.fix == "add --finding, one of effusion, pneumonia, nodule"


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40, "level": 0.9}


def test_the_page_of_facts_says_what_is_a_mean_and_has_the_numbers_of_each_finding() -> None:
    each = [
        {"finding": name, "candidate": estimate(value)} for name, value in zip(CLASSES, (0.9, 0.8, 0.4), strict=True)
    ]
    rows = [
        {"name": name, "verdict": "pass", "requirement": "", "candidate": estimate(0.7), "details": {"findings": each}}
        for name in ("sensitivity", "calibration")
    ]
    document = {**SOURCES.report["document"], "results": rows}
    asked = factories.protocol_document(task="multilabel", classes=CLASSES, positive=None)
    sources = replace(
        SOURCES, protocol={**SOURCES.protocol, "document": asked}, report={**SOURCES.report, "document": document}
    )
    page = facts.page(sources)
    assert row_of(page, r"sensitivity (mean of the findings)")[1] == "0.700 [0.600, 0.800]"
    assert row_of(page, "sensitivity of nodule")[1] == "0.400 [0.300, 0.500]"
    assert row_of(page, "calibration (the largest of the findings)")
    checks = {check.name for check in report.view(document, digest="5" * 64).checks}
    assert checks == {"sensitivity (mean of the findings)", "calibration (the largest of the findings)"}


def test_a_case_is_counted_once_though_it_is_on_a_side_of_each_finding() -> None:
    counts = {"train": {"effusion": 3, "no effusion": 7, "nodule": 1, "no nodule": 9}}
    manifest = {"counts": counts, "sites": {"north": {"train": 10}}}
    version: Any = DatasetVersion.__new__(DatasetVersion)
    object.__setattr__(version, "manifest", {**manifest, "task": "multilabel"})
    assert _cases(version, "counts") == {"train": 10}
    assert _cases(version, "sites") == {"north": 10}
    object.__setattr__(version, "manifest", {"counts": {"train": {"normal": 6, "pneumonia": 4}}})
    assert _cases(version, "counts") == {"train": 10}
