"""The gates that look beyond the champion: every model approved before it, and the subgroups the protocol declares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import gates
from pipelines.comparison import Comparison, Placement, Scored, Sealed
from pipelines.protocol import Protocol, ProtocolError, from_document
from pipelines.types import Digest, GateResult, digest_of

N = 1200
LABELS = (np.arange(N) % 2).astype(np.int64)
SHARED, OWN = np.random.default_rng(99).normal(size=N), np.random.default_rng(98)
SITES = np.repeat(["north", "south", "west"], N // 3)


def _protocol(**rules: Any) -> Protocol:
    return from_document(
        {
            "line": "toy",
            "title": "A toy line",
            "intended_use": "To test the gates on numbers that a computer has made.",
            "classes": ["normal", "pneumonia"],
            "input": {"channels": 1, "rows": 28, "columns": 28},
            "gates": {"require_improvement": False, **rules},
        }
    )


def _model(name: str, *, skill: float, blind_at: str | None = None) -> Scored:
    """A model whose reading is its skill, the case's own difficulty and a little noise; it may fail one site's sick."""
    reading = skill * (2 * LABELS - 1) + 0.9 * SHARED + 0.2 * OWN.normal(size=N)
    positive = 1 / (1 + np.exp(-2 * reading))
    if blind_at is not None:
        positive = np.where(np.isin(SITES, blind_at) & (LABELS == 1) & (OWN.random(N) < 0.25), 0.1 * positive, positive)
    scores = np.stack([1 - positive, positive], axis=1)
    decided = (positive >= 0.5).astype(np.int64)
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=0.5)


ORIGINAL = _model("0", skill=2.3)
CHAMPION = _model("a", skill=1.2)
CANDIDATE = _model("c", skill=1.2)


def _compare(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "protocol": _protocol(),
        "sealed": Sealed(labels=LABELS, groups=np.arange(N).astype(str), traits={"site": SITES}),
        "candidate": CANDIDATE,
        "champion": CHAMPION,
        "opinions": (),
        "placements": (Placement(image_digest="i", group="p", split="train"),),
    }
    return Comparison(**{**values, **changes})


def _row(comparison: Comparison, name: str) -> GateResult:
    decided = gates.decide(comparison, dataset_digest=Digest("d" * 64))
    digest_of(decided.document())
    (row,) = [row for row in decided.results if row.name == name]
    return row


def test_as_good_as_the_champion_is_not_enough_where_the_chain_has_slid_below_the_original() -> None:
    alone = gates.decide(_compare(), dataset_digest=Digest("d" * 64))
    assert "approved_models" not in [row.name for row in alone.results]
    assert {"auroc", "sensitivity"}.isdisjoint(alone.summary["not_passed"])
    row = _row(_compare(approved=(ORIGINAL,)), "approved_models")
    assert row.verdict == "fail"
    assert f"sensitivity: worse than {'0' * 12} by" in row.reason
    assert gates.decide(_compare(approved=(ORIGINAL,)), dataset_digest=Digest("d" * 64)).verdict == "fail"


def test_a_candidate_as_good_as_all_of_them_passes_and_each_comparison_is_reported() -> None:
    equals = (_model("1", skill=1.2), _model("2", skill=1.15))
    row = _row(_compare(approved=equals), "approved_models")
    assert (row.verdict, row.reason) == ("pass", "not worse than any of 2 approved models")
    compared = {(one["endpoint"], one["model"]) for one in row.details["comparisons"]}
    assert compared == {(e, m * 12) for e in ("auroc", "sensitivity", "specificity") for m in ("1", "2")}
    assert all(one["difference"]["n"] in {N, N // 2} for one in row.details["comparisons"])


def test_the_margins_are_those_of_the_protocol() -> None:
    slightly = (_model("1", skill=1.25),)
    wide = {"auroc": {"floor": 0.5, "margin": 0.2}, "sensitivity": {"floor": 0.5, "margin": 0.2}}
    wide["specificity"] = {"floor": 0.5, "margin": 0.2}
    narrow = {**wide, "specificity": {"floor": 0.5, "margin": 0.005}}
    assert _row(_compare(protocol=_protocol(**wide), approved=slightly), "approved_models").verdict == "pass"
    assert _row(_compare(protocol=_protocol(**narrow), approved=slightly), "approved_models").verdict != "pass"


def test_an_approved_model_that_cannot_be_compared_fails_closed() -> None:
    for spoilt in (replace(ORIGINAL, threshold=None), replace(ORIGINAL, scores=ORIGINAL.scores * np.nan)):
        row = _row(_compare(approved=(spoilt,)), "approved_models")
        assert row.verdict == "fail"
        assert "could not be measured" in row.reason


def test_lines_of_many_classes_are_held_against_approved_models_too() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    protocol = from_document({**_protocol().document(), "classes": ["a", "b", "c"], "positive": None})

    def model(name: str, skill: float) -> Scored:
        logits = skill * np.eye(3)[labels] + rng.normal(size=(900, 3))
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Scored(digest=Digest(name * 64), scores=scores, decided=scores.argmax(axis=1), threshold=None)

    comparison = _compare(
        protocol=protocol,
        sealed=Sealed(labels=labels, groups=np.arange(900).astype(str)),
        candidate=model("c", 1.8),
        champion=model("a", 1.8),
        approved=(model("0", 5.0),),
    )
    row = _row(comparison, "approved_models")
    assert row.verdict == "fail"
    assert "accuracy: worse than" in row.reason


SUBGROUPS = {"attributes": ["site"], "margin": 0.10, "minimum_cases": 50}


def test_subgroups_are_looked_at_only_where_the_protocol_says_so() -> None:
    names = [row.name for row in gates.decide(_compare(), dataset_digest=Digest("d" * 64)).results]
    assert "subgroups" not in names
    first = _compare(protocol=_protocol(subgroups=SUBGROUPS), champion=None)
    assert "subgroups" not in [row.name for row in gates.decide(first, dataset_digest=Digest("d" * 64)).results]


def test_a_site_whose_sick_are_missed_stops_a_candidate_that_is_as_good_on_the_whole() -> None:
    blind = _compare(protocol=_protocol(subgroups=SUBGROUPS), candidate=_model("c", skill=1.4, blind_at="west"))
    row = _row(blind, "subgroups")
    assert row.verdict == "fail"
    assert "site=west sensitivity: harmed" in row.reason
    assert "specificity" not in row.reason
    slices = {one["name"]: one for one in row.details["slices"]}
    assert set(slices) == {f"site={s} {e}" for s in ("north", "south", "west") for e in ("sensitivity", "specificity")}
    assert slices["site=north sensitivity"]["n"] == 200
    assert _row(_compare(protocol=_protocol(subgroups=SUBGROUPS)), "subgroups").verdict == "pass"


def test_a_critical_slice_nobody_is_in_is_insufficient() -> None:
    protocol = _protocol(subgroups={**SUBGROUPS, "critical": ["sex=F"]})
    row = _row(_compare(protocol=protocol), "subgroups")
    assert row.verdict == "insufficient"
    assert "sex=F sensitivity: insufficient data: 0 of at least 50 cases" in row.reason


def test_a_critical_slice_that_is_misspelt_is_refused_with_the_protocol() -> None:
    with pytest.raises(ProtocolError, match=r"gates\.subgroups\.critical\.0"):
        _protocol(subgroups={**SUBGROUPS, "critical": ["sx=F"]})


def test_a_protocol_that_says_nothing_of_subgroups_keeps_the_digest_it_was_registered_with() -> None:
    plain = _protocol()
    assert {"subgroups", "approved_window"}.isdisjoint(plain.document()["gates"])
    assert _protocol(approved_window=15).digest == plain.digest
    said = _protocol(subgroups=SUBGROUPS, approved_window=3)
    assert said.document()["gates"]["approved_window"] == 3
    assert said.document()["gates"]["subgroups"]["attributes"] == ["site"]
    assert from_document(said.document()).digest == said.digest != plain.digest
