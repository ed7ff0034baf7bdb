"""Grades: learnt, decided and measured as grades, from the protocol to the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from benchmarks.grades import PROTOCOL, drawn
from pipelines import gates, ordinal, predict, train, wording
from pipelines.comparison import Comparison, Scored, Sealed
from pipelines.metrics import MetricError
from pipelines.protocol import Protocol, ProtocolError, from_document
from pipelines.types import Digest, GateResult

GRADES = 5
SHORT = PROTOCOL.model_copy(update={"recipe": PROTOCOL.recipe.model_copy(update={"epochs": 6})})


def _called(n: int, *, seed: int, spread: float) -> tuple[Any, Any]:
    """Answers, and decisions that are `spread` apart from them in the mean."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, GRADES, n)
    return labels, np.rint(labels + rng.normal(0.0, spread, n)).clip(0, GRADES - 1).astype(np.int64)


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return train.fit(drawn(200, seed=0), drawn(150, seed=1), protocol=SHORT, strategy="full", seed=0)


@pytest.mark.parametrize("spread", [0.0, 0.7, 3.0])
def test_kappa_is_that_of_scikit_learn(spread: float) -> None:
    labels, called = _called(300, seed=1, spread=spread)
    own = ordinal.kappa_estimate(labels, called, grades=GRADES)
    assert own.value == pytest.approx(cohen_kappa_score(labels, called, weights="quadratic"))
    assert own.low <= own.value <= own.high
    assert own.n == 300


def test_a_hand_worked_kappa() -> None:
    # One of four is one grade off: .25. Answers of 2, 1, 1 and decisions of 1, 2, 1 cases at random are off by, in
    # squared grades, 2/4 (2/4 + 4/4) + 1/4 (1/4 + 1/4) + 1/4 (4/4 + 2/4) = 1.25.
    value = ordinal.kappa_estimate(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), grades=3).value
    assert value == pytest.approx(1.0 - 0.25 / 1.25)


def test_its_interval_is_as_wide_as_resampling_says_and_wider_where_patients_come_twice() -> None:
    labels, called = _called(400, seed=2, spread=0.8)
    own = ordinal.kappa_estimate(labels, called, grades=GRADES)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 400, (400, 400))
    drawn_again = [ordinal.kappa_estimate(labels[row], called[row], grades=GRADES).value for row in rows]
    assert (own.high - own.low) / 2 == pytest.approx(1.96 * np.std(drawn_again), rel=0.12)
    twice = [np.concatenate([values, values]) for values in (labels, called, np.arange(400))]
    grouped = ordinal.kappa_estimate(twice[0], twice[1], groups=twice[2], grades=GRADES)
    assert grouped.high - grouped.low == pytest.approx(own.high - own.low)


def test_the_same_decisions_differ_by_nothing_and_better_ones_by_more() -> None:
    labels, called = _called(400, seed=3, spread=1.2)
    same = ordinal.paired_kappa_difference(labels, called, called, grades=GRADES)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = ordinal.paired_kappa_difference(labels, labels, called, grades=GRADES)
    assert better.low > 0.0


@pytest.mark.parametrize(
    ("labels", "called", "said"),
    [([0, 0, 0], [0, 0, 0], "more than one grade"), ([0, 1], [0, 5], "0..4"), ([0, 1], [0], "2 answers and 1")],
)
def test_what_has_no_kappa_is_refused(labels: list[int], called: list[int], said: str) -> None:
    with pytest.raises(MetricError, match=said):
        ordinal.kappa_estimate(np.array(labels), np.array(called), grades=GRADES)


def test_a_decision_is_the_median_and_so_the_least_expected_distance() -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(GRADES) / 2, 200)
    grades = np.arange(GRADES)
    distances = np.abs(grades[:, None] - grades) @ scores.T  # (grades, N)
    own = distances[ordinal.decided(scores), np.arange(200)]
    assert own == pytest.approx(distances.min(axis=0))
    assert ordinal.decided(np.array([[0.4, 0.05, 0.05, 0.2, 0.3]])).tolist() == [2]  # arg-max would say 0


def test_grades_are_learnt_and_the_model_decides_by_their_median(trained: train.Trained) -> None:
    test = drawn(400, seed=7, one_off=0.0)
    model = predict.Model(trained.module, trained.metadata)
    scores = model.scores(test.images)
    assert scores.sum(axis=1) == pytest.approx(np.ones(400), abs=1e-5)
    assert (model.decided(scores) == ordinal.decided(scores)).all()
    assert ordinal.kappa_estimate(test.labels, model.decided(scores), grades=GRADES).low > 0.3
    assert trained.metadata["ordinal"] is True
    assert trained.metadata["tune"]["kappa"]["n"] == 150


def _scored(name: str, labels: Any, *, spread: float) -> Scored:
    rng = np.random.default_rng(5)
    decided = np.rint(labels + rng.normal(0.0, spread, len(labels))).clip(0, GRADES - 1).astype(np.int64)
    scores = np.full((len(labels), GRADES), 0.1)
    scores[np.arange(len(labels)), decided] = 0.6
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=None)


def _decide(*, candidate: float, champion: float | None, approved: float | None = None) -> dict[str, GateResult]:
    labels = np.arange(500) % GRADES
    report = gates.decide(
        Comparison(
            protocol=PROTOCOL,
            sealed=Sealed(labels=labels, groups=np.arange(500).astype(str)),
            candidate=_scored("b", labels, spread=candidate),
            champion=None if champion is None else _scored("a", labels, spread=champion),
            approved=() if approved is None else (_scored("c", labels, spread=approved),),
            opinions=(),
            placements=(),
        ),
        dataset_digest=Digest("d" * 64),
    )
    return {row.name: row for row in report.results}


def test_the_gate_asks_for_agreement_on_the_grades_above_the_floor_and_beside_the_champion() -> None:
    better = _decide(candidate=0.4, champion=0.8)["kappa"]
    assert better.verdict == "pass"
    assert better.requirement == "at least 0.5, and not worse than the champion by 0.1"
    assert better.difference is not None
    assert better.difference.low > 0.0
    worse = _decide(candidate=1.5, champion=0.4)["kappa"]
    assert worse.verdict == "fail"
    assert "worse than the champion" in worse.reason
    assert _decide(candidate=9.0, champion=None)["kappa"].verdict == "fail"


def test_a_candidate_must_not_fall_below_the_kappa_of_any_model_approved_before() -> None:
    stopped = _decide(candidate=0.9, champion=0.9, approved=0.3)["approved_models"]
    assert stopped.verdict == "fail"
    assert "kappa" in {row["endpoint"] for row in stopped.details["comparisons"]}


def _changed(**changes: Any) -> Protocol:
    return from_document({**PROTOCOL.document(), **changes})


def test_a_protocol_of_grades_says_how_their_agreement_is_judged() -> None:
    with pytest.raises(ProtocolError, match=r"gates\.kappa: grades need a floor and a margin"):
        _changed(gates={})
    with pytest.raises(ProtocolError, match=r"gates\.kappa: it measures grades"):
        _changed(task="nominal")
    with pytest.raises(ProtocolError, match="none of them `positive`"):
        _changed(positive="grade-4")
    text = " ".join(wording.explain(PROTOCOL).split())
    assert "grades by their median" in text
    assert "weighted kappa 0.5 by 0.1" in text
    nominal = {name: part for name, part in PROTOCOL.document().items() if name not in {"task", "gates"}}
    assert "task" not in from_document(nominal).document()
