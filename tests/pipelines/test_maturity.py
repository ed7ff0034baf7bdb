"""Late labels and selective verification: estimators against the truth they were drawn from, and worked tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines import maturity
from pipelines.metrics import MetricError
from pipelines.types import Estimate


def test_where_every_case_is_old_the_arrivals_are_the_plain_shares() -> None:
    found = maturity.arrivals(np.array([1.0, 1.0, 3.0, 8.0]), np.full(4, 100.0))
    assert found.days.tolist() == [1.0, 3.0, 8.0]
    assert found.shares.tolist() == pytest.approx([0.5, 0.75, 1.0])
    assert found.at(np.array([0.5, 1.0, 2.9, 3.0, 99.0])).tolist() == pytest.approx([0.0, 0.5, 0.5, 0.75, 1.0])


def test_labels_still_to_come_do_not_make_labels_look_early() -> None:
    # of delays 1 (seen whatever the age) and 5 (seen only in the old): reverse product limit by hand
    delays, ages = np.array([1.0, 1.0, 1.0, 5.0]), np.array([2.0, 2.0, 9.0, 9.0])
    found = maturity.arrivals(delays, ages)
    assert found.at(np.array([1.0]))[0] == pytest.approx(0.5)  # of the two cases old enough to show it, one came later
    assert (delays <= 1.0).mean() == 0.75


def test_the_arrivals_of_cases_of_every_age_are_those_they_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    delays, ages = rng.exponential(20.0, 40_000), rng.uniform(0.0, 200.0, 40_000)
    seen = delays <= ages
    found = maturity.arrivals(delays[seen], ages[seen])
    at = np.array([5.0, 20.0, 60.0])
    assert found.at(at) == pytest.approx(1 - np.exp(-at / 20.0), abs=0.01)
    naive = (delays[seen] <= 20.0).mean()
    assert abs(naive - (1 - np.exp(-1.0))) > 0.03


def test_a_case_is_mature_once_the_slowest_class_has_come() -> None:
    fast = maturity.Arrivals(days=np.array([1.0, 2.0]), shares=np.array([0.9, 1.0]))
    slow = maturity.Arrivals(days=np.array([1.0, 30.0, 90.0]), shares=np.array([0.2, 0.95, 1.0]))
    assert maturity.maturity_day({"positive": fast, "negative": slow}) == 30.0
    assert maturity.maturity_day({"positive": fast, "negative": slow}, share=0.96) == 90.0
    never = maturity.Arrivals(days=np.array([1.0]), shares=np.array([0.5]))
    with pytest.raises(MetricError, match="negative never reach 95%"):
        maturity.maturity_day({"positive": fast, "negative": never})
    with pytest.raises(MetricError):
        maturity.maturity_day({})


def test_a_labelled_case_stands_for_those_of_its_class_still_to_come() -> None:
    classes = {
        "pneumonia": maturity.Arrivals(days=np.array([1.0]), shares=np.array([0.8])),
        "normal": maturity.Arrivals(days=np.array([1.0, 9.0]), shares=np.array([0.1, 1.0])),
    }
    found = maturity.delay_weights(np.array([5.0, 5.0, 9.0]), np.array(["pneumonia", "normal", "normal"]), classes)
    assert found.tolist() == pytest.approx([1 / 0.8, 10.0, 1.0])
    with pytest.raises(MetricError, match="labels of other"):
        maturity.delay_weights(np.array([5.0]), np.array(["other"]), classes)
    with pytest.raises(MetricError, match="younger than any label"):
        maturity.delay_weights(np.array([0.5]), np.array(["normal"]), classes)


@pytest.mark.parametrize(
    ("delays", "ages"), [([], []), ([1.0], [0.5]), ([-1.0], [3.0]), ([float("nan")], [3.0]), ([1.0], [float("inf")])]
)
def test_delays_that_cannot_be_are_refused(delays: list[float], ages: list[float]) -> None:
    with pytest.raises(MetricError):
        maturity.arrivals(np.array(delays), np.array(ages))


def test_verified_cases_stand_for_the_unverified_of_their_score_and_site() -> None:
    scores = np.repeat([0.1, 0.9], [100, 20])
    verified = np.concatenate([np.arange(100) < 10, np.ones(20, dtype=bool)])
    found = maturity.verification_weights(verified, scores, np.full(120, "a"))
    assert found.weights.sum() == pytest.approx(120.0)
    assert set(found.weights.round(6).tolist()) == {0.0, 1.0, 10.0}
    assert found.share == pytest.approx(30 / 120)


def test_a_stratum_nobody_looked_at_is_named() -> None:
    verified = np.concatenate([np.arange(100) < 9, np.ones(20, dtype=bool)])
    with pytest.raises(MetricError, match=r"only 9 of 100 cases of a with scores 0\.00 to 0\.20"):
        maturity.verification_weights(verified, np.repeat([0.1, 0.9], [100, 20]), np.full(120, "a"))
    rare = maturity.verification_weights(np.ones(3), np.full(3, 1.0), np.full(3, "a"))  # all verified: nothing to guess
    assert rare.share == 1.0


@pytest.mark.parametrize(
    ("scores", "words"),
    [([1.1], "each case needs"), ([float("nan")], "each case needs"), ([0.1, 0.2], "each case needs"), ([], "no case")],
)
def test_verification_without_scores_is_refused(scores: list[float], words: str) -> None:
    with pytest.raises(MetricError, match=words):
        maturity.verification_weights(np.ones(len(scores) % 2), np.array(scores), np.ones(len(scores) % 2))


def test_a_weighted_share_is_worked_by_hand_and_with_equal_weights_is_the_plain_one() -> None:
    found = maturity.weighted_share(np.array([1, 0, 1]), np.array([1.0, 3.0, 0.0]))
    assert isinstance(found, Estimate)
    assert (found.value, found.n) == (pytest.approx(0.25), 2)
    plain = maturity.weighted_share(np.repeat([1, 0], [30, 70]), np.ones(100))
    assert plain.value == pytest.approx(0.3)
    assert plain.high - plain.value == pytest.approx(1.959964 * np.sqrt(0.3 * 0.7 / 100))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [1.0]])
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(MetricError, match="weight"):
        maturity.weighted_share(np.array([1, 0]), np.array(weights))
