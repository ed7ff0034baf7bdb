"""Perceptual hashes and the search among them: copies are found however made, and as comparing each with each would."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipelines import chest_xrays, hamming, perceptual, synthetic
from pipelines.hamming import Pairs, TooAlike, all_pairs, newcomers
from pipelines.near_duplicates import across_splits, confirmed

PICTURES, _ = synthetic.radiographs(40, rng=np.random.default_rng(3), size=64)


def thumbnails(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.stack([perceptual.thumbnail(picture) for picture in pictures])


def distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


def brute_force(hashes: NDArray[np.uint64], *, radius: int) -> set[tuple[int, int, int]]:
    found = set()
    for a in range(len(hashes)):
        for b in range(a + 1, len(hashes)):
            bits = distance(int(hashes[a]), int(hashes[b]))
            if bits <= radius and hashes[a] and hashes[b]:
                found.add((a, b, bits))
    return found


def listed(pairs: Pairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.distance.tolist(), strict=True))


def test_a_copy_of_another_size_depth_contrast_or_compression_has_nearly_the_same_hash() -> None:
    picture = PICTURES[0]
    whole = perceptual.perceptual_hash(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=80)
    copies = {
        "sixteen bits": picture.astype(np.uint16) * 257,
        "colour": np.repeat(picture[:, :, None], 3, axis=2),
        "larger": np.asarray(Image.fromarray(picture).resize((173, 200), Image.Resampling.BICUBIC)),
        "less contrast": (picture // 2 + 40).astype(np.uint8),
        "jpeg": np.asarray(Image.open(buffer)),
        "floats": picture.astype(np.float32) / 255.0,
    }
    assert {
        name: distance(whole, perceptual.perceptual_hash(copy)) <= 6 for name, copy in copies.items()
    } == dict.fromkeys(copies, True)
    assert perceptual.perceptual_hash(copies["sixteen bits"]) == whole


def test_a_volume_is_hashed_by_its_mean_slice() -> None:
    volume = np.stack([PICTURES[0]] * 5)
    assert perceptual.perceptual_hash(volume) == perceptual.perceptual_hash(PICTURES[0])


def test_a_flat_image_has_the_hash_0_and_resembles_nothing() -> None:
    flat = np.full((50, 30), 7, dtype=np.uint8)
    assert perceptual.perceptual_hash(flat) == 0
    assert len(all_pairs(np.zeros(50, dtype=np.uint64), radius=12)) == 0
    assert len(newcomers(np.zeros(9, dtype=np.uint64), new=np.arange(2), radius=3)) == 0
    assert perceptual.likeness(thumbnails(flat[None]), thumbnails(flat[None])).tolist() == [0.0]


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 2, 2, 2)])
def test_what_is_no_image_has_no_hash(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no image"):
        perceptual.perceptual_hash(np.zeros(shape, dtype=np.uint8))


def test_the_thumbnail_averages_over_areas() -> None:
    picture = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    expected = picture.reshape(32, 2, 32, 3).mean(axis=(1, 3)) / 65535.0
    assert perceptual.thumbnail(picture) == pytest.approx(expected, abs=1e-6)


def test_likeness_tells_a_moved_noisy_copy_from_another_patient() -> None:
    rng = np.random.default_rng(0)
    moved = np.roll(PICTURES, 2, axis=1)
    noisy = np.clip(moved + rng.normal(0.0, 4.0, moved.shape), 0, 255).astype(np.uint8)
    same = perceptual.likeness(thumbnails(PICTURES), thumbnails(noisy))
    other = perceptual.likeness(thumbnails(PICTURES), thumbnails(np.roll(PICTURES, 1, axis=0)))
    assert same.min() > 0.95 > other.max()
    assert perceptual.likeness(thumbnails(PICTURES), thumbnails(PICTURES)) == pytest.approx(np.ones(40), abs=1e-5)


@st.composite
def crowded(draw: st.DrawFn) -> NDArray[np.uint64]:
    """Hashes of which many are close: a few centres with some bits turned, equal ones and zeros among them."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    turned = st.lists(st.integers(0, 63), max_size=14)
    values = draw(st.lists(st.tuples(st.sampled_from(centres), turned), max_size=40))
    hashes = [centre ^ sum(1 << bit for bit in set(bits)) for centre, bits in values]
    return np.array([*hashes, *draw(st.lists(st.just(0), max_size=2))], dtype=np.uint64)


