"""Metrics against independent implementations and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from pipelines import metrics


def _cases(
    n: int, *, seed: int, decimals: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels and two correlated models' scores, rounded so that ties abound."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(np.int64)
    shared = rng.normal(size=n)
    scores = [1 / (1 + np.exp(-(k * labels + shared + rng.normal(size=n)))) for k in (2.0, 1.5)]
    return labels, np.round(scores[0], decimals), np.round(scores[1], decimals)


def _delong_by_pairs(
    labels: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[float, float]:
    """Difference and its standard error from the definition: all pairs, structural components, sample covariances."""
    components = []
    for scores in (first, second):
        cases, controls = scores[labels == 1][:, None], scores[labels == 0][None, :]
        kernel = (cases > controls) + 0.5 * (cases == controls)
        components.append((kernel.mean(axis=1), kernel.mean(axis=0)))
    s10 = np.cov([components[0][0], components[1][0]])
    s01 = np.cov([components[0][1], components[1][1]])
    total = s10 / (labels == 1).sum() + s01 / (labels == 0).sum()
    difference = components[0][0].mean() - components[1][0].mean()
    return float(difference), float(np.sqrt(total[0, 0] + total[1, 1] - 2 * total[0, 1]))


@given(seed=st.integers(0, 10_000), n=st.integers(6, 80))
@settings(max_examples=40, deadline=None)
def test_auroc_equals_scikit_learn_with_ties(seed: int, n: int) -> None:
    labels, scores, _ = _cases(n, seed=seed, decimals=1)
    assert metrics.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_difference_and_its_error_equal_delong_from_the_definition(seed: int) -> None:
    labels, first, second = _cases(150, seed=seed)
    difference, error = _delong_by_pairs(labels, first, second)
    found = metrics.paired_auroc_difference(labels, first, second, level=0.95)
    assert found.value == pytest.approx(difference, abs=1e-9)
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * error, abs=1e-6)


def test_the_delong_error_agrees_with_a_stratified_bootstrap() -> None:
    labels, first, second = _cases(300, seed=1)
    found = metrics.paired_auroc_difference(labels, first, second)
    rng = np.random.default_rng(0)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    draws = []
    for _ in range(250):
        rows = np.concatenate([rng.choice(positive, len(positive)), rng.choice(negative, len(negative))])
        draws.append(roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows]))
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(np.std(draws), rel=0.15)


def test_copies_of_the_same_patients_do_not_shrink_the_interval() -> None:
    labels, first, second = _cases(120, seed=2)
    once = metrics.paired_auroc_difference(labels, first, second)
    twice = [np.tile(part, 2) for part in (labels, first, second)]
    grouped = metrics.paired_auroc_difference(*twice, groups=np.tile(np.arange(120), 2))
    fooled = metrics.paired_auroc_difference(*twice)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.02)
    assert fooled.high - fooled.low < 0.8 * (once.high - once.low)


def test_identical_scores_differ_by_nothing() -> None:
    labels, first, _ = _cases(60, seed=3)
    found = metrics.paired_auroc_difference(labels, first, first)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_macro_auroc_equals_scikit_learn_one_vs_rest() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    scores = rng.dirichlet(np.ones(4), size=120)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    found = metrics.macro_auroc_estimate(labels, scores)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("k", "n"), [(0, 12), (12, 12), (3, 17), (281, 300)])
def test_proportions_have_the_intervals_scipy_gives(k: int, n: int) -> None:
    exact, score = metrics.clopper_pearson(k, n), metrics.wilson(k, n)
    reference = stats.binomtest(k, n)
    low, high = reference.proportion_ci(method="exact")
    assert (exact.low, exact.high) == pytest.approx((low, high), abs=1e-9)
    low, high = reference.proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((low, high), abs=1e-9)
    assert metrics.binomial_tail(k, n, rate=0.35) == pytest.approx(
        stats.binomtest(k, n, 0.35, alternative="greater").pvalue, abs=1e-12
    )


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs() -> None:
    first = np.array([1] * 40 + [1] * 9 + [0] * 2 + [0] * 9, dtype=bool)
    second = np.array([1] * 40 + [0] * 9 + [1] * 2 + [0] * 9, dtype=bool)
    found = metrics.mcnemar(first, second)
    assert (found.only_candidate, found.only_champion) == (9, 2)
    assert found.p_value == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert found.difference.value == pytest.approx(7 / 60)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((30, 0, 0, 24), -0.0358, 0.0358),
    ],
)
def test_the_paired_interval_is_newcombes_published_one(
    cells: tuple[int, int, int, int], low: float, high: float
) -> None:
    # Newcombe, Statistics in Medicine 1998, 17:2635, table III, method 10, to the four digits printed
    both, only_first, only_second, neither = cells
    first = np.array([1] * (both + only_first) + [0] * (only_second + neither), dtype=bool)
    second = np.array([1] * both + [0] * only_first + [1] * only_second + [0] * neither, dtype=bool)
    found = metrics.mcnemar(first, second).difference
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def test_clustered_pairs_never_narrow_the_interval() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random(40) < 0.9, rng.random(40) < 0.7
    alone = metrics.mcnemar(first, second).difference
    clustered = metrics.mcnemar(np.tile(first, 5), np.tile(second, 5), groups=np.tile(np.arange(40), 5)).difference
    fooled = metrics.mcnemar(np.tile(first, 5), np.tile(second, 5)).difference
    assert clustered.high - clustered.low > 1.5 * (fooled.high - fooled.low)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.25)


def test_calibration_error_is_worked_by_hand() -> None:
    # two bins of two: |0.5 - 0.15| and |1.0 - 0.85|, weighted by half each
    assert metrics.ece(np.array([0, 1, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), bins=2) == pytest.approx(0.25)
    assert metrics.ece(np.array([1, 1, 0, 0]), np.array([1.0, 1.0, 0.0, 0.0])) == 0.0


def test_holm_steps_down_and_stops_at_the_first_that_stands() -> None:
    answers = metrics.holm([0.04, 0.001, 0.03], alpha=0.05)
    assert [rejected for rejected, _ in answers] == [False, True, False]
    assert [local for _, local in answers] == pytest.approx([0.05, 0.05 / 3, 0.025])


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.2, float("nan")], "finite"),
        ([0, 1], [0.2, 1.2], r"\[0, 1\]"),
        ([1, 1], [0.2, 0.4], "one negative"),
        ([0, 2], [0.2, 0.4], "0 or 1"),
        ([0, 1, 1], [0.2, 0.4], "cannot be paired"),
    ],
)
def test_what_has_no_value_is_refused_and_never_guessed(labels: list[int], scores: list[float], words: str) -> None:
    with pytest.raises(metrics.MetricError, match=words):
        metrics.auroc(np.array(labels), np.array(scores))
