"""The class-incremental track: pairs of classes arrive, the head grows, and who forgets is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import classes, stream


def test_pairs_arrive_in_the_order_asked_for_and_labels_are_numbered_by_it() -> None:
    found = classes.arrivals(classes.digits(seed=0), order="CA")
    assert [arrival.classes for arrival in found] == [
        ("class-4", "class-5"),
        ("class-4", "class-5", "class-0", "class-1"),
    ]
    assert [sorted(set(arrival.train.labels.tolist())) for arrival in found] == [[0, 1], [2, 3]]
    assert found[0].train.images.shape[1:] == (1, 16, 16)
    with pytest.raises(ValueError, match="pairs out of ABCDE"):
        classes.arrivals(classes.digits(seed=0), order="AF")


def test_every_digit_is_in_one_part_and_each_part_has_every_class() -> None:
    pictures = classes.digits(seed=3)
    counts = {part: np.bincount(pictures.labels[pictures.parts == part]) for part in ("train", "tune", "test")}
    assert sum(found.sum() for found in counts.values()) == 1797
    assert all(found.min() > 20 for found in counts.values())
    assert 0.59 < counts["train"].sum() / 1797 < 0.61
    assert pictures.images.max() == 1.0


def test_a_file_in_medmnists_form_is_read_in_colour_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{part}_{kind}": rng.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8) if kind == "images" else labels
        for part in ("train", "val", "test")
        for kind, labels in (("images", None), ("labels", np.arange(12)[:, None] % 3))
    }
    np.savez(tmp_path / "some.npz", **arrays)
    found = classes.arrivals(classes.npz(tmp_path / "some.npz"), order="AB")
    assert found[0].train.images.shape == (8, 3, 28, 28)
    assert found[1].classes == ("class-0", "class-1", "class-2")
    assert classes.growing(stream.protocol_of("full"), arrival=found[1]).input.channels == 3


def test_fine_tuning_loses_the_first_pair_and_a_solved_head_keeps_it() -> None:
    arrivals = classes.arrivals(classes.digits(seed=0), order="AB")
    told = {
        name: stream.run(arrivals, protocol=stream.protocol_of(f"{name},epochs=8"), seed=0)
        for name in ("finetune", "analytic")
    }
    assert told["finetune"]["matrix"][0][1] == 0.0  # nobody knows a class before its day
    assert told["finetune"]["matrix"][1][0] < 0.5
    assert min(told["analytic"]["matrix"][1]) > 0.8
    assert all("head grew by class-2, class-3" in found["notes"][1][0] for found in told.values())
