"""PneumoSites-6: the same for everyone, as its table says, and no image in two hospitals."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pipelines import chest_xrays, sites


@cache
def xrays() -> chest_xrays.ChestXrays:
    """Synthetic ones, with the sizes of the real ones; the counts below need 2,666 of pneumonia."""
    return chest_xrays.find(cache=Path("/nonexistent"), shared=None, seed=3)


def _enough() -> chest_xrays.ChestXrays:
    """As many of each class as PneumoniaMNIST has to train on."""
    labels = xrays().train_labels.copy()
    labels[:] = 1
    labels[np.random.default_rng(0).permutation(len(labels))[:1214]] = 0
    return chest_xrays.ChestXrays(
        train_images=xrays().train_images,
        train_labels=labels,
        val_images=xrays().val_images,
        val_labels=xrays().val_labels,
        test_images=xrays().test_images,
        test_labels=xrays().test_labels,
        source="shuffled labels",
        real=False,
    )


@pytest.fixture(scope="module")
def dealt() -> dict[str, sites.SiteCases]:
    return sites.deal(_enough(), seed=0)


@pytest.fixture
def images() -> sites.Images:
    return xrays().test_images[:64].astype(np.float32) / np.float32(255.0)


def test_each_site_brings_what_the_table_says(dealt: dict[str, sites.SiteCases]) -> None:
    counts = {name: np.bincount(hand.train_labels).tolist() for name, hand in dealt.items()}
    assert counts == {
        "A": [260, 380],
        "B": [130, 510],
        "C": [200, 440],
        "D": [64, 576],
        "E": [320, 320],
        "F": [200, 440],
    }


def test_no_radiograph_is_in_two_sites(dealt: dict[str, sites.SiteCases]) -> None:
    rows = np.concatenate([hand.train_rows for hand in dealt.values()])
    assert len(np.unique(rows)) == len(rows) == 3840


def test_every_site_shows_all_of_val_and_test_in_the_same_order(dealt: dict[str, sites.SiteCases]) -> None:
    for hand in dealt.values():
        assert (hand.test_labels == xrays().test_labels).all()
        assert (hand.val_labels == xrays().val_labels).all()
        assert hand.test_images.shape == xrays().test_images.shape


def test_the_same_seed_deals_the_same_and_another_seed_other_training_but_the_same_tests(
    dealt: dict[str, sites.SiteCases],
) -> None:
    again, other = sites.deal(_enough(), seed=0), sites.deal(_enough(), seed=1)
    for name, hand in dealt.items():
        assert (again[name].train_images == hand.train_images).all()
        assert (again[name].test_images == hand.test_images).all()
        assert not np.array_equal(other[name].train_rows, hand.train_rows)
        assert (other[name].test_images == hand.test_images).all()


def test_a_share_of_the_stream_has_that_share_of_everything() -> None:
    small = sites.deal(_enough(), seed=0, share=0.25)
    assert np.bincount(small["D"].train_labels).tolist() == [16, 144]
    assert len(small["D"].test_labels) == pytest.approx(0.25 * len(xrays().test_labels), abs=1)


def test_too_few_radiographs_are_refused_with_how_many_are_missing() -> None:
    few = chest_xrays.ChestXrays(
        train_images=xrays().train_images[:700],
        train_labels=np.r_[np.zeros(300, dtype=np.int64), np.ones(400, dtype=np.int64)],
        val_images=xrays().val_images,
        val_labels=xrays().val_labels,
        test_images=xrays().test_images,
        test_labels=xrays().test_labels,
        source="few",
        real=False,
    )
    with pytest.raises(sites.TooFewCases, match="site B lacks 90 of its 130 radiographs of class 0"):
        sites.deal(few, seed=0)


@pytest.mark.parametrize("name", list(sites.SITES))
def test_a_shift_keeps_shape_and_range_and_leaves_its_input_alone(name: str, images: sites.Images) -> None:
    before = images.copy()
    seen = sites.SITES[name].shift(images, np.random.default_rng(0))
    assert seen.shape == images.shape
    assert seen.dtype == np.float32
    assert 0.0 <= seen.min() <= seen.max() <= 1.0
    assert (images == before).all()
    assert np.array_equal(seen, images) == (name == "A")


def test_the_tones_are_those_of_the_table() -> None:
    grey = np.full((1, 28, 28), 0.4, dtype=np.float32)
    rng = np.random.default_rng(0)
    assert sites.sharp_and_hard(grey, rng)[0, 14, 14] == pytest.approx((0.4**0.6 - 0.5) * 1.4 + 0.55, abs=1e-5)
    assert sites.inverted(grey, rng)[0, 14, 14] == pytest.approx(0.6**1.2, abs=1e-6)
    noisy = sites.faint_and_noisy(np.repeat(grey, 200, axis=0), rng)
    level = 0.65 * (0.4 - 0.5) + 0.45
    assert noisy.mean() == pytest.approx(level, abs=1e-3)
    assert noisy.std() == pytest.approx(0.02 + 0.05 * np.sqrt(level), rel=0.02)


def test_the_coarse_site_has_14_pixels_a_side_and_32_levels_and_shutters_of_0_to_5_pixels(
    images: sites.Images,
) -> None:
    bright = 0.5 + images / 2.0
    seen = sites.coarse_and_collimated(bright, np.random.default_rng(0))
    assert np.allclose(seen * 31.0, np.rint(seen * 31.0), atol=1e-4)
    middle = seen[:, 6:22, 6:22]
    assert (middle[:, ::2, ::2] == middle[:, 1::2, 1::2]).all()
    dark_rows = (seen.max(axis=2) == 0.0).sum(axis=1)
    assert dark_rows.min() >= 0
    assert 5 < dark_rows.max() <= 10


def test_the_moved_site_has_its_marker_in_one_upper_corner(images: sites.Images) -> None:
    seen = sites.moved_and_marked(images, np.random.default_rng(0))
    left = (seen[:, 1:4, 1:5] == np.float32(0.95)).all(axis=(1, 2))
    right = (seen[:, 1:4, 23:27] == np.float32(0.95)).all(axis=(1, 2))
    assert (left ^ right).all()
    assert 0.2 < left.mean() < 0.8
