"""A protocol in words: every clause that changes is named, and the published schema is the one that checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import wording
from pipelines.protocol import ProtocolError, from_document, parse

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml"


def changed(**sections: Any) -> dict[str, Any]:
    """The example's document with some sections changed."""
    document: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for name, values in sections.items():
        document[name] = {**document[name], **values} if isinstance(values, dict) and name in document else values
    return from_document(document).document()


def test_a_difference_names_each_clause_and_whether_it_asks_for_less() -> None:
    told = wording.differences(changed(), changed(gates={"alpha": 0.2}, approvals={"required": 3}, title="Another one"))
    assert told == [
        "approvals.required: 2 -> 3",
        "gates.alpha: 0.1 -> 0.2  (asks for less evidence)",
        'title: "Pneumonia on a frontal chest radiograph" -> "Another one"',
    ]
    assert wording.differences(changed(), changed(gates={"auroc": {"floor": 0.7, "margin": 0.03}})) == [
        "gates.auroc.floor: 0.8 -> 0.7  (asks for less evidence)"
    ]
    assert wording.differences(changed(), changed()) == []


def test_what_only_ever_asks_for_more_asks_for_less_once_it_is_gone() -> None:
    watched = changed(monitoring={"tolerance": 0.05}, gates={"require_improvement": True})
    assert wording.differences(
        watched, changed(monitoring={"tolerance": 0.1}, gates={"require_improvement": False})
    ) == [
        "gates.require_improvement: true -> false  (asks for less evidence)",
        "monitoring.tolerance: 0.05 -> 0.1  (asks for less evidence)",
    ]
    gone = wording.differences(watched, changed(monitoring=None))
    assert len(gone) == 4
    assert all(told.endswith("-> nothing  (asks for less evidence)") for told in gone)
    assert not any("less evidence" in told for told in wording.differences(changed(monitoring=None), watched))


def test_what_a_document_leaves_unsaid_is_compared_as_what_it_means() -> None:
    strict = changed()
    assert "tolerance" not in strict["gates"]["subgroups"]
    looser = changed(gates={"subgroups": {"attributes": ["site"], "tolerance": 0.03}, "approved_window": 5})
    assert wording.differences(strict, looser) == [
        "gates.approved_window: 15 -> 5  (asks for less evidence)",
        "gates.subgroups.tolerance: 0.0 -> 0.03  (asks for less evidence)",
    ]
    assert wording.differences(looser, strict) == [
        "gates.approved_window: 5 -> 15",
        "gates.subgroups.tolerance: 0.03 -> 0.0",
    ]


def test_a_screen_that_asks_for_less_confidence_or_is_gone_asks_for_less() -> None:
    document = changed(gates={"screen": {"confidence": 0.8}})
    assert wording.differences(changed(), document) == ["gates.screen.confidence: 0.9 -> 0.8  (asks for less evidence)"]
    assert not any("less" in told for told in wording.differences(document, changed()))
    assert wording.differences(document, changed(gates={"screen": None})) == [
        "gates.screen.confidence: 0.8 -> nothing  (asks for less evidence)"
    ]


def test_the_explanation_tells_of_screen_subgroups_and_points_by_site() -> None:
    def told(**sections: Any) -> str:
        return " ".join(wording.explain(from_document(changed(**sections))).split())

    assert (
        "above the champion's on the tune split, at confidence 0.9; one that is stopped there spends nothing" in told()
    )
    assert "at or above a threshold, the site's own where it has cases enough" in told()
    assert "chosen on the tune split so that it costs neither error of the champion's there" in told()
    assert "No slice by site is shown to be harmed." in told()
    critical = {"attributes": ["site"], "critical": ["sex=F"], "tolerance": 0.02}
    assert "shown to be harmed by more than 0.02; sex=F shown not worse by 0.1." in told(gates={"subgroups": critical})
    bare = told(gates={"subgroups": None, "screen": None}, operating_point={"by_site": False, "beside_champion": False})
    assert "No subgroup is looked at: add gates.subgroups." in bare
    assert "confidence" not in bare
    assert "the site's own" not in bare
    plain = {"equalise": False, "randomise": 0.0, "randomise_one_site": 0.0, "test_time_shifts": False}
    assert "It sees" not in told(recipe=plain)
    assert "It answers with the mean over slightly moved copies." in told(recipe=plain | {"test_time_shifts": True})
    assert "chosen on the tune split), on" in bare
    assert "learns from 50% of the images as an imagined other machine would show them (fewer" in told()
    assert "would show them and answers" in told(recipe=plain | {"randomise": 0.2, "test_time_shifts": True})


