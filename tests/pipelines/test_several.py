"""Several questions of one image: each settled, learned, decided, measured and gated by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from pipelines import (
    evidence,
    findings,
    gates,
    metrics,
    network,
    predict,
    quality_lines,
    several,
    several_gates,
    strategies,
    synthetic,
    teach,
    train,
    wording,
)
from pipelines.comparison import Comparison, Opinion, Scored, Sealed
from pipelines.endpoints import decision_difference, share
from pipelines.gate_rules import DataQuality
from pipelines.metrics import MetricError
from pipelines.near_duplicates import Pairs
from pipelines.protocol import ProtocolError, ReferenceStandardRule, from_document
from pipelines.reference_standard import Settled, settle
from pipelines.types import Digest, GateReport, GateResult
from registry import findings as recorded
from tests.pipelines.saying import adjudication, read

CLASSES = synthetic.FINDINGS
DOCUMENT: dict[str, Any] = {
    "line": "plates",
    "title": "Opacity, ring and band",
    "intended_use": "Finds what synthetic plates show, in tests; of no use to anybody.",
    "classes": list(CLASSES),
    "task": "multilabel",
    "input": {"rows": 28, "columns": 28},
    "recipe": {"epochs": 2, "strategy": "auto"},
    "gates": {"require_improvement": False},
}
PROTOCOL = from_document(DOCUMENT)
RULE = ReferenceStandardRule()


def drawn(n: int, *, seed: int, number: int = 1) -> train.Cases:
    pictures, present = synthetic.plates(n, rng=np.random.default_rng(seed))
    return train.Cases(
        images=pictures[:, None].astype(np.float32) / 255.0,
        labels=present,
        sites=np.array(["north", "south"])[np.arange(n) % 2],
        label_since=np.full(n, number),
    )


# The words


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


# The reference standard


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


# Learning


def test_a_case_is_drawn_by_its_rarest_finding_so_that_a_rare_one_is_not_drowned() -> None:
    labels = np.zeros((1000, 3), dtype=bool)
    labels[:500, 0], labels[400:700, 1], labels[690:710, 2] = True, True, True
    assert several.rarest(labels)[[0, 450, 600, 695, 705, 999]].tolist() == [0, 1, 1, 2, 2, 3]
    plan = strategies.plan(
        "full",
        labels=labels,
        sites=np.full(1000, "a"),
        label_since=np.ones(1000),
        base_number=None,
        recipe=PROTOCOL.recipe,
    )
    seen = labels[strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))]
    assert labels[:, 2].mean() == 0.02
    assert 0.2 < seen[:, 2].mean() < 0.3
    assert 0.2 < (~seen.any(axis=1)).mean() < 0.3


def test_the_loss_of_several_findings_is_that_of_each_by_itself() -> None:
    logits, labels = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[True, False], [False, False]])
    each = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0)), np.log(2.0), np.log1p(np.exp(3.0))]
    assert float(teach.given(logits, labels)) == pytest.approx(np.mean(each))
    assert several.balanced_log_loss(logits.numpy(), labels.numpy()) == pytest.approx(
        np.mean([each[0], each[2], np.mean([each[1], each[3]])])
    )


def test_calibration_finds_the_temperature_and_the_share_of_each_finding_again() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal([-2.0, 0.5], 1.5, (4000, 2))
    labels = rng.random((4000, 2)) < several.probabilities(true)
    temperature, offsets = several.fit_calibration(3.0 * true + [5.0, -4.0], labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
    found = several.probabilities(3.0 * true + [5.0, -4.0], temperature=temperature, offsets=offsets)
    assert found.mean(axis=0) == pytest.approx(labels.mean(axis=0), abs=1e-6)
    assert max(metrics.ece(labels[:, k], found[:, k]) for k in (0, 1)) < 0.03
    with pytest.raises(MetricError, match="with each finding and without"):
        several.fit_calibration(true, np.ones_like(labels))


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return train.fit(drawn(240, seed=0), drawn(120, seed=1), protocol=PROTOCOL, strategy="full", seed=0)


def test_a_model_answers_each_question_by_itself(trained: train.Trained) -> None:
    model, test = predict.Model(trained.module, trained.metadata), drawn(60, seed=2)
    scores = model.scores(test.images)
    assert scores.shape == (60, 3)
    assert np.abs(scores.sum(axis=1) - 1.0).max() > 0.1
    decided = model.decided(scores)
    thresholds = [trained.metadata["operating_points"][name]["threshold"] for name in CLASSES]
    assert (decided == (scores >= thresholds)).all()
    assert model.decision(scores) == [findings.joined(row, CLASSES) for row in decided]
    assert set(trained.metadata["operating_points"]) == set(CLASSES)
    assert trained.metadata["operating_points"]["ring"]["sensitivity"]["n"] > 20
    assert "each by itself" in trained.metadata["description"]
    exported = predict.export(model)(torch.from_numpy(test.images)).detach().numpy()
    assert np.allclose(exported, scores, atol=1e-6)
    assert model.heat_map(test.images[0], 1).shape == (28, 28)


def test_a_finding_that_no_threshold_suits_is_never_called() -> None:
    called = several.decided(np.array([[0.9, 1.0], [0.1, 0.0]]), [0.5, None])
    assert called.tolist() == [[True, False], [False, False]]


def test_the_same_cases_give_the_same_weights(trained: train.Trained) -> None:
    again = train.fit(drawn(240, seed=0), drawn(120, seed=1), protocol=PROTOCOL, strategy="full", seed=0)
    assert network.save_weights(again.module) == network.save_weights(trained.module)


def test_a_strategy_that_is_not_carried_through_and_a_side_without_cases_are_refused() -> None:
    cases = drawn(40, seed=0)
    with pytest.raises(train.TrainingRefused, match="lwf cannot learn several findings: start a run by full"):
        train.fit(cases, cases, protocol=PROTOCOL, strategy="lwf", seed=0)
    always = replace(cases, labels=cases.labels | np.array([False, True, False]))
    with pytest.raises(train.TrainingRefused, match="the train split has no case of no ring"):
        train.fit(always, cases, protocol=PROTOCOL, strategy="full", seed=0)


# The gates


def _labels(n: int = 600) -> Any:
    return np.random.default_rng(3).random((n, 3)) < [0.4, 0.4, 0.25]


def _scored(name: str, labels: Any, *, skill: tuple[float, ...], threshold: float | None = 0.5) -> Scored:
    """A calibrated model of so much skill on each finding."""
    noise = np.random.default_rng(ord(name)).normal(size=labels.shape)
    scores = 1.0 / (1.0 + np.exp(-2.0 * np.array(skill) * (np.array(skill) * (2 * labels - 1) + noise)))
    thresholds = dict.fromkeys(CLASSES, threshold)
    decided = several.decided(scores, list(thresholds.values()))
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=None, thresholds=thresholds)


def _compared(*, candidate: tuple[float, ...], champion: tuple[float, ...] | None, **changes: Any) -> Comparison:
    labels = _labels()
    values: dict[str, Any] = {
        "protocol": PROTOCOL,
        "sealed": Sealed(
            labels=labels,
            groups=np.arange(len(labels)).astype(str),
            traits={"site": np.array(["north", "south"])[np.arange(len(labels)) % 2]},
            case_ids=np.arange(len(labels)),
            batches=np.arange(len(labels)) // 300,
            exposures=np.where(np.arange(len(labels)) % 3, "blind", "aided"),
        ),
        "candidate": _scored("b", labels, skill=candidate),
        "champion": None if champion is None else _scored("a", labels, skill=champion),
        "opinions": (),
        "placements": (),
    }
    return Comparison(**{**values, **changes})


def _decide(comparison: Comparison) -> tuple[GateReport, dict[str, GateResult]]:
    report = gates.decide(comparison, dataset_digest=Digest("d" * 64))
    return report, {row.name: row for row in report.results}


GOOD, BETTER = (1.1, 1.1, 1.1), (1.3, 1.3, 1.3)


def test_a_model_that_is_good_on_every_finding_passes_and_its_auroc_is_the_mean() -> None:
    comparison = _compared(candidate=BETTER, champion=GOOD)
    report, rows = _decide(comparison)
    stopped = {name: row.reason for name, row in rows.items() if row.verdict != "pass" and name != "leakage"}
    assert stopped == {}
    assert rows["auroc"].candidate is not None
    own = roc_auc_score(comparison.sealed.labels, comparison.candidate.scores, average="macro")
    assert rows["auroc"].candidate.value == pytest.approx(own)
    assert report.summary["sealed_test"]["no ring"] + report.summary["sealed_test"]["ring"] == 600
    assert report.summary["candidate_thresholds"] == dict.fromkeys(CLASSES, 0.5)


def test_a_candidate_that_is_worse_on_one_finding_of_three_is_stopped_though_the_means_hold() -> None:
    _, rows = _decide(_compared(candidate=(1.8, 1.8, 0.75), champion=GOOD))
    assert rows["auroc"].verdict == "pass"
    assert rows["sensitivity"].difference is not None
    assert rows["sensitivity"].difference.value > 0.0
    assert rows["findings"].verdict == "fail"
    assert "band: AUROC worse than the champion's by" in rows["findings"].reason
    assert "ring" not in rows["findings"].reason
    assert len(rows["findings"].details["tests"]) == 9


def test_equal_models_are_seldom_said_to_harm_a_finding() -> None:
    comparison, stopped = _compared(candidate=GOOD, champion=GOOD), 0
    for letter in "cdefghijklmnopqrstuv":
        other = _scored(letter, _labels(), skill=GOOD)
        stopped += several_gates.harm(replace(comparison, candidate=other)).verdict == "fail"
    assert stopped <= 3


def test_every_finding_has_to_clear_the_floor_at_its_operating_point() -> None:
    _, rows = _decide(_compared(candidate=(2.4, 2.4, 0.3), champion=None))
    assert rows["sensitivity"].verdict == "fail"
    assert "band: 0." in rows["sensitivity"].reason
    assert "is below the floor 0.7" in rows["sensitivity"].reason
    assert "findings" not in rows
    comparison = _compared(candidate=GOOD, champion=None)
    none = replace(comparison.candidate, thresholds={**comparison.candidate.thresholds, "ring": None})
    missing = _decide(replace(comparison, candidate=none))[1]["sensitivity"]
    assert missing.verdict == "fail"
    assert missing.reason == "ring has no operating point: no threshold met the rule on the tune split"


def test_the_mean_over_findings_is_as_sure_as_its_patients_and_never_surer_than_the_parts() -> None:
    comparison = _compared(candidate=BETTER, champion=GOOD)
    assert comparison.champion is not None
    whole = decision_difference(comparison, comparison.champion, "sensitivity")
    parts = [
        decision_difference(view, view.champion, "sensitivity")
        for view in comparison.questions().values()
        if view.champion is not None
    ]
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))
    assert whole.low < whole.value < whole.high
    assert whole.high - whole.low < max(part.high - part.low for part in parts)
    doubled = comparison.of(np.repeat(np.arange(600), 2))
    assert doubled.champion is not None
    again = decision_difference(doubled, doubled.champion, "sensitivity")
    assert again.high - again.low == pytest.approx(whole.high - whole.low, rel=0.12)
    labels, decided = comparison.sealed.labels, comparison.candidate.decided
    own = np.mean([(~decided[~labels[:, k], k]).mean() for k in range(3)])
    assert share(comparison, comparison.candidate, "specificity").value == pytest.approx(own)


def test_slices_calibration_and_earlier_models_are_judged_finding_by_finding() -> None:
    asked = from_document({**DOCUMENT, "gates": {"require_improvement": False, "subgroups": {}}})
    comparison = _compared(candidate=BETTER, champion=GOOD, protocol=asked)
    labels = comparison.sealed.labels
    harmed = comparison.candidate.decided.copy()
    harmed[::2, 1] &= np.random.default_rng(0).random(300) < 0.5  # rings at the north site
    bent = replace(comparison.candidate, decided=harmed, scores=comparison.candidate.scores ** [1.0, 1.0, 0.1])
    earlier = _scored("e", labels, skill=(3.0, 3.0, 3.0))
    _, rows = _decide(replace(comparison, candidate=bent, approved=(earlier,)))
    assert rows["subgroups"].verdict == "fail"
    assert "site=north sensitivity of ring" in rows["subgroups"].reason
    assert "calibration error of band" in rows["calibration"].reason
    assert rows["approved_models"].verdict == "fail"


def test_too_few_cases_with_or_without_a_finding_show_nothing() -> None:
    comparison = _compared(candidate=GOOD, champion=None)
    rare = comparison.of(np.flatnonzero(~comparison.sealed.labels[:, 2] | (np.arange(600) < 20)))
    _, rows = _decide(rare)
    assert rows["minimum_cases"].verdict == "insufficient"
    assert rows["minimum_cases"].reason.endswith("of band")
    blind = from_document({**DOCUMENT, "gates": {"evidence": "blind", "minimum_cases_per_class": 120}})
    _, rows = _decide(replace(comparison, protocol=blind))
    assert rows["auroc"].verdict == "insufficient"
    assert "of band were read blind" in rows["auroc"].reason


def test_a_submitter_who_contradicts_the_champion_on_one_finding_is_found() -> None:
    rng = np.random.default_rng(0)
    said = [findings.joined(row, CLASSES) for row in rng.random((60, 3)) < 0.4]
    turned = [findings.joined(row ^ np.array([False, True, False]), CLASSES) for row in findings.matrix(said, CLASSES)]
    opinions = [
        Opinion(submitter=who, finding=theirs, champion=ours, others=None)
        for who, answers in (("pacs-north", said), ("pacs-south", turned))
        for ours, theirs in zip(said, answers, strict=True)
    ]
    _, rows = _decide(_compared(candidate=GOOD, champion=GOOD, opinions=tuple(opinions)))
    assert rows["submitters"].verdict == "fail"
    assert rows["submitters"].reason.startswith("pacs-south contradicts the champion on ring in 60 of 60 new labels")
    assert "pacs-north" not in rows["submitters"].reason


def test_what_a_report_shows_of_several_findings_is_drawn_for_each() -> None:
    shown = evidence.gather(_compared(candidate=BETTER, champion=GOOD))
    assert {curve["class"] for curve in shown["roc"]["curves"]} == set(CLASSES)
    assert all(curve["point"]["threshold"] == 0.5 for curve in shown["roc"]["curves"])
    assert shown["reliability"]["of"] == "the findings, taken together"
    assert shown["decision_curve"] == {"missing": "a decision curve needs a positive class"}
    assert "site=north, ring" in {row["slice"] for row in shown["forest"]}
    assert shown["forgetting"]["cells"][0][0]["n"] == 150
    assert shown["flips"]["lost"][0]["finding"] in {findings.joined(row, CLASSES) for row in _labels()}
    assert "missing" not in shown["exposure"]


def test_what_takes_classes_that_exclude_each_other_refuses_several_findings() -> None:
    comparison = _compared(candidate=GOOD, champion=None)
    with pytest.raises(MetricError, match="ask about each of them"):
        _ = comparison.truth
    with pytest.raises(MetricError):
        metrics.auroc(comparison.sealed.labels, comparison.candidate.scores)
    with pytest.raises(MetricError):
        metrics.macro_auroc_estimate(comparison.sealed.labels[:, :2], comparison.candidate.scores)


def test_the_share_that_changed_most_is_what_shifted_and_copies_differ_where_any_finding_does() -> None:
    rng = np.random.default_rng(0)
    before = rng.random((300, 3)) < [0.4, 0.4, 0.2]
    after = np.concatenate([before, rng.random((300, 3)) < [0.4, 0.4, 0.8]])
    old, new = _table(before, number=1), _table(after, number=2)
    line = quality_lines.prior_shift(new, old, DataQuality(), seed=0)
    assert line.value == pytest.approx(after[:, 2].mean() - before[:, 2].mean())
    assert line.verdict == "fail"
    assert line.reason.startswith("the findings of the whole version shifted by 0.29")
    assert "band 2" in line.reason
    calm = quality_lines.prior_shift(_table(np.tile(before, (2, 1)), number=2), old, DataQuality(), seed=0)
    assert calm.verdict == "pass"
    pairs = Pairs(first=np.array([0]), second=np.array([1]), distance=np.array([2]))
    twins = replace(new, labels=np.array([[True, False, True], [True, False, False]]))
    lines = {one.name: one for one in quality_lines.near_duplicates(twins, pairs, DataQuality())}
    assert lines["copies_with_two_answers"].value == 1.0


def _table(labels: Any, *, number: int) -> quality_lines.Table:
    n = len(labels)
    same = np.full(n, "a")
    return quality_lines.Table(
        number=number,
        classes=CLASSES,
        case_ids=np.arange(n),
        image_digests=np.array([f"digest-{row}" for row in range(n)]),
        phashes=np.zeros(n, dtype=np.uint64),
        labels=labels,
        splits=np.full(n, "train"),
        groups=np.array([f"patient:{row}" for row in range(n)]),
        sites=same,
        scanners=same,
        sexes=same,
        age_bands=same,
        added_in=np.where(np.arange(n) < 300, 1, number),
    )


def _with(comparison: Comparison, **gates_of: Any) -> Comparison:
    """The same comparison, with other limits asked for."""
    document = comparison.protocol.document()
    return replace(comparison, protocol=from_document({**document, "gates": {**document["gates"], **gates_of}}))


def test_floors_and_margins_are_held_just_at_them_and_the_words_have_their_numbers() -> None:
    worse = _compared(candidate=(1.6, 1.6, 1.6), champion=(2.4, 2.4, 2.4))
    _, rows = _decide(worse)
    found, shown = rows["sensitivity"].difference, rows["sensitivity"].details["findings"]
    assert found is not None
    assert found.value < 0.0
    lowest = min(one["candidate"]["value"] for one in shown)
    surest = min(one["candidate"]["low"] for one in shown)

    def asked(*, floor: float, margin: float) -> GateResult:
        return _decide(_with(worse, sensitivity={"floor": floor, "margin": margin}))[1]["sensitivity"]

    assert asked(floor=surest - 1e-6, margin=-found.low + 1e-6).verdict == "pass"
    unsure = asked(floor=surest - 1e-6, margin=-found.low - 1e-6)
    assert unsure.verdict == "insufficient"
    assert unsure.reason == f"in the mean it may be {-found.low:.3f} worse than the champion"
    failed = asked(floor=surest - 1e-6, margin=-found.value - 1e-6)
    assert failed.verdict == "fail"
    assert failed.reason == f"in the mean worse than the champion by {-found.value:.3f}"
    assert f"at least {surest - 1e-6:g} at" in failed.requirement
    assert f"worse than the champion by {-found.value - 1e-6:g}" in failed.requirement
    assert asked(floor=surest + 1e-6, margin=0.4).verdict == "insufficient"
    assert f"clears {lowest - 1e-6:g}, but on" in asked(floor=lowest - 1e-6, margin=0.4).reason
    assert asked(floor=lowest + 1e-6, margin=0.4).verdict == "fail"


def test_harm_by_auroc_has_the_p_value_of_its_interval_and_is_held_at_holms_level() -> None:
    worse = _compared(candidate=(1.8, 1.8, 0.75), champion=GOOD)
    row = _decide(worse)[1]["findings"]
    for test in row.details["tests"]:
        if test["endpoint"] == "AUROC":
            spread = (test["difference"]["high"] - test["difference"]["low"]) / 2.0
            error = spread / metrics.normal_quantile(0.5 + test["difference"]["level"] / 2.0)
            z = test["difference"]["value"] / error
            assert test["p_value"] == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2.0)))
    least = min(row.details["tests"], key=lambda test: test["p_value"])
    assert least["local_alpha"] == pytest.approx(worse.protocol.gates.alpha / 9)
    assert f"by {-least['difference']['value']:.3f} on {least['difference']['n']} cases" in row.reason
