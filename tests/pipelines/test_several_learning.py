"""Several questions of one image: drawn, learned, calibrated and decided each by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines import findings, metrics, network, predict, several, strategies, teach, train
from pipelines.metrics import MetricError
from tests.pipelines.plates import CLASSES, PROTOCOL, drawn


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
    assert several.balanced_log_loss(logits.numpy(), labels.numpy()).value == pytest.approx(
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