def test_a_document_from_before_a_field_is_compared_as_it_is_read_today() -> None:
    early = changed()
    del early["recipe"]["replay_share"]
    assert wording.differences(wording.as_read_today(early), changed()) == []
    assert wording.as_read_today({"line": "no protocol"}) == {"line": "no protocol"}


def test_a_section_that_goes_is_told_clause_by_clause() -> None:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    del document["gates"]["sealed_test"]
    told = wording.differences(changed(), from_document(document).document())
    assert "gates.sealed_test.uses: 50 -> nothing  (asks for less evidence)" in told
    assert {line.split(".")[1] for line in told} == {"sealed_test"}


def test_the_explanation_says_what_each_use_of_the_sealed_test_is_worth() -> None:
    text = " ".join(wording.explain(parse(EXAMPLE.read_text(encoding="utf-8"))).split())
    assert "the first is judged at level 0.064, the next at 0.0512 if that passed and at 0.0128 if not" in text
    assert "Then 2 people sign" in text
    assert (
        "It sees each image also with its grey levels equalised, learns from 50% of the images as an imagined other "
        "machine would show them (fewer the more sites it knows, 10% at the least) and answers with the mean over "
        "slightly moved copies." in text
    )
    assert max(map(len, wording.explain(parse(EXAMPLE.read_text(encoding="utf-8"))).splitlines())) <= wording.WIDTH


def test_a_protocol_without_a_plan_for_wear_is_told_so() -> None:
    document = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    del document["gates"]["sealed_test"]
    assert "gets a bad model approved: add gates.sealed_test" in " ".join(
        wording.explain(from_document(document)).split()
    )


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((ROOT / "docs" / "protocol.schema.json").read_text(encoding="utf-8"))
    assert published == wording.schema(), "run `overread protocol schema > docs/protocol.schema.json`"
    assert published["additionalProperties"] is False
    assert "sealed_test" in published["$defs"]["Gates"]["properties"]


def test_the_recipe_lies_within_its_own_envelope() -> None:
    with pytest.raises(ProtocolError, match=r"envelope\.strategies"):
        changed(envelope={"strategies": ["replay"]})
    assert changed(envelope={"strategies": ["full", "auto"]})["envelope"]["strategies"] == ["full", "auto"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["explain", str(EXAMPLE)], 0, "Intended use"),
        (["diff", str(EXAMPLE), str(EXAMPLE)], 0, "no difference"),
        (["check", str(EXAMPLE)], 0, "digest"),
        (["schema"], 0, "json-schema.org"),
        (["explain", "no-such-file.yaml"], 2, "No such file"),
        (["amend"], 2, "usage"),
    ],
)
def test_the_command_answers_or_says_what_is_wrong(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wording.main(arguments) == code
    out, err = capsys.readouterr()
    assert said in out + err


def test_a_typo_is_named_and_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "typo.yaml").write_text(EXAMPLE.read_text(encoding="utf-8").replace("alpha:", "alhpa:"))
    assert wording.main(["diff", str(EXAMPLE), str(tmp_path / "typo.yaml")]) == 2
    assert "gates.alhpa: Extra inputs are not permitted" in capsys.readouterr().err


def test_what_the_ladder_and_the_anchors_come_to_lies_within_the_envelope_too() -> None:
    recipe = {"strategy": "auto", "escalation": ["warm"], "anchor_growth": 2.0}
    with pytest.raises(ProtocolError, match="warm, is not among them"):
        changed(recipe=recipe, envelope={"strategies": ["auto", "full"]})
    with pytest.raises(ProtocolError, match="full, is not among them"):
        changed(recipe=recipe, envelope={"strategies": ["auto", "warm"]})
    with pytest.raises(ProtocolError, match="finetune is never promoted"):
        changed(recipe={"escalation": ["finetune"]})
    assert "after failed gates by warm" in wording.explain(from_document(changed(recipe=recipe)))
