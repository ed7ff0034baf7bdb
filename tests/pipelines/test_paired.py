"""Paired comparisons against independent implementations, worked numbers, and everything that is no comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from MLstatkit import Delong_test
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipelines import metrics, paired
from pipelines.metrics import MetricError
from pipelines.types import Estimate


def _models(n: int, *, seed: int, decimals: int = 2) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    shared = rng.normal(size=n)
    first, second = (1 / (1 + np.exp(-(k * labels + shared + rng.normal(size=n)))) for k in (2.0, 1.5))
    return labels, np.round(first, decimals), np.round(second, decimals)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [1, 6])
def test_the_paired_auroc_difference_equals_mlstatkit(seed: int, decimals: int) -> None:
    labels, candidate, champion = _models(240, seed=seed, decimals=decimals)
    z, _, area, other = Delong_test(labels, candidate, champion, return_ci=False, return_auc=True)[:4]
    found = metrics.paired_auroc_difference(labels, candidate, champion, level=0.9)
    assert found.value == pytest.approx(area - other, abs=1e-9)
    error = (found.high - found.low) / 2 / stats.norm.ppf(0.95)
    assert error == pytest.approx(abs((area - other) / z), abs=1e-6)


def test_the_influence_of_each_case_is_the_textbook_formula() -> None:
    labels, scores, _ = _models(90, seed=1)
    truth = labels == 1
    share, area = truth.mean(), metrics.auroc(labels, scores)
    below = [(scores[~truth] < s).mean() + (scores[~truth] == s).mean() / 2 for s in scores]
    above = [(scores[truth] > s).mean() + (scores[truth] == s).mean() / 2 for s in scores]
    weights = truth / share + ~truth / (1 - share)
    textbook = truth / share * below + ~truth / (1 - share) * above - weights * area
    found, terms = metrics.auroc_influence(labels, scores)
    assert found == pytest.approx(area)
    m, n = truth.sum(), (~truth).sum()
    sizes = np.where(truth, np.sqrt(m * (m - 1)) / m, np.sqrt(n * (n - 1)) / n)
    assert terms * sizes * len(labels) == pytest.approx(textbook, abs=1e-12)
    assert terms.sum() == pytest.approx(0.0, abs=1e-12)


def test_each_class_is_compared_one_against_the_rest_and_macro_is_their_mean() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    first, second = (rng.dirichlet(np.ones(3), 120) for _ in range(2))
    found = paired.class_auroc_differences(labels, first, second)
    for k, one in enumerate(found):
        expected = roc_auc_score(labels == k, first[:, k]) - roc_auc_score(labels == k, second[:, k])
        assert one.value == pytest.approx(expected, abs=1e-12)
    macro = metrics.paired_macro_auroc_difference(labels, first, second)
    assert macro.value == pytest.approx(np.mean([one.value for one in found]), abs=1e-12)
    assert {one.level for one in found} == {0.95}
    assert paired.class_auroc_differences(labels, first, second, level=0.6)[0].level == 0.6
    for one, other in ((first, second[:, :2]), (first[:, :2], second), (labels, labels), (first[None], second[None])):
        with pytest.raises(MetricError, match="shape"):
            paired.class_auroc_differences(labels, one, other)


def test_the_mean_difference_of_single_cases_is_the_paired_t_interval_with_normal_quantiles() -> None:
    values = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.85, 0.1])
    found = paired.mean_difference(values, level=0.9)
    half = stats.norm.ppf(0.95) * values.std(ddof=1) / np.sqrt(400)
    assert (found.value, found.n) == (values.mean(), 400)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-12)


def test_cases_of_one_patient_count_together() -> None:
    values = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 100, p=[0.05, 0.85, 0.1])
    alone, copied = paired.mean_difference(values), paired.mean_difference(np.tile(values, 9))
    grouped = paired.mean_difference(np.tile(values, 9), groups=np.tile(np.arange(100), 9))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert copied.high - copied.low < 0.5 * (alone.high - alone.low)


@pytest.mark.parametrize(("n", "verdict"), [(148, "insufficient"), (149, "pass")])
def test_cases_on_which_nothing_differs_show_no_more_than_so_many_can(n: int, verdict: str) -> None:
    # with 95 % confidence n patients without a loss rule out a share of 1 - 0.05^(1/n): .0200 at 149
    found = paired.mean_difference(np.zeros(n), level=0.9)
    assert found.low == pytest.approx(0.05 ** (1 / n) - 1)
    assert paired.non_inferior(found, margin=0.02).verdict == verdict


@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.25, 1.0])
def test_where_nothing_differs_the_unseen_share_could_be_of_either_kind(mean: float) -> None:
    found = paired.mean_difference(np.full(10, mean), level=0.9)
    unseen = 1.0 - 0.05**0.1
    assert (found.value, found.n, found.level) == (mean, 10, 0.9)
    assert found.low == pytest.approx(mean - unseen * (1.0 + mean))
    assert found.high == pytest.approx(mean + unseen * (1.0 - mean))


def test_two_patients_are_enough_and_no_interval_leaves_what_is_possible() -> None:
    found = paired.mean_difference(np.array([1.0, -0.9]))
    assert (found.low, found.high) == (-1.0, 1.0)
    shown = paired.mean_difference(np.array([1.0, 1.0, -1.0] * 2))
    assert shown.low < -0.3
    assert shown.high > 0.9


def test_losing_every_case_is_worse_and_winning_every_case_is_better() -> None:
    lost, won = paired.mean_difference(np.full(50, -1.0)), paired.mean_difference(np.full(50, 1.0))
    assert (lost.low, won.high) == (-1.0, 1.0)
    assert paired.non_inferior(lost, margin=0.02).verdict == "fail"
    assert paired.superior(won).verdict == "pass"


@pytest.mark.parametrize("spoilt", [[0.1, float("nan")], [0.1, 1.5], [[0.1, 0.2]], [[0.1], [0.2]], 0.1, [0.1], []])
def test_differences_that_are_none_are_refused(spoilt: Any) -> None:
    with pytest.raises(MetricError):
        paired.mean_difference(np.array(spoilt))


def _estimate(value: float, low: float, *, n: int = 100) -> Estimate:
    return Estimate(value=value, low=low, high=2 * value - low, n=n, level=0.9)


@pytest.mark.parametrize(
    ("value", "low", "verdict"),
    [
        (0.01, -0.019, "pass"),
        (0.01, -0.02, "insufficient"),  # just at the margin is not within it
        (-0.019, -0.05, "insufficient"),
        (-0.02, -0.05, "fail"),
        (-0.03, -0.05, "fail"),
        (float("nan"), 0.1, "fail"),
    ],
)
def test_non_inferior_means_that_the_lower_bound_is_above_minus_the_margin(
    value: float, low: float, verdict: str
) -> None:
    assert paired.non_inferior(_estimate(value, low), margin=0.02).verdict == verdict


def test_how_much_worse_is_told_without_its_sign() -> None:
    worse = paired.non_inferior(_estimate(-0.07, -0.09), margin=0.02, against="model 3")
    assert worse.reason == "worse than model 3 by 0.070"
    unsure = paired.non_inferior(_estimate(0.0, -0.09), margin=0.02)
    assert unsure.reason == "on 100 cases it may be 0.090 worse than the champion"


@pytest.mark.parametrize(
    ("value", "low", "verdict"),
    [
        (0.02, 0.001, "pass"),
        (0.02, 0.0, "insufficient"),
        (0.001, -0.1, "insufficient"),
        (0.0, -0.1, "fail"),
        (-0.05, -0.1, "fail"),
    ],
)
def test_superior_means_that_the_lower_bound_is_above_nothing(value: float, low: float, verdict: str) -> None:
    assert paired.superior(_estimate(value, low)).verdict == verdict


def test_a_handful_of_cases_shows_nothing_however_good_it_looks() -> None:
    few = _estimate(0.5, 0.4, n=19)
    for judged in (paired.non_inferior(few, margin=0.02), paired.superior(few)):
        assert judged.verdict == "insufficient"
        assert judged.reason == "only 19 cases, at least 20 are needed"
    assert paired.superior(_estimate(0.5, 0.4, n=20)).verdict == "pass"


@pytest.mark.parametrize(("better", "cases"), [(0.0, 928), (0.01, 412), (0.02, 231)])
def test_sample_sizes_are_those_of_lachins_formula(better: float, cases: int) -> None:
    assert paired.sample_size(discordance=0.06, margin=0.02, true_difference=better) == cases


def test_the_sample_size_has_the_power_it_was_made_for() -> None:
    n = paired.sample_size(discordance=0.06, margin=0.02)
    error = np.sqrt(0.06 / n)
    shown = Estimate(value=0.0, low=-1.6448536 * error, high=1.6448536 * error, n=n, level=0.9)
    assert paired.power(shown, margin=0.02) == pytest.approx(0.8, abs=0.001)
    assert paired.power(shown, margin=0.02, true_difference=0.01) > 0.95
    assert paired.power(shown, margin=0.02, true_difference=-0.02) == pytest.approx(0.05, abs=1e-6)
    assert paired.non_inferior(shown, margin=0.02).power == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(
    ("true_difference", "power"), [(0.0, 1.0), (-0.019, 1.0), (-0.02, 0.0), (-0.024, 0.0), (-0.1, 0.0), (0.5, 1.0)]
)
def test_what_is_known_without_error_is_shown_or_never(true_difference: float, power: float) -> None:
    known = Estimate(value=0.1, low=0.1, high=0.1, n=100, level=0.9)
    assert paired.power(known, margin=0.02, true_difference=true_difference) == power


def test_a_sample_size_is_made_up_to_the_edges_of_what_can_be() -> None:
    assert paired.sample_size(discordance=0.05, margin=0.02, true_difference=0.1) == 18
    assert paired.sample_size(discordance=0.25, margin=0.02, true_difference=0.5) == 0
    assert paired.sample_size(discordance=1.0, margin=0.02) == 15457


@pytest.mark.parametrize(
    ("margin", "better", "discordance"),
    [(0.02, -0.02, 0.06), (0.02, -0.05, 0.06), (0.02, 0.3, 0.06), (0.02, 0.0, 1.1)],
)
def test_no_sample_size_is_made_up_where_none_would_do(margin: float, better: float, discordance: float) -> None:
    with pytest.raises(MetricError, match=rf"no number of cases .* above -{margin:g} "):
        paired.sample_size(discordance=discordance, margin=margin, true_difference=better)


def test_the_bootstrap_of_the_mean_agrees_with_the_clustered_interval() -> None:
    rng = np.random.default_rng(3)
    patients = rng.integers(0, 150, 600)
    values = np.clip(rng.normal(0.05, 0.1, 150)[patients] + rng.normal(0, 0.1, 600), -1, 1)
    formula = paired.mean_difference(values, groups=patients)
    found = paired.bootstrap_mean_difference(values, groups=patients, rng=np.random.default_rng(0))
    assert found.value == pytest.approx(formula.value)
    assert found.high - found.low == pytest.approx(formula.high - formula.low, rel=0.1)
    loose = paired.bootstrap_mean_difference(values, rng=np.random.default_rng(0))
    assert loose.high - loose.low < 0.7 * (found.high - found.low)


def test_the_vectorised_bootstrap_of_auroc_gives_the_numbers_of_a_loop_over_scikit_learn() -> None:
    labels, candidate, champion = _models(80, seed=5, decimals=1)
    patients = np.arange(80) // 2
    found = paired.bootstrap_auroc_difference(
        labels, candidate, champion, groups=patients, rng=np.random.default_rng(0), resamples=100, level=0.9
    )
    counts, draws = np.hstack(list(paired._draws(40, resamples=100, rng=np.random.default_rng(0)))), []
    assert counts.shape == (40, 100)
    assert (counts.sum(axis=0) == 40).all()
    for drawn in counts.T:
        weights = drawn[patients]
        draws.append(
            roc_auc_score(labels, candidate, sample_weight=weights)
            - roc_auc_score(labels, champion, sample_weight=weights)
        )
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])), abs=1e-6)


def test_a_bootstrap_of_a_class_too_rare_says_so() -> None:
    labels, scores = np.array([1, 0, 0]), np.array([0.9, 0.1, 0.2])
    with pytest.raises(MetricError, match="at least one case"):
        paired.bootstrap_mean_difference(np.empty(0), rng=np.random.default_rng(0))
    patients = np.array([0, 1, 1])  # a resample has either class by chance
    found = paired.bootstrap_auroc_difference(
        labels, scores, scores, groups=patients, rng=np.random.default_rng(0), resamples=50
    )
    assert (found.low, found.high) == (0.0, 0.0)


def test_a_bootstrap_in_which_no_resample_has_both_classes_says_so() -> None:
    labels, first, second = np.array([1, 0]), np.array([0.9, 0.1]), np.array([0.1, 0.9])
    told: set[Any] = set()
    for seed in range(20):
        try:
            found = paired.bootstrap_auroc_difference(
                labels, first, second, rng=np.random.default_rng(seed), resamples=1, level=0.8
            )
            told.add((found.value, found.low, found.high, found.n, found.level))
        except MetricError as error:
            told.add(str(error))
    assert told == {(1.0, 1.0, 1.0, 2, 0.8), "no resample has a value: a class is too rare"}


def test_a_bootstrap_says_nothing_else_than_its_level() -> None:
    labels, candidate, champion = _models(60, seed=1)
    rng = np.random.default_rng(0)
    assert paired.bootstrap_auroc_difference(labels, candidate, champion, rng=rng).level == 0.95
    assert paired.bootstrap_mean_difference(np.arange(30) % 2 - 0.5, rng=rng).level == 0.95
