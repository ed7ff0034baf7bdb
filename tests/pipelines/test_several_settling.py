"""Several questions of one image: how an answer is written, what a protocol may ask, how each is settled by itself."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines import findings, wording
from pipelines.protocol import ProtocolError, ReferenceStandardRule, from_document
from pipelines.reference_standard import Settled, settle
from registry import findings as recorded
from tests.pipelines.plates import CLASSES, DOCUMENT, PROTOCOL
from tests.pipelines.saying import adjudication, read

RULE = ReferenceStandardRule()


@pytest.mark.parametrize("answer", ["none_of_these", "opacity", "opacity+band", "opacity+ring+band"])
def test_the_record_and_the_science_write_an_answer_alike(answer: str) -> None:
    (present,) = findings.matrix([answer], CLASSES)
    assert findings.joined(present, CLASSES) == answer
    assert recorded.canonical(answer, classes=CLASSES, several=True) == answer
    assert {recorded.NONE, recorded.JOIN} == {findings.NONE, findings.JOIN}
    assert set(recorded.parts(answer)) == {name for name, there in zip(CLASSES, present, strict=True) if there}


@pytest.mark.parametrize(("answer", "words"), [("opacity+x", "'x' is not one of"), ("band+band", "twice"), ("", "''")])
def test_an_answer_that_the_science_does_not_know_is_an_error(answer: str, words: str) -> None:
    with pytest.raises(findings.UnknownAnswer, match=words):
        findings.matrix(["ring", answer], CLASSES)


@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"positive": "ring"}, "positive: each finding"),
        ({"classes": ["ring", "none_of_these"]}, "classes: 'none_of_these'"),
        (
            {"classes": [f"finding-{number}" for number in range(31)]},
            "classes: a line of several findings has at most 30",
        ),
        ({"recipe": {"strategy": "lwf"}}, "recipe.strategy: lwf cannot"),
        ({"recipe": {"escalation": ["gdumb"]}}, "recipe.strategy: gdumb cannot"),
        ({"envelope": {"strategies": ["replay", "ewc"]}}, "recipe.strategy: ewc cannot"),
        ({"recipe": {"members": 3}}, "recipe.members"),
        (
            {"envelope": {"strategies": ["replay"], "maximum_threshold_change": 0.1}},
            "envelope.maximum_threshold_change",
        ),
        ({"operating_point": {"by_site": True}}, "operating_point.by_site"),
        ({"operating_point": {"second_look": 0.1}}, "operating_point.second_look"),
        ({"gates": {"kappa": {"floor": 0.5, "margin": 0.1}}}, "gates.kappa"),
        ({"monitoring": {}}, "monitoring"),
    ],
)
def test_what_is_not_carried_through_is_refused_by_the_clauses_name(changes: dict[str, Any], clause: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        from_document({**DOCUMENT, "recipe": {"strategy": "replay"}, **changes})
    assert clause in str(refused.value)


def test_two_findings_need_no_positive_and_two_classes_still_have_one() -> None:
    two = {**DOCUMENT, "classes": ["ring", "band"]}
    assert from_document(two).positive is None
    assert from_document({**two, "task": "nominal"}).positive == "band"
    assert "task" not in from_document({**two, "task": "nominal"}).document()


def test_the_words_of_a_protocol_say_that_each_finding_is_by_itself() -> None:
    text = " ".join(wording.explain(PROTOCOL).split())
    assert (
        "A model answers of each of opacity, ring, band by itself whether it is there, at or above a threshold" in text
    )
    assert "AUROC and the margins are of the mean over the findings" in text
    assert "no finding may be shown to be worse than the champion's" in text
    assert "arg-max" not in text


def _settled(*said: Any, rule: ReferenceStandardRule = RULE) -> Settled | str:
    return settle(said, rule, findings=CLASSES)


def test_each_finding_is_settled_by_its_own_majority() -> None:
    found = _settled(
        read("opacity", number=1, reader="ana"),
        read("ring", number=2, reader="ben"),
        read("opacity+ring", number=3, reader="eva"),
    )
    assert isinstance(found, Settled)
    assert (found.finding, found.reads, found.confirmation_ids) == ("opacity+ring", 2, (1, 2, 3))
    assert found.why == "single read by 2 of 3 readers on each finding, blind"


def test_a_case_waits_for_the_finding_that_is_not_settled_and_names_it() -> None:
    said = [read("opacity+ring", number=1, reader="ana"), read("opacity", number=2, reader="ben")]
    assert _settled(*said) == "discordant: no ring ×1, ring ×1, for ring"
    assert _settled(read("band"), rule=ReferenceStandardRule(minimum_reads=2)) == "too few reads: 1 of 2, for opacity"
    weak = _settled(read("band"), rule=ReferenceStandardRule(minimum_evidence="pathology"))
    assert weak == "evidence too weak: single_read, where pathology is needed"


def test_stronger_evidence_decides_on_every_finding_and_an_adjudication_over_all() -> None:
    said = [read("opacity+ring", number=1), read("none_of_these", number=2, reader="lab", evidence="pathology")]
    found = _settled(*said)
    assert isinstance(found, Settled)
    assert found.finding == "none_of_these"
    over = _settled(*said, adjudication("band", number=3, evidence="pathology"))
    assert isinstance(over, Settled)
    assert over.finding == "band"
