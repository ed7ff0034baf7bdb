"""Shifts of mixes and of looks: the sizes against hand-worked and independent values, the tests against chance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines import shift, synthetic


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_mix_is_measured_by_half_the_sum_of_changes_and_tested_by_chi_square() -> None:
    before = np.repeat(["a", "b", "c"], [50, 30, 20])
    after = np.repeat(["a", "b", "c"], [40, 20, 40])
    found = shift.mix(before, after, rng=rng())
    assert found.distance == pytest.approx((0.1 + 0.1 + 0.2) / 2)
    assert (found.moved, found.share_before, found.share_after) == ("c", 0.2, 0.4)
    oracle = stats.chi2_contingency([[50, 30, 20], [40, 20, 40]], correction=False).pvalue
    assert found.p == pytest.approx(oracle)
    assert found.low < found.distance < found.high
    assert (found.before, found.after) == (100, 100)


def test_with_few_cases_the_p_of_a_mix_agrees_with_fishers_exact_test() -> None:
    before, after = np.repeat([0, 1], [14, 2]), np.repeat([0, 1], [3, 5])
    found = shift.mix(before, after, rng=rng())
    assert found.p == pytest.approx(stats.fisher_exact([[14, 2], [3, 5]]).pvalue, abs=0.02)


def test_one_category_everywhere_is_no_shift() -> None:
    found = shift.mix(np.full(40, "a"), np.full(3, "a"), rng=rng())
    assert (found.distance, found.p) == (0.0, 1.0)


def test_a_mix_needs_cases_on_both_sides() -> None:
    with pytest.raises(ValueError, match="no case"):
        shift.mix(np.array([]), np.array(["a"]), rng=rng())


def test_the_same_mix_is_rarely_called_a_shift_and_another_nearly_always() -> None:
    source = rng(1)
    same = [shift.mix(source.random(60) < 0.1, source.random(30) < 0.1, rng=rng(k)).p for k in range(100)]
    other = [shift.mix(source.random(60) < 0.1, source.random(30) < 0.7, rng=rng(k)).p for k in range(20)]
    assert np.mean(np.array(same) < 0.05) <= 0.12
    assert max(other) < 0.01


def test_energy_distance_agrees_with_an_independent_implementation() -> None:
    before, after = rng(1).normal(size=(80, 1)), rng(2).normal(0.7, 1.3, size=(50, 1))
    found = shift.look(before, after, names=["x"], rng=rng())
    scaled = [(side[:, 0] - before.mean()) / before.std() for side in (before, after)]
    across = np.abs(scaled[0][:, None] - scaled[1]).mean()
    assert found.distance == pytest.approx(stats.energy_distance(*scaled) ** 2 / (2.0 * across))
    assert found.by == pytest.approx((after.mean() - before.mean()) / before.std())
    assert found.p < 0.01


def test_the_same_look_is_rarely_called_a_shift() -> None:
    source = rng(3)
    sides = [(source.normal(size=(60, 4)), source.normal(size=(40, 4))) for _ in range(100)]
    p = [shift.look(*pair, names="abcd", rng=source).p for pair in sides]
    assert np.mean(np.array(p) < 0.05) <= 0.12
    assert 0.3 < np.mean(p) < 0.7


def test_darker_images_are_seen_and_named() -> None:
    pictures, _ = synthetic.radiographs(120, rng=rng(5))
    before = np.stack([shift.image_features(picture) for picture in pictures[:60]])
    after = np.stack([shift.image_features(picture // 2) for picture in pictures[60:]])
    found = shift.look(before, after, rng=rng())
    assert found.p == pytest.approx(0.001)
    assert found.moved in {"brightness", "contrast", "highlights"}
    assert found.by < -1.0


def test_a_feature_that_never_varied_and_now_does_is_seen() -> None:
    before = np.column_stack([rng(1).normal(size=50), np.full(50, 7.0)])
    after = np.column_stack([rng(2).normal(size=50), np.full(50, 9.0)])
    found = shift.look(before, after, names=["x", "size"], rng=rng())
    assert (found.moved, found.p) == ("size", pytest.approx(0.001))


def test_features_do_not_hang_on_bit_depth_or_channels() -> None:
    picture = synthetic.radiographs(1, rng=rng(5))[0][0]
    plain = shift.image_features(picture)
    assert shift.image_features(picture.astype(np.uint16) * 257) == pytest.approx(plain, abs=1e-5)
    assert shift.image_features(np.repeat(picture[:, :, None], 3, axis=2)) == pytest.approx(plain, abs=1e-3)
    assert shift.image_features(np.stack([picture] * 4)) == pytest.approx(plain, abs=1e-5)
    assert np.isfinite(shift.image_features(np.zeros((1, 1), dtype=np.uint8))).all()


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        shift.look(np.full((5, 2), np.nan), np.ones((5, 2)), names="ab", rng=rng())
    with pytest.raises(ValueError, match="fewer than two"):
        shift.look(np.ones((1, 2)), np.ones((5, 2)), names="ab", rng=rng())


def test_one_case_of_each_patient_is_drawn() -> None:
    groups = np.array(["p", "q", "p", "r", "q", "p"])
    rows = shift.one_of_each(groups, rng=rng())
    assert sorted(groups[rows]) == ["p", "q", "r"]
    assert len({tuple(shift.one_of_each(groups, rng=rng(k))) for k in range(20)}) > 1
