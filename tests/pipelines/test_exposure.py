"""Labels that readers copied from the champion: what they show, how copying is estimated, what a gate makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.exposure import copied_share, flip_point, measured_difference, on_both
from pipelines.metrics import MetricError


def test_copied_labels_turn_a_better_candidate_into_a_worse_one_at_the_flip_point() -> None:
    flip = flip_point(difference=0.05, agreement=0.85)
    assert flip == pytest.approx(0.25)
    assert measured_difference(difference=0.05, agreement=0.85, copied=flip) == pytest.approx(0.0)
    assert measured_difference(difference=0.05, agreement=0.85, copied=0.0) == pytest.approx(0.05)
    assert measured_difference(difference=0.05, agreement=0.85, copied=0.5) == pytest.approx(-0.05)


@pytest.mark.parametrize("difference", [0.0, -0.1, 0.2])
def test_there_is_no_flip_point_for_what_is_not_better_or_impossibly_so(difference: float) -> None:
    with pytest.raises(MetricError):
        flip_point(difference=difference, agreement=0.85)


def test_the_copied_share_is_worked_by_hand() -> None:
    # blind readers agree in 80 of 100, aided ones in 90 of 100: (.9 - .8) / (1 - .8) = .5
    agreed = np.repeat([True, False, True, False], [80, 20, 90, 10])
    blind = np.repeat([True, False], 100)
    found = copied_share(agreed, blind)
    assert found.value == pytest.approx(0.5)
    # delta method: var(a) / .2^2 + var(b) (.1 / .2^2)^2
    error = np.sqrt(0.09 / 99 / 0.04 + 0.16 / 99 * (0.1 / 0.04) ** 2)
    assert found.high - found.value == pytest.approx(1.959964 * error)
    wider = copied_share(np.tile(agreed, 2), np.tile(blind, 2), groups=np.tile(np.arange(200), 2))
    narrow = copied_share(np.tile(agreed, 2), np.tile(blind, 2))
    assert wider.high - wider.value == pytest.approx(found.high - found.value, rel=0.01)
    assert narrow.high - narrow.value < 0.75 * (found.high - found.value)


def test_readers_who_agree_less_when_aided_copy_nothing() -> None:
    agreed = np.repeat([True, False, True, False], [90, 10, 80, 20])
    assert copied_share(agreed, np.repeat([True, False], 100)).value == 0.0


@pytest.mark.parametrize(
    ("agreed", "blind", "words"),
    [
        (np.ones(40), np.repeat([1, 0], 20), "agree with the champion always"),
        (np.ones(39), np.repeat([1, 0], [20, 19]), "20 aided"),
        (np.ones(39), np.repeat([1, 0], [19, 20]), "20 blind"),
        (np.ones(3), np.ones(4), "each label needs both"),
    ],
)
def test_copying_that_cannot_be_told_is_not_guessed(agreed: Any, blind: Any, words: str) -> None:
    with pytest.raises(MetricError, match=words):
        copied_share(agreed, blind)


def _labels(*, blind_gain: float, aided_gain: float, blind: int = 400, aided: int = 600) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    unseen = np.arange(blind + aided) < blind
    gain = np.where(unseen, blind_gain, aided_gain)
    drawn = rng.random(blind + aided)
    differences = np.where(drawn < (0.15 + gain) / 2, 1.0, np.where(drawn < 0.15, -1.0, 0.0))
    agreed = rng.random(blind + aided) < np.where(unseen, 0.85, 0.95)
    return differences, agreed, unseen


def test_blind_labels_decide_and_the_reviewer_is_told_where_all_labels_say_otherwise() -> None:
    differences, agreed, blind = _labels(blind_gain=0.05, aided_gain=-0.14)
    found = on_both(differences, agreed, blind, margin=0.02)
    assert (found.blind.verdict, found.everything.verdict) == ("pass", "fail")
    assert found.copied is not None
    assert found.copied.low > 0.3
    assert found.warning is not None
    assert "blind labels say pass where all labels say fail" in found.warning
    assert "copied the champion in about" in found.warning


def test_where_nobody_copies_there_is_nothing_to_warn_of() -> None:
    differences, _, blind = _labels(blind_gain=0.05, aided_gain=0.05)
    agreed = np.random.default_rng(1).random(1000) < 0.85
    found = on_both(differences, agreed, blind, margin=0.02)
    assert (found.blind.verdict, found.warning) == ("pass", None)


def test_without_enough_blind_labels_nothing_passes_whatever_the_others_say() -> None:
    differences, agreed, blind = _labels(blind_gain=0.05, aided_gain=0.05, blind=19)
    found = on_both(differences, agreed, blind, margin=0.02)
    assert (found.blind.verdict, found.everything.verdict) == ("insufficient", "pass")
    assert found.blind.reason == "only 19 blind labels, at least 20 are needed"
    assert found.copied is None


def test_spoilt_differences_fail_with_the_reason() -> None:
    differences, agreed, blind = _labels(blind_gain=0.05, aided_gain=0.05)
    differences[3] = np.nan
    found = on_both(differences, agreed, blind, margin=0.02)
    assert found.blind.verdict == found.everything.verdict == "fail"
    assert "finite" in found.blind.reason
    with pytest.raises(MetricError, match="marked as blind"):
        on_both(differences[:5], agreed, blind, margin=0.02)
