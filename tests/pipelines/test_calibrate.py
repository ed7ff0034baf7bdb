"""Temperature and operating point, on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines import calibrate
from pipelines.metrics import MetricError


def test_the_temperature_that_made_the_logits_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    probabilities = calibrate.softmax(logits)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert calibrate.fit_temperature(logits * 2.5, labels) == pytest.approx(2.5, rel=0.05)
    assert calibrate.fit_temperature(logits * 0.5, labels) == pytest.approx(0.5, rel=0.05)


def test_a_network_trained_on_even_classes_is_put_back_to_the_lines_own_shares() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(20_000) < 0.8).astype(np.int64)
    evidence = np.where(labels == 1, 1.0, -1.0) + rng.normal(size=20_000)
    logits = np.stack([-evidence, evidence], axis=1)  # the log-likelihood ratio of two unit normals, 2 x evidence
    prior = calibrate.log_prior(labels, classes=2)
    assert calibrate.softmax(logits)[:, 1].mean() < 0.75
    assert calibrate.softmax(logits, log_prior=prior)[:, 1].mean() == pytest.approx(0.8, abs=0.01)
    assert calibrate.fit_temperature(logits, labels, log_prior=prior) == pytest.approx(1.0, abs=0.05)


def test_a_class_without_cases_keeps_a_finite_prior() -> None:
    assert np.isfinite(calibrate.log_prior(np.array([0, 0, 0]), classes=2)).all()


def test_the_standard_error_of_a_balanced_loss_is_what_repeating_it_shows() -> None:
    rng = np.random.default_rng(2)
    told = []
    for _ in range(2000):
        evidence = rng.normal(size=40) + np.repeat([-1.0, 1.0], [30, 10])
        logits = np.stack([-evidence, evidence], axis=1)
        told.append(calibrate.balanced_log_loss(logits, np.repeat([0, 1], [30, 10])))
    values, errors = np.array(told).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.05)


def test_the_worst_site_gives_the_loss_and_a_site_with_few_cases_is_not_asked() -> None:
    labels = np.array([0, 1] * 20 + [0] * 9 + [1] * 9)
    sites = np.array(["good", "bad"] * 20 + ["small"] * 18)
    labels[:40] = np.repeat([0, 1], 20)
    certain = np.where(sites == "good", 3.0, np.where(sites == "bad", 0.5, -9.0))
    logits = np.stack([np.where(labels == 0, certain, 0.0), np.where(labels == 1, certain, 0.0)], axis=1)
    found = calibrate.worst_site_log_loss(logits, labels, sites)
    assert found.value == pytest.approx(np.log1p(np.exp(-0.5)))
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)
    by_hand = calibrate.balanced([np.array([1.0, 3.0]), np.array([2.0])])  # of one case nothing is known but its loss
    assert by_hand == pytest.approx((2.0, np.sqrt(2.0 / 2.0) / 2.0))


def test_youden_lies_amid_the_thresholds_that_are_as_good() -> None:
    labels = np.array([0] * 50 + [1] * 50)
    scores = np.concatenate([np.linspace(0.01, 0.10, 50), np.linspace(0.90, 0.99, 50)])
    point = calibrate.choose_operating_point(labels, scores, rule="youden")
    assert point.threshold == pytest.approx(0.5)
    assert point.sensitivity is not None
    assert point.sensitivity.value == 1.0
    assert point.sensitivity.n == 50
    assert point.chosen_on == "tune"


def test_between_two_groups_of_good_thresholds_youden_takes_one_of_them() -> None:
    labels = np.array(([0] * 40 + [1] * 40) * 2)
    low, high = np.linspace(0.02, 0.12, 40), np.linspace(0.88, 0.98, 40)
    scores = np.concatenate([low - 0.01, low + 0.12, high - 0.12, high + 0.01])  # two sites, far apart
    point = calibrate.choose_operating_point(labels, scores, rule="youden")
    assert point.sensitivity is not None
    assert point.specificity is not None
    found = point.sensitivity.value + point.specificity.value - 1.0
    best = max((scores[labels == 1] >= t).mean() - (scores[labels == 0] >= t).mean() for t in scores)
    assert found >= best - np.sqrt(0.5 * 0.5 / 80 * 2)


def test_one_odd_case_hardly_moves_youden() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(300) % 2
    scores = 1 / (1 + np.exp(-(3 * labels - 1.5 + rng.normal(size=300))))
    with_all = calibrate.choose_operating_point(labels, scores, rule="youden").threshold
    moved = [
        calibrate.choose_operating_point(np.delete(labels, k), np.delete(scores, k), rule="youden").threshold
        for k in range(0, 300, 10)
    ]
    assert with_all is not None
    assert max(abs(threshold - with_all) for threshold in moved if threshold is not None) < 0.12
    assert None not in moved


def test_a_fixed_target_is_kept_and_the_other_side_is_the_best_possible() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    scores = np.clip(0.35 * labels + rng.random(400) * 0.65, 0, 1)
    point = calibrate.choose_operating_point(labels, scores, rule="sensitivity_at_specificity", target=0.9)
    assert point.threshold is not None
    assert point.sensitivity is not None
    assert point.specificity is not None
    assert point.specificity.value >= 0.9
    for threshold in np.unique(scores):
        if (scores[labels == 0] < threshold).mean() >= 0.9:
            assert (scores[labels == 1] >= threshold).mean() <= point.sensitivity.value + 1e-12


def test_where_no_threshold_meets_the_target_there_is_no_operating_point() -> None:
    labels, scores = np.array([0, 1] * 20), np.full(40, 0.5)
    point = calibrate.choose_operating_point(labels, scores, rule="sensitivity_at_specificity", target=0.9)
    assert point.threshold is None
    assert point.sensitivity is None


def test_one_class_alone_has_no_operating_point_to_choose() -> None:
    with pytest.raises(MetricError, match="one negative"):
        calibrate.choose_operating_point(np.ones(5), np.full(5, 0.5), rule="youden")


def test_net_benefit_is_highest_at_the_chosen_threshold() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(500) < 0.3
    scores = np.clip(0.3 * labels + rng.random(500) * 0.7, 0, 1)
    point = calibrate.choose_operating_point(labels, scores, rule="net_benefit", target=0.2)
    assert point.threshold is not None

    def benefit(threshold: float) -> float:
        called = scores >= threshold
        return float(np.mean(called & labels) - np.mean(called & ~labels) * 0.2 / 0.8)

    assert benefit(point.threshold) == pytest.approx(max(benefit(threshold) for threshold in np.unique(scores)))


def test_where_scores_are_calibrated_the_best_threshold_is_the_probability_of_indifference() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random(20_000)
    labels = rng.random(20_000) < scores
    point = calibrate.choose_operating_point(labels, scores, rule="net_benefit", target=0.3)
    assert point.threshold == pytest.approx(0.3, abs=0.05)


def test_a_site_has_its_own_operating_point_only_where_it_has_enough_of_both_classes() -> None:
    rng = np.random.default_rng(6)
    labels = np.arange(300) % 2 == 0
    scores = np.clip(0.4 * labels + rng.random(300) * 0.6, 0, 1)
    sites = np.array(["large"] * 200 + ["small"] * 50 + ["one-sided"] * 50)
    labels[250:] = True
    found = calibrate.points_by_site(labels, scores, sites, rule="youden")
    assert set(found) == {"large"}
    assert found["large"] == calibrate.choose_operating_point(labels[:200], scores[:200], rule="youden")
    assert found["large"].sensitivity is not None
    assert found["large"].sensitivity.n == 100


def test_the_band_of_a_second_look_holds_its_share_and_those_outside_are_clearer() -> None:
    rng = np.random.default_rng(7)
    labels = rng.random(1000) < 0.4
    scores = 1.0 / (1.0 + np.exp(-(2.0 * labels - 1.0 + rng.normal(size=1000))))
    band = calibrate.second_look(labels, scores, threshold=0.4, share=0.15)
    assert np.mean((scores >= band.low) & (scores <= band.high)) == pytest.approx(0.15, abs=0.002)
    assert band.low < 0.4 < band.high
    odds = [value / (1 - value) for value in (band.low, 0.4, band.high)]
    assert odds[1] / odds[0] == pytest.approx(odds[2] / odds[1])
    assert band.sensitivity is not None
    assert band.specificity is not None
    assert band.sensitivity.value > np.mean(scores[labels] >= 0.4)
    assert band.specificity.value > np.mean(scores[~labels] < 0.4)
    assert band.sensitivity.n + band.specificity.n == 850
