"""What a gate report shows: the points of its plots are right, bounded, and stop nothing where they cannot be made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from pipelines import evidence
from pipelines.comparison import Comparison, Scored, Sealed
from pipelines.protocol import from_document
from pipelines.types import Digest, digest_of

DOCUMENT: dict[str, Any] = {
    "line": "toy",
    "title": "A toy line",
    "intended_use": "To test what a report shows, on numbers that a computer has made.",
    "classes": ["normal", "pneumonia"],
    "input": {"channels": 1, "rows": 28, "columns": 28},
}
N = 600
LABELS = (np.arange(N) % 3 == 0).astype(np.int64)


def model(name: str, *, skill: float, seed: int, labels: Any = LABELS) -> Scored:
    noise = np.random.default_rng(seed).normal(size=len(labels))
    positive = 1.0 / (1.0 + np.exp(-2.0 * skill * (skill * (2 * labels - 1) + noise)))
    scores = np.stack([1.0 - positive, positive], axis=1)
    return Scored(digest=Digest(name * 64), scores=scores, decided=(positive >= 0.5).astype(np.int64), threshold=0.5)


def comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "protocol": from_document(DOCUMENT),
        "sealed": Sealed(
            labels=LABELS,
            groups=np.arange(N).astype(str),
            traits={"site": np.array(["north", "south", "east"])[np.arange(N) // 5 % 3]},
            case_ids=np.arange(1000, 1000 + N),
            batches=np.arange(N) // 200 + 1,
        ),
        "candidate": model("c", skill=1.0, seed=1),
        "champion": model("d", skill=1.3, seed=2),
        "opinions": (),
        "placements": (),
        "changed": {"dataset": 3, "examples": 900, "new_labels": 300, "models": {"seed": [0, 1]}},
    }
    return Comparison(**{**values, **changes})


def test_the_roc_curve_is_that_of_scikit_learn_and_lies_in_its_band() -> None:
    shown = evidence.roc(comparison())
    fpr, tpr, _ = roc_curve(LABELS, comparison().candidate.scores[:, 1], drop_intermediate=False)
    candidate, champion = shown["curves"]
    for at, value in zip(shown["fpr"], candidate["tpr"], strict=True):
        assert value == pytest.approx(tpr[fpr <= at + 1e-9].max(), abs=1e-3)
    assert all(
        low <= value <= high
        for low, value, high in zip(candidate["low"], candidate["tpr"], candidate["high"], strict=True)
    )
    assert max(np.subtract(candidate["high"], candidate["low"])) > 0.02
    assert (candidate["model"], champion["model"], candidate["class"]) == ("candidate", "champion", "pneumonia")


def test_the_operating_point_is_what_the_model_decided() -> None:
    made = comparison()
    point = evidence.roc(made)["curves"][0]["point"]
    called = made.candidate.decided == 1
    assert point["sensitivity"]["value"] == pytest.approx(called[LABELS == 1].mean())
    assert point["specificity"]["value"] == pytest.approx((~called)[LABELS == 0].mean())
    assert point["threshold"] == 0.5


def test_reliability_has_every_case_in_one_of_ten_groups() -> None:
    bins = evidence.reliability(comparison())["models"]["candidate"]
    assert (len(bins), sum(one["n"] for one in bins)) == (10, N)
    assert sum(one["value"] * one["n"] for one in bins) == pytest.approx(LABELS.sum())
    assert all(one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9 for one in bins)


def test_net_benefit_is_that_of_its_definition() -> None:
    shown, made = evidence.decision_curve(comparison()), comparison()
    for place in (5, 49, 90):
        at = shown["thresholds"][place]
        called = made.candidate.scores[:, 1] >= at
        benefit = (called & (LABELS == 1)).sum() / N - (called & (LABELS == 0)).sum() / N * at / (1 - at)
        assert shown["curves"]["candidate"][place] == pytest.approx(benefit, abs=2e-3)
        everyone = LABELS.mean() - (1 - LABELS.mean()) * at / (1 - at)
        assert shown["curves"]["all"][place] == pytest.approx(everyone, abs=1e-3)


def test_the_forest_tells_of_each_slice_what_was_lost_in_it() -> None:
    made = comparison()
    (row,) = [row for row in evidence.forest(made) if (row["slice"], row["endpoint"]) == ("site=north", "sensitivity")]
    members = (made.sealed.traits["site"] == "north") & (LABELS == 1)
    assert made.champion is not None
    lost = (made.candidate.decided[members] == 1).mean() - (made.champion.decided[members] == 1).mean()
    assert row["difference"]["value"] == pytest.approx(lost)
    assert (row["n"], row["tier"]) == (members.sum(), "watched")


def test_forgetting_is_told_by_site_and_batch_and_small_cells_are_empty() -> None:
    sealed = comparison().sealed
    sites = np.where(np.arange(N) < 3, "tiny", sealed.traits["site"])
    made = comparison(sealed=replace(sealed, traits={"site": sites}))
    shown = evidence.forgetting(made)
    assert shown["versions"] == [[1, 1], [2, 2], [3, 3]]
    tiny = shown["cells"][shown["sites"].index("tiny")]
    assert tiny == [{"n": 3}, {"n": 0}, {"n": 0}]
    cell = shown["cells"][shown["sites"].index("south")][1]
    members = (sites == "south") & (made.sealed.batches == 2)
    assert made.champion is not None
    ours, theirs = made.candidate.decided == LABELS, made.champion.decided == LABELS
    assert cell["n"] == members.sum()
    assert cell["candidate"] == pytest.approx(ours[members].mean(), abs=1e-4)
    assert cell["gained"] - cell["lost"] == ours[members].sum() - theirs[members].sum()


def test_of_many_versions_the_oldest_are_told_together() -> None:
    sealed = replace(comparison().sealed, batches=np.arange(N) % 40 + 1)
    assert evidence.forgetting(comparison(sealed=sealed))["versions"][:2] == [[1, 29], [30, 30]]


def test_flips_name_the_cases_that_only_one_of_the_two_has_right() -> None:
    made = comparison()
    shown = evidence.flips(made)
    assert made.champion is not None
    ours, theirs = made.candidate.decided == LABELS, made.champion.decided == LABELS
    lost = {1000 + int(row) for row in np.flatnonzero(theirs & ~ours)}
    assert {one["case"] for one in shown["lost"]} == lost
    assert (shown["counts"]["lost"], shown["counts"]["gained"]) == (len(lost), int((ours & ~theirs).sum()))
    falls = [one["champion_score"] - one["candidate_score"] for one in shown["lost"]]
    assert falls == sorted(falls, reverse=True)


def test_everything_is_bounded_however_many_cases_there_are() -> None:
    labels = np.arange(20_000) % 2
    sealed = Sealed(
        labels=labels,
        groups=np.arange(20_000).astype(str),
        traits={name: (np.arange(20_000) % 50).astype(str) for name in ("site", "scanner")},
        case_ids=np.arange(20_000),
        batches=np.arange(20_000) % 300,
        exposures=np.where(np.arange(20_000) % 3 == 0, "blind", "aided"),
    )
    models = [model(name, skill=0.3, seed=seed, labels=labels) for seed, name in enumerate("ab")]
    shown = evidence.gather(comparison(sealed=sealed, candidate=models[0], champion=models[1]))
    assert not [name for name, plot in shown.items() if isinstance(plot, dict) and "missing" in plot]
    assert len(json.dumps(shown)) < 200_000
    assert all(len(curve["tpr"]) <= 200 for curve in shown["roc"]["curves"])
    assert len(shown["flips"]["lost"]) == evidence.CASES
    assert len(shown["forest"]) == evidence.ROWS


def test_the_same_comparison_gives_the_same_points() -> None:
    assert digest_of(evidence.gather(comparison())) == digest_of(evidence.gather(comparison()))


def test_the_first_model_of_a_line_has_plots_and_no_flips() -> None:
    shown = evidence.gather(comparison(champion=None))
    assert [curve["model"] for curve in shown["roc"]["curves"]] == ["candidate"]
    assert shown["flips"] == {"missing": "there is no champion to differ from"}
    assert all(row["difference"] is None for row in shown["forest"])


def test_many_classes_have_a_curve_each_and_no_decision_curve() -> None:
    labels = np.arange(N) % 3
    scores = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], N)
    one = Scored(digest=Digest("c" * 64), scores=scores, decided=scores.argmax(axis=1), threshold=None)
    made = comparison(
        protocol=from_document({**DOCUMENT, "classes": ["normal", "bacterial", "viral"]}),
        sealed=replace(comparison().sealed, labels=labels),
        candidate=one,
        champion=None,
    )
    shown = evidence.gather(made)
    assert [curve["class"] for curve in shown["roc"]["curves"]] == ["normal", "bacterial", "viral"]
    assert shown["decision_curve"] == {"missing": "a decision curve needs a positive class"}
    assert shown["reliability"]["of"] == "right decisions"


@pytest.mark.parametrize("spoilt", ["one class", "not a number"])
def test_what_cannot_be_drawn_says_why_and_stops_nothing(spoilt: str) -> None:
    made = comparison()
    if spoilt == "one class":
        made = comparison(sealed=replace(made.sealed, labels=np.zeros(N, dtype=np.int64)))
    else:
        made.candidate.scores[0] = np.nan
    shown = evidence.gather(made)
    assert "missing" in shown["roc"]
    json.dumps(shown["roc"], allow_nan=False)
