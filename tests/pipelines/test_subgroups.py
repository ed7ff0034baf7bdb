"""Subgroups: what stops a candidate, what is only watched, and that too few cases are never a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines import subgroups
from pipelines.paired import mean_difference
from pipelines.subgroups import Slice
from pipelines.types import Estimate


def _differences(*slices: tuple[int, int, int]) -> tuple[Any, list[Any]]:
    """Differences with (n, gained, lost) in each slice, and who is in which."""
    parts = [np.repeat([1.0, -1.0, 0.0], [gained, lost, n - gained - lost]) for n, gained, lost in slices]
    place = np.repeat(np.arange(len(slices)), [n for n, _, _ in slices])
    return np.concatenate(parts), [place == k for k in range(len(slices))]


def _judge(*slices: tuple[int, int, int], critical: tuple[int, ...] = (), **changes: Any) -> subgroups.Subgroups:
    differences, members = _differences(*slices)
    asked = [
        Slice(name=f"s{k}", members=one, tier="critical" if k in critical else "watched")
        for k, one in enumerate(members)
    ]
    return subgroups.judge(differences, asked, **{"margin": 0.05, "alpha": 0.05, "minimum": 50, **changes})


def test_equal_slices_pass() -> None:
    found = _judge((400, 10, 10), (400, 12, 12), critical=(0,))
    assert (found.verdict, found.reason) == ("pass", "no slice is harmed")
    assert [one.judged.verdict for one in found.slices] == ["pass", "pass"]


def test_a_harmed_watched_slice_stops_the_candidate_and_is_named() -> None:
    found = _judge((400, 40, 5), (400, 2, 30), (400, 10, 10))
    assert found.verdict == "fail"
    assert "s1: harmed: worse than the champion by 0.070 on 400 cases" in found.reason
    assert [one.judged.verdict for one in found.slices] == ["pass", "fail", "pass"]


def test_harm_in_one_of_many_slices_has_to_outdo_holm() -> None:
    alone = _judge((200, 3, 12))
    assert alone.slices[0].p_value == pytest.approx(stats.binomtest(12, 15, alternative="greater").pvalue)
    assert (alone.verdict, alone.slices[0].local_alpha) == ("fail", 0.05)
    crowd = _judge((200, 3, 12), *[(200, 6, 6)] * 11)
    assert crowd.verdict == "pass"
    assert crowd.slices[0].local_alpha == pytest.approx(0.05 / 12)


def test_a_critical_slice_has_to_be_shown_and_a_watched_one_need_not_be() -> None:
    unsure = (60, 3, 4)
    assert _judge(unsure, (400, 10, 10)).verdict == "pass"
    found = _judge(unsure, (400, 10, 10), critical=(0,))
    assert found.verdict == "insufficient"
    assert "s0: on 60 cases it may be" in found.reason
    worse = _judge((400, 10, 40), (400, 10, 10), critical=(0,))
    assert worse.verdict == "fail"
    assert "s0: worse than the champion by 0.075" in worse.reason


def test_too_few_cases_are_insufficient_and_stop_only_where_critical() -> None:
    found = _judge((49, 0, 20), (400, 10, 10))
    assert [one.judged.verdict for one in found.slices] == ["insufficient", "pass"]
    assert found.slices[0].judged.reason == "insufficient data: 49 of at least 50 cases"
    assert (found.verdict, found.reason) == ("pass", "1 of 2 slices have too few cases to say")
    assert _judge((49, 0, 0), (400, 10, 10), critical=(0,)).verdict == "insufficient"
    assert _judge((50, 0, 20), (400, 10, 10)).verdict == "fail"


def test_where_no_slice_could_be_measured_nothing_has_been_shown() -> None:
    assert _judge((10, 0, 0), (20, 0, 0)).verdict == "insufficient"
    assert subgroups.judge(np.zeros(9), [], margin=0.05, alpha=0.05).verdict == "insufficient"


def test_spoilt_values_fail_and_say_why() -> None:
    differences = np.zeros(100)
    differences[4] = np.nan
    found = subgroups.judge(differences, [Slice(name="s", members=np.ones(100, dtype=bool))], margin=0.05, alpha=0.05)
    assert found.verdict == "fail"
    assert "finite" in found.reason
    wrong = [Slice(name="s", members=np.ones(99, dtype=bool))]
    assert subgroups.judge(np.zeros(100), wrong, margin=0.05, alpha=0.05).verdict == "fail"


def test_many_cases_of_few_patients_are_not_taken_for_harm() -> None:
    values = np.tile(np.repeat([1.0, -1.0, 0.0], [2, 5, 5]), 40)
    members, patients = np.ones(480, dtype=bool), np.tile(np.arange(12), 40)
    loose = subgroups.judge(values, [Slice(name="s", members=members)], margin=0.05, alpha=0.05)
    tied = subgroups.judge(values, [Slice(name="s", members=members)], margin=0.05, alpha=0.05, groups=patients)
    assert (loose.verdict, tied.verdict) == ("fail", "pass")


def test_the_p_value_is_the_larger_of_the_normal_and_the_exact_one() -> None:
    few = np.repeat([-1.0, 0.0], [3, 97])
    found = subgroups.harm_p_value(few, mean_difference(few))
    assert found == pytest.approx(0.125)  # three discordant cases can show no more
    smooth = np.random.default_rng(0).normal(-0.05, 0.2, 200).clip(-1, 1)
    estimate = mean_difference(smooth)
    error = smooth.std(ddof=1) / np.sqrt(200)
    assert subgroups.harm_p_value(smooth, estimate) == pytest.approx(stats.norm.cdf(smooth.mean() / error))
    assert subgroups.harm_p_value(np.zeros(60), mean_difference(np.zeros(60))) == 1.0


def test_slices_are_the_values_of_attributes_that_have_several() -> None:
    traits = {"sex": np.array(["F", "M", "", "F"]), "site": np.array(["a"] * 4), "scanner": np.array([""] * 4)}
    found = subgroups.declared(traits, ["sex", "site", "scanner", "age_band"], ["sex=F"])
    assert [(name, members.tolist(), tier) for name, members, tier in found] == [
        ("sex=F", [True, False, False, True], "critical"),
        ("sex=M", [False, True, False, False], "watched"),
    ]


def test_a_critical_slice_nobody_is_in_is_not_forgotten() -> None:
    traits = {"sex": np.array(["M", "M"])}
    ((name, members, tier),) = subgroups.declared(traits, ["sex"], ["sex=F"])
    assert (name, members.tolist(), tier) == ("sex=F", [False, False], "critical")
    ((_, absent, _),) = subgroups.declared(traits, [], ["age_band=0-1"])
    assert absent.tolist() == [False, False]


def test_harm_within_the_tolerance_is_none() -> None:
    verdicts = [_judge((400, 5, 40), tolerance=tolerance).verdict for tolerance in (0.0, 0.05, 0.08, 0.3)]
    assert verdicts == ["fail", "fail", "pass", "pass"]


def test_as_many_gained_as_lost_are_no_harm_and_no_certainty() -> None:
    differences = np.repeat([1.0, -1.0, 0.0], [5, 5, 90])
    p_value = subgroups.harm_p_value(differences, mean_difference(differences))
    assert p_value == pytest.approx(stats.binomtest(5, 10, alternative="greater").pvalue)


def test_a_difference_without_an_error_is_no_evidence_of_harm() -> None:
    same = Estimate(value=-0.1, low=-0.1, high=-0.1, n=60, level=0.9)
    assert subgroups.harm_p_value(np.full(60, -0.1), same) == 1.0


@pytest.mark.parametrize(("n", "verdict"), [(49, "insufficient"), (50, "pass")])
def test_fifty_cases_are_enough_where_nothing_else_is_said(n: int, verdict: str) -> None:
    asked = [Slice(name="all", members=np.ones(n, dtype=np.bool_), tier="watched")]
    found = subgroups.judge(np.repeat([1.0, 0.0], [1, n - 1]), asked, margin=0.05, alpha=0.05)
    assert found.slices[0].judged.verdict == verdict


@pytest.mark.parametrize(
    "members", [np.ones(99, np.bool_), np.ones(101, np.bool_), np.ones((100, 1), np.bool_), np.ones(100), b"1" * 100]
)
def test_a_slice_that_does_not_say_who_is_in_it_fails(members: Any) -> None:
    asked = [Slice(name="odd", members=np.asarray(members), tier="watched")]
    (one,) = subgroups.judge(np.repeat([1.0, 0.0], [5, 95]), asked, margin=0.05, alpha=0.05).slices
    assert (one.judged.verdict, one.judged.reason[:31]) == ("fail", "the slice does not say of each ")