@given(hashes=crowded(), radius=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_the_search_finds_what_comparing_each_with_each_finds(hashes: NDArray[np.uint64], radius: int) -> None:
    found = listed(all_pairs(hashes, radius=radius))
    assert found == sorted(brute_force(hashes, radius=radius))


@pytest.mark.parametrize("in_bands", [True, False])
@given(hashes=crowded(), radius=st.integers(0, 12), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_search_for_newcomers_finds_each_pair_with_one_of_them_once(
    in_bands: bool, hashes: NDArray[np.uint64], radius: int, data: st.DataObject
) -> None:
    asking = np.array(data.draw(st.lists(st.booleans(), min_size=len(hashes), max_size=len(hashes))), dtype=np.bool_)
    expected = {(a, b, d) for a, b, d in brute_force(hashes, radius=radius) if asking[a] or asking[b]}
    if in_bands:
        batches = hamming._in_bands(hashes, asking=asking, radius=radius)
    else:
        batches = hamming._in_tables(hashes, asking=asking, radius=radius, blocks=radius + 2)
    assert listed(Pairs.joined(list(batches))) == sorted(expected)
    assert listed(newcomers(hashes, new=np.flatnonzero(asking), radius=radius)) == sorted(expected)


def test_ranges_are_written_out_some_numbers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_AT_ONCE", 4)
    starts, ends = np.array([5, 9, 0, 7, 1]), np.array([8, 9, 6, 8, 3])
    pieces = list(hamming._spread(starts, ends))
    assert max(len(which) for which, _ in pieces) <= 6  # one range is never cut
    written = [pair for which, numbers in pieces for pair in zip(which.tolist(), numbers.tolist(), strict=True)]
    assert written == [(k, n) for k in range(5) for n in range(starts[k], ends[k])]


def test_a_radius_at_which_everything_looks_alike_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"0\.\.12"):
        all_pairs(np.ones(3, dtype=np.uint64), radius=13)
    monkeypatch.setattr(hamming, "MAX_PAIRS", 100)
    with pytest.raises(TooAlike, match="smaller radius"):
        all_pairs(np.full(60, 5, dtype=np.uint64), radius=2)


def test_many_hashes_are_searched_in_less_than_quadratic_time() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**63, size=100_000, dtype=np.uint64)
    hashes[70_000] = hashes[123] ^ np.uint64(0b10100100)
    started = time.process_time()
    assert listed(all_pairs(hashes, radius=6)) == [(123, 70_000, 3)]
    assert listed(newcomers(hashes, new=np.array([70_000]), radius=6)) == [(123, 70_000, 3)]
    assert time.process_time() - started < 15.0  # each with each takes half a minute


def test_pictures_are_looked_at_before_a_pair_is_called_a_copy() -> None:
    pictures = [PICTURES[0], np.roll(PICTURES[0], 1, axis=0), PICTURES[1]]
    every = Pairs(first=np.array([0, 0]), second=np.array([1, 2]), distance=np.zeros(2, dtype=np.uint8))
    asked: list[list[int]] = []

    def fetch(rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        asked.append(rows.tolist())
        return [pictures[row] for row in rows]

    kept = confirmed(every, first=fetch, second=fetch, minimum_likeness=0.95)
    assert listed(kept) == [(0, 1, 0)]
    assert asked == [[0], [1, 2]]


def test_a_newcomer_waits_for_its_twin_in_another_split_and_an_incumbent_stays() -> None:
    #        case 1 (old, train) ~ 4 (new, tune) ~ 5 (new, train);  2 (new, tune) ~ 3 (new, test);  6, 7 old, apart
    pairs = Pairs(
        first=np.array([0, 1, 3, 5]), second=np.array([3, 2, 4, 6]), distance=np.array([2, 4, 0, 1], dtype=np.uint8)
    )
    splits = np.array(["train", "tune", "sealed_test", "tune", "train", "train", "tune"])
    incumbent = np.array([True, False, False, False, False, True, True])
    waits = across_splits(pairs, splits=splits, incumbent=incumbent, order=np.arange(1, 8))
    # 4 waits for 1; 5's only twin waits, so 5 enters; of 2 and 3 the lower case id enters; 6 and 7 are for the gate.
    assert [(twin.row, twin.other, twin.distance) for twin in waits] == [(2, 1, 4), (3, 0, 2)]


@pytest.fixture(scope="module")
def radiographs() -> chest_xrays.ChestXrays:
    found = chest_xrays.find(cache=Path("there-is-none"))
    if not found.real:
        pytest.skip(f"NOT TESTED on real radiographs: no PneumoniaMNIST at {chest_xrays.SHARED}")
    return found


def test_the_eight_twins_of_pneumoniamnist_are_found_exactly_and_by_likeness(
    radiographs: chest_xrays.ChestXrays,
) -> None:
    parts = [radiographs.train_images, radiographs.val_images, radiographs.test_images]
    pictures = np.concatenate(parts)
    splits = np.repeat(["train", "tune", "sealed_test"], [len(part) for part in parts])
    expected = set()
    where: dict[bytes, list[int]] = {}
    for row, picture in enumerate(pictures):
        for earlier in where.setdefault(picture.tobytes(), []):
            expected.add((earlier, row))
        where[picture.tobytes()].append(row)
    crossing = {(a, b) for a, b in expected if splits[a] != splits[b]}
    assert len({b for _, b in crossing if splits[b] == "tune"}) == 8

    hashes = perceptual.hash_thumbnails(thumbnails(pictures))
    found = confirmed(
        all_pairs(hashes, radius=6),
        first=lambda rows: list(pictures[rows]),
        second=lambda rows: list(pictures[rows]),
        minimum_likeness=0.95,
    )
    pairs = {(a, b) for a, b, _ in listed(found)}
    assert {pair for pair in pairs if splits[pair[0]] != splits[pair[1]]} == crossing
    assert pairs == expected  # no other pair of the 17 million is called a copy
