"""Evidence that may be looked at at any time: the bets by hand, shadows that pass, alarms that go off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines import alarm, betting, shadow
from pipelines.metrics import MetricError


def test_the_capital_is_worked_by_hand() -> None:
    # imagined: 2 cases, mean .5, variance .25; claim .4. First bet: .1 / (.25 + .01) = .3846
    found = betting.capital(np.array([1.0, 0.0]), 0.4, expected=0.5, spread=0.25, weight=2.0)
    first = 0.1 / 0.26
    # then mean (1 + 1) / 3, variance .25 about .5 less (1/6)^2
    edge = 0.5 + 0.5 / 3 - 0.4
    second = min(edge / ((2 * 0.25 + 0.25) / 3 - (0.5 / 3) ** 2 + edge**2), 0.5 / 0.4)
    assert found.tolist() == pytest.approx([1 + first * 0.6, (1 + first * 0.6) * (1 - second * 0.4)])


def test_no_bet_looks_ahead() -> None:
    rng = np.random.default_rng(0)
    values, other = rng.random(200), rng.random(200)
    arguments = {"expected": 0.5, "spread": 0.1, "weight": 10.0, "memory": 50.0}
    whole = betting.capital(values, 0.45, **arguments)  # type: ignore[arg-type]
    changed = betting.capital(np.concatenate([values[:100], other[100:]]), 0.45, **arguments)  # type: ignore[arg-type]
    assert whole[:100].tolist() == changed[:100].tolist()
    assert whole[100] != changed[100]


def test_never_more_than_half_of_the_capital_is_at_stake_and_nothing_where_the_claim_seems_true() -> None:
    won_then_lost = np.concatenate([np.ones(100), np.zeros(1)])
    found = betting.capital(won_then_lost, 0.45, expected=0.5, spread=0.1, weight=1.0)
    assert found[-1] == pytest.approx(found[-2] * 0.5)
    assert betting.capital(np.zeros(50), 0.5, expected=0.5, spread=0.1, weight=1.0).tolist() == [1.0] * 50


def test_capital_against_a_true_claim_does_not_grow_on_average() -> None:
    rng = np.random.default_rng(1)
    draws = [betting.capital(rng.random(40) < 0.3, 0.3, expected=0.5, spread=0.25, weight=5.0)[-1] for _ in range(4000)]
    assert np.mean(draws) <= 1.0 + 3 * np.std(draws) / math.sqrt(4000)


def test_a_memory_forgets() -> None:
    values = np.repeat([0.0, 1.0], [500, 40])
    sharp = betting.capital(values, 0.3, expected=0.3, spread=0.2, weight=10.0, memory=20.0)
    dull = betting.capital(values, 0.3, expected=0.3, spread=0.2, weight=10.0)
    assert sharp[-1] > 20.0
    assert dull[-1] < 2.0


@pytest.mark.parametrize("spoilt", [[float("nan")], [1.1], [-0.1], [[0.5]]])
def test_values_that_are_none_are_no_bets(spoilt: Any) -> None:
    with pytest.raises(MetricError, match=r"\[0, 1\]"):
        betting.capital(np.array(spoilt), 0.5, expected=0.5, spread=0.1, weight=1.0)


@pytest.mark.parametrize("claim", [0.0, 1.0])
def test_a_claim_of_nothing_or_of_everything_is_refused(claim: float) -> None:
    with pytest.raises(MetricError, match="claim"):
        betting.capital(np.array([0.5]), claim, expected=0.5, spread=0.1, weight=1.0)


def test_a_shadow_that_is_as_good_passes_and_says_when() -> None:
    found = shadow.follow(np.zeros(3000), margin=0.02, alpha=0.05)
    assert found.verdict == "pass"
    assert found.passed_at is not None
    assert found.evidence[found.passed_at - 1] >= 20.0 > found.evidence[found.passed_at - 2]
    stricter = shadow.follow(np.zeros(3000), margin=0.02, alpha=0.01)
    assert stricter.passed_at is not None
    assert stricter.passed_at > found.passed_at


def test_what_has_passed_once_stays_passed_whatever_comes_after() -> None:
    passed = shadow.follow(np.zeros(3000), margin=0.02, alpha=0.05)
    later = shadow.follow(np.concatenate([np.zeros(3000), np.full(500, -1.0)]), margin=0.02, alpha=0.05)
    assert (later.verdict, later.passed_at) == ("pass", passed.passed_at)
    assert later.evidence[-1] < 1.0


def test_a_shadow_that_is_worse_never_passes_and_a_short_one_not_yet() -> None:
    rng = np.random.default_rng(0)
    worse = rng.choice([-1.0, 0.0], 4000, p=[0.05, 0.95])
    found = shadow.follow(worse, margin=0.02, alpha=0.05)
    assert (found.verdict, found.passed_at) == ("insufficient", None)
    assert shadow.follow(np.zeros(50), margin=0.02, alpha=0.05).verdict == "insufficient"
    empty = shadow.follow(np.empty(0), margin=0.02, alpha=0.05)
    assert (empty.verdict, empty.reason) == ("insufficient", "evidence 1.0 of 20 after 0 cases")


@pytest.mark.parametrize(
    ("differences", "margin", "discordance"),
    [([float("nan")], 0.02, 0.06), ([2.0], 0.02, 0.06), ([0.0], 0.0, 0.06), ([0.0], 0.02, 0.0)],
)
def test_a_shadow_that_cannot_be_followed_fails_with_the_reason(
    differences: list[float], margin: float, discordance: float
) -> None:
    found = shadow.follow(np.array(differences), margin=margin, alpha=0.05, discordance=discordance)
    assert found.verdict == "fail"
    assert "could not be measured" in found.reason


def test_the_limit_is_the_upper_bound_of_the_sealed_test_and_the_tolerance() -> None:
    bound = stats.binomtest(5, 50).proportion_ci(confidence_level=0.9, method="exact").high
    assert alarm.limit_of(errors=5, n=50, tolerance=0.05, alpha=0.05) == pytest.approx(bound + 0.05, abs=1e-9)
    with pytest.raises(MetricError, match="tolerance"):
        alarm.limit_of(errors=5, n=50, tolerance=-0.01, alpha=0.05)


def test_harm_raises_the_alarm_and_good_order_does_not() -> None:
    rng = np.random.default_rng(0)
    harmed = alarm.watch((rng.random(1000) < 0.35).astype(float), limit=0.15, alpha=0.05)
    assert harmed.raised
    assert harmed.raised_at is not None
    assert harmed.evidence[harmed.raised_at - 1] >= 20.0 > harmed.evidence[harmed.raised_at - 2]
    assert f"shown after {harmed.raised_at} labels" in harmed.reason
    calm = alarm.watch((rng.random(1000) < 0.10).astype(float), limit=0.15, alpha=0.05)
    assert not calm.raised
    assert calm.reason == "in order after 1000 labels: not shown to err in more than 15.0%"


def test_an_alarm_that_went_off_is_not_taken_back_by_better_weeks() -> None:
    losses = np.concatenate([np.ones(60), np.zeros(2000)])
    assert alarm.watch(losses, limit=0.15, alpha=0.05).raised


@pytest.mark.parametrize(("losses", "limit"), [([float("nan")], 0.15), ([2.0], 0.15), ([0.0], 1.0), ([0.0], 0.0)])
def test_a_champion_that_cannot_be_watched_raises_the_alarm(losses: list[float], limit: float) -> None:
    found = alarm.watch(np.array(losses), limit=limit, alpha=0.05)
    assert found.raised
    assert found.raised_at is None
    with pytest.raises(MetricError, match="alpha"):
        alarm.watch(np.array(losses), limit=limit, alpha=0.0)
