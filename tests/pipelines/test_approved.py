"""Held against every approved model: what is acceptable, and that nothing missing is."""

from __future__ import annotations

import pytest

from pipelines.approved import acceptable, held_against, local_level
from pipelines.types import Estimate

MARGINS = {"sensitivity": 0.02, "specificity": 0.05}


def _shown(low: float, *, value: float | None = None, n: int = 500) -> Estimate:
    value = low + 0.01 if value is None else value
    return Estimate(value=value, low=low, high=2 * value - low, n=n, level=0.9)


GOOD = {
    "sensitivity": {"a": _shown(-0.01), "b": _shown(-0.01)},
    "specificity": {"a": _shown(-0.04), "b": _shown(-0.04)},
}


def test_a_candidate_that_is_not_worse_than_anyone_on_anything_is_acceptable() -> None:
    judged = acceptable(GOOD, margins=MARGINS)
    assert (judged.verdict, judged.reason) == ("pass", "not worse than any of 2 approved models")
    assert len(judged.comparisons) == 4


@pytest.mark.parametrize("endpoint", MARGINS)
@pytest.mark.parametrize("model", ["a", "b"])
def test_one_model_on_one_endpoint_is_enough_to_stop_it(endpoint: str, model: str) -> None:
    worse = {**GOOD, endpoint: {**GOOD[endpoint], model: _shown(-0.09, value=-0.07)}}
    judged = acceptable(worse, margins=MARGINS)
    assert (judged.verdict, judged.reason) == ("fail", f"{endpoint}: worse than {model} by 0.070")
    unsure = {**GOOD, endpoint: {**GOOD[endpoint], model: _shown(-0.09, value=0.0)}}
    assert acceptable(unsure, margins=MARGINS).verdict == "insufficient"


def test_each_endpoint_has_its_own_margin() -> None:
    assert acceptable(GOOD, margins={"sensitivity": 0.02, "specificity": 0.04}).verdict == "insufficient"


def test_a_model_that_one_endpoint_was_not_compared_with_fails() -> None:
    missing = {"sensitivity": GOOD["sensitivity"], "specificity": {"a": _shown(-0.01)}}
    judged = acceptable(missing, margins=MARGINS)
    assert (judged.verdict, judged.reason) == ("fail", "specificity: not compared with b")


@pytest.mark.parametrize(("differences", "margins"), [({}, MARGINS), ({"sensitivity": {}}, MARGINS), (GOOD, {})])
def test_nothing_to_compare_with_is_never_a_pass(
    differences: dict[str, dict[str, Estimate]], margins: dict[str, float]
) -> None:
    assert acceptable(differences, margins=margins).verdict == "fail"


def test_one_endpoint_that_is_better_is_enough_and_none_is_not() -> None:
    better, unsure, worse = _shown(0.01), _shown(-0.01, value=0.005), _shown(-0.05)
    judged = acceptable(GOOD, margins=MARGINS, improvements={"auroc": worse, "worst site": better})
    assert (judged.verdict, judged.reason) == ("pass", "not worse than any of 2 approved models")
    judged = acceptable(GOOD, margins=MARGINS, improvements={"auroc": unsure, "worst site": worse})
    assert judged.verdict == "insufficient"
    assert "auroc looks better than the champion, but 500 cases do not show it" in judged.reason
    assert acceptable(GOOD, margins=MARGINS, improvements={"auroc": worse}).verdict == "fail"
    assert acceptable(GOOD, margins=MARGINS, improvements={}).verdict == "fail"


def test_better_than_the_champion_does_not_outweigh_worse_than_the_original() -> None:
    worse = {**GOOD, "sensitivity": {"a": _shown(-0.09, value=-0.07), "b": _shown(0.01)}}
    assert acceptable(worse, margins=MARGINS, improvements={"sensitivity": _shown(0.01)}).verdict == "fail"


def test_few_cases_are_told_from_worse() -> None:
    few = {"sensitivity": {"a": _shown(0.0, n=12)}}
    judged = acceptable(few, margins={"sensitivity": 0.02})
    assert (judged.verdict, judged.reason) == ("insufficient", "sensitivity: only 12 cases, at least 20 are needed")
    better = {"sensitivity": _shown(0.01, n=20)}
    assert acceptable(GOOD, margins=MARGINS, improvements=better, minimum=20).verdict == "pass"
    assert acceptable(GOOD, margins=MARGINS, improvements=better, minimum=21).verdict == "insufficient"


def test_the_original_is_never_forgotten() -> None:
    assert held_against("abcdef", window=2) == ("a", "e", "f")
    assert held_against("abcd", window=1) == ("a", "d")
    assert held_against("abc", window=15) == ("a", "b", "c")
    assert held_against("") == ()
    with pytest.raises(ValueError, match="at least one more"):
        held_against("abc", window=0)


def test_the_level_is_shared_by_the_window_and_the_looks() -> None:
    assert local_level(0.05) == pytest.approx(0.05 / 20)
    assert local_level(0.05, window=1, looks=1) == pytest.approx(0.025)
    assert local_level(0.05, window=10, looks=0) == pytest.approx(0.005)
    assert local_level(0.9) == pytest.approx(0.9 / 20)
    for spoilt in (-0.1, 0.0, 1.0, 1.1):
        with pytest.raises(ValueError, match="alpha"):
            local_level(spoilt)
    for wrong in ({"window": 0}, {"looks": -1}):
        with pytest.raises(ValueError, match="window"):
            local_level(0.05, **wrong)
