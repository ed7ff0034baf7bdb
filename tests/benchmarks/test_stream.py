"""The stream benchmark: its numbers against matrices worked by hand, its table, and a tiny stream from end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import charts, forgetting, stream, tracks
from pipelines import synthetic
from pipelines.chest_xrays import ChestXrays
from pipelines.protocol import parse

R = np.array([[0.90, 0.60, 0.50], [0.80, 0.94, 0.70], [0.85, 0.90, 0.92]])


def test_the_numbers_of_a_stream_are_those_worked_by_hand() -> None:
    found = forgetting.summarise(R)
    assert found.acc == pytest.approx((0.85 + 0.90 + 0.92) / 3)
    assert found.worst == 0.85
    assert found.forgetting == pytest.approx(((0.90 - 0.85) + (0.94 - 0.90)) / 2)
    assert found.bwt == pytest.approx(((0.85 - 0.90) + (0.90 - 0.94)) / 2)
    assert found.unseen == pytest.approx((0.60 + 0.70) / 2)
    assert found.aaa == pytest.approx((0.90 + (0.80 + 0.94) / 2 + (0.85 + 0.90 + 0.92) / 3) / 3)
    assert found.monotone == pytest.approx(min(2.44 / 3 - 2.00 / 3, 2.67 / 3 - 2.44 / 3))


def test_a_fall_is_seen_by_the_monotone_number_and_a_gain_is_negative_forgetting() -> None:
    found = forgetting.summarise(np.array([[0.9, 0.8], [0.7, 0.9]]))
    assert found.monotone == pytest.approx(-0.05)
    gained = forgetting.summarise(np.array([[0.8, 0.8], [0.9, 0.9]]))
    assert gained.forgetting == pytest.approx(-0.1)


def test_one_update_has_no_forgetting() -> None:
    found = forgetting.summarise(np.array([[0.9]]))
    assert found.acc == 0.9
    assert math.isnan(found.forgetting)


def test_a_site_that_comes_back_counts_from_its_first_day() -> None:
    found = forgetting.summarise(np.array([[0.9, 0.7], [0.8, 0.8], [0.85, 0.75]]), first=[0, 1])
    assert found.forgetting == pytest.approx(((0.9 - 0.85) + (0.8 - 0.75)) / 2)
    assert found.bwt == pytest.approx(((0.85 - 0.9) + (0.75 - 0.8)) / 2)
    assert found.unseen == 0.7
    assert found.aaa == pytest.approx((0.9 + 0.8 + 0.8) / 3)


@pytest.mark.parametrize("matrix", [[[0.9, 0.8]], [[float("nan")]]])
def test_a_matrix_with_something_missing_is_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match="one row for each update"):
        forgetting.summarise(np.array(matrix))


def test_the_gap_is_none_at_naive_and_all_at_full() -> None:
    assert forgetting.gap_closed(0.88, naive=0.88, full=0.94) == 0.0
    assert forgetting.gap_closed(0.94, naive=0.88, full=0.94) == 1.0
    assert forgetting.gap_closed(0.95, naive=0.88, full=0.94) > 1.0


def _stream(variant: str, *, seed: int, last: float, cost: int) -> stream.Stream:
    return stream.Stream(
        track="six_sites",
        variant=variant,
        seed=seed,
        order="AB",
        protocol_digest="",
        first=[0, 1],
        matrix=[[0.9, 0.8], [last, last]],
        sample_gradients=[100, cost],
        seconds=[1.0, 1.0],
        notes=[[], []],
    )


def test_the_table_compares_the_same_streams_only() -> None:
    rows = stream.table(
        [
            _stream("full", seed=0, last=0.94, cost=300),
            _stream("finetune", seed=0, last=0.90, cost=50),
            _stream("warm", seed=0, last=0.93, cost=100),
            _stream("warm", seed=1, last=0.50, cost=100),
        ]
    )
    warm = next(row for row in rows if row["variant"] == "warm")
    assert warm["gap"] == pytest.approx(0.75)
    assert warm["cost"] == pytest.approx(200 / 400)
    assert warm["last_cost"] == pytest.approx(100 / 300)
    assert warm["streams"] == 2
    between = stream.table(
        [
            _stream("full,network=medium_cnn", seed=0, last=0.98, cost=500),
            _stream("finetune,network=medium_cnn", seed=0, last=0.90, cost=50),
            _stream("auto,example", seed=0, last=0.96, cost=200),
        ],
        between=("finetune,network=medium_cnn", "full,network=medium_cnn"),
    )
    auto = next(row for row in between if row["variant"] == "auto,example")
    assert (auto["gap"], auto["cost"]) == pytest.approx((0.75, 300 / 600))


def test_a_variant_is_a_strategy_and_recipe_fields() -> None:
    recipe = stream.protocol_of("replay,randomise=0.5,epochs=3").recipe
    assert (recipe.strategy, recipe.randomise, recipe.epochs, recipe.equalise) == ("replay", 0.5, 3, False)
    assert stream.protocol_of("full,network=medium_cnn").recipe.network == "medium_cnn"
    assert (
        stream.protocol_of('full,network="medium_cnn"').digest == stream.protocol_of("full,network=medium_cnn").digest
    )
    example = parse(stream.PROTOCOL.read_text(encoding="utf-8")).recipe
    unchanged = {"strategy": "warm", "anchor_growth": None, "escalation": (), "epochs": 3}
    assert stream.protocol_of("warm,example,epochs=3").recipe == example.model_copy(update=unchanged)


def test_a_line_that_a_crash_cut_short_is_run_again_and_the_others_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    whole = json.dumps({**_as_json(_stream("warm", seed=0, last=0.9, cost=1))})
    file.write_text(whole + "\n" + whole[:40])
    assert [found.variant for found in stream.read(file)] == ["warm"]


def test_streams_by_an_earlier_protocol_are_left_out_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, later = (replace(_stream("auto", seed=seed, last=0.9, cost=1), order="AB") for seed in (0, 1))
    later = replace(later, protocol_digest=stream.protocol_of("auto").digest, matrix=[[0.9, 0.8], [0.7, 0.7]])
    other = replace(earlier, variant="Avalanche Naive", protocol_digest="other")
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(_as_json(one)) + "\n" for one in (earlier, other, later)))
    monkeypatch.setattr(stream, "_dealing", lambda _options: None)
    assert stream.main(["--strategies", "auto", "--seeds", "1", "--orders", "AB", "--results", str(file)]) == 0
    left_out, *table = capsys.readouterr().out.splitlines()
    assert left_out.startswith("left out: 1 streams")
    assert [row.split(" | ")[:3] for row in table[2:]] == [
        ["| auto", "1", "0.7000 ± 0.0000"],
        ["| Avalanche Naive", "1", "0.9000 ± 0.0000"],
    ]


def _as_json(one: stream.Stream) -> dict[str, Any]:
    return {name: getattr(one, name) for name in stream.Stream.__dataclass_fields__}


def test_the_pictures_are_drawn_with_their_numbers() -> None:
    progress = charts.every_batch({"auto": [R, R], "full": [R + 0.02]}, order="ABC")
    heat = charts.forgetting_map([R], name="auto <new>", order="ABC", first=[0, 1, 2])
    for picture in (progress, heat):
        assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own picture
    assert f"auto {R[-1].mean():.3f}" in progress
    assert all(f"{value:.3f}" in heat for value in R.ravel())


def test_a_stream_whose_sites_come_back_is_drawn_too() -> None:
    long = np.linspace(0.8, 0.9, 40 * 3).reshape(40, 3)
    progress = charts.every_batch({"auto": [long]}, order="ABC")
    heat = charts.forgetting_map([long], name="auto", order="ABC", first=[0, 4, 9])
    for picture in (progress, heat):
        assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314 - our own picture
    assert heat.count("<rect") == 1 + 40 * 3
    assert heat.count('stroke="#D55E00"') == 3


@pytest.fixture(scope="module")
def xrays() -> ChestXrays:
    images, labels = synthetic.radiographs(1600, rng=np.random.default_rng(0))
    parts = [slice(0, 1200), slice(1200, 1320), slice(1320, 1600)]
    train, val, test = [(images[part], labels[part]) for part in parts]
    return ChestXrays(
        train_images=train[0],
        train_labels=train[1],
        val_images=val[0],
        val_labels=val[1],
        test_images=test[0],
        test_labels=test[1],
        source="synthetic",
        real=False,
    )


def test_an_order_that_names_a_site_twice_or_an_unknown_one_is_refused(xrays: ChestXrays) -> None:
    for order in ("AA", "AX", ""):
        with pytest.raises(ValueError, match="sites out of ABCDEF"):
            tracks.tiny(xrays, 0, order)


@pytest.mark.parametrize(("track", "updates"), [("coming_back", 12), ("long", 40)])
def test_a_longer_track_brings_every_case_once_and_each_site_again(track: str, updates: int) -> None:
    images, labels = np.zeros((4000, 28, 28), dtype=np.uint8), np.arange(4000) % 10 // 3
    every = ChestXrays(
        **{f"{part}_images": images for part in ("train", "val", "test")},
        **{f"{part}_labels": (labels > 0).astype(np.int64) for part in ("train", "val", "test")},
        source="black",
        real=False,
    )
    arrivals = tracks.TRACKS[track](every, 0, "FEDCBA")
    assert len(arrivals) == updates
    assert arrivals[0].site == "F"
    assert sum(len(arrival.train.labels) for arrival in arrivals) == 3840
    assert len({arrival.site for arrival in arrivals[6:]}) == 6
    assert all((arrival.train.label_since == number).all() for number, arrival in enumerate(arrivals, start=1))
    assert all(np.bincount(arrival.train.labels, minlength=2).min() > 0 for arrival in arrivals)


def test_flipped_labels_are_at_the_third_site_only_and_never_in_its_test(xrays: ChestXrays) -> None:
    honest = tracks.tiny(xrays, 0, "ABC")
    noisy = tracks.with_flipped_labels(honest, seed=0)
    changed = [np.mean(a.train.labels != b.train.labels) for a, b in zip(honest, noisy, strict=True)]
    assert changed[:2] == [0.0, 0.0]
    assert changed[2] == pytest.approx(tracks.FLIPPED_SHARE, abs=0.08)
    assert (honest[2].test.labels == noisy[2].test.labels).all()


@pytest.fixture(scope="module")
def tiny(xrays: ChestXrays) -> dict[str, dict[str, Any]]:
    """Three sites, the third black for white; three strategies keep up with them."""
    arrivals = tracks.tiny(xrays, 0, "ABC")
    variants = ("full", "auto", "finetune")
    return {
        name: stream.run(arrivals, protocol=stream.protocol_of(f"{name},epochs=8,randomise=0.3"), seed=0)
        for name in variants
    }


def test_fine_tuning_forgets_what_auto_and_full_keep(tiny: dict[str, dict[str, Any]]) -> None:
    found = {name: forgetting.summarise(np.array(result["matrix"])) for name, result in tiny.items()}
    assert found["finetune"].forgetting > max(found["auto"].forgetting, found["full"].forgetting) + 0.04
    assert found["full"].acc > found["finetune"].acc


def test_auto_costs_about_a_fifth_of_a_training_from_nothing(tiny: dict[str, dict[str, Any]]) -> None:
    auto, full = (np.array(tiny[name]["sample_gradients"]) for name in ("auto", "full"))
    assert auto[0] == full[0]
    assert auto[1:] / full[1:] == pytest.approx(0.2125, abs=0.01)
