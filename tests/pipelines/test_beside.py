"""A candidate's threshold beside the champion: nothing of either error is lost where its curve allows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import afterwards, beside, calibrate, network, predict, train
from pipelines.protocol import Protocol, ProtocolError, from_document
from pipelines.types import OperatingPoint
from tests.pipelines.toy import DOCUMENT, PROTOCOL, TRAIN, TUNE

LABELS = np.arange(20) < 10
SCORES = np.array([0.32, *np.arange(55, 100, 5) / 100, *np.arange(5, 55, 5) / 100])
"""Nine of ten sick from .55 to .95 and one at .32; ten well from .05 to .50."""


def calls(*, hits: int, alarms: int) -> NDArray[np.bool_]:
    """What a champion calls that finds so many of ten sick, and so many of ten well."""
    return np.concatenate([np.arange(10) < hits, np.arange(10) < alarms])


def chosen(champion: NDArray[np.bool_] | None, **changes: Any) -> OperatingPoint:
    """The point that Youden's rule chooses on `SCORES` beside a champion."""
    asked: dict[str, Any] = {"rule": "youden", "champion": champion, **changes}
    return calibrate.choose_operating_point(LABELS, SCORES, **asked)


def shares(point: OperatingPoint) -> tuple[float, float]:
    """Sensitivity and specificity of a point that there is."""
    assert point.sensitivity is not None
    assert point.specificity is not None
    return point.sensitivity.value, point.specificity.value


def written(point: OperatingPoint) -> dict[str, Any]:
    """A point as it stands in the metadata."""
    return json.loads(json.dumps(asdict(point)))  # type: ignore[no-any-return]


def test_where_the_rules_own_choice_loses_nothing_it_stays() -> None:
    alone, among = chosen(None), chosen(calls(hits=8, alarms=1))
    assert alone.threshold == among.threshold == pytest.approx(0.525)
    assert (alone.shortfall, among.shortfall) == (None, 0.0)


def test_beside_a_champion_that_misses_nobody_nobody_is_missed() -> None:
    point = chosen(calls(hits=10, alarms=7))
    # .275 and .31 are within one standard error of the best without a miss: the first of two as near to their middle
    assert point.threshold == pytest.approx(0.275)
    assert (*shares(point), point.shortfall) == (1.0, 0.5, 0.0)


def test_beside_a_champion_that_alarms_nobody_in_vain_nobody_is() -> None:
    late = chosen(calls(hits=5, alarms=0))
    assert (*shares(late), late.shortfall) == (0.9, 1.0, 0.0)
    assert chosen(calls(hits=2, alarms=0)).shortfall == 0.0


def test_where_no_threshold_keeps_both_the_least_is_lost_and_told() -> None:
    point = chosen(calls(hits=10, alarms=3))
    assert point.threshold == pytest.approx(0.525)
    assert shares(point) == (0.9, 1.0)
    assert point.shortfall == pytest.approx(0.1)
    told = beside.losses({"operating_point": written(point), "operating_points_by_site": {"south": written(point)}})
    assert [words.partition(":")[0] for words in told] == ["all sites together", "south"]
    assert all(words.endswith("0.100 lost") for words in told)


def test_the_rules_target_is_kept_even_where_the_champion_does_better_without_it() -> None:
    asked = {"rule": "specificity_at_sensitivity", "target": 0.95}
    point = chosen(calls(hits=5, alarms=0), **asked)
    assert shares(point) == (1.0, 0.6)
    assert point.shortfall == pytest.approx(0.4)
    flat = calibrate.choose_operating_point(
        LABELS, np.full(20, 0.5), rule="sensitivity_at_specificity", target=0.9, champion=LABELS
    )
    assert (flat.threshold, flat.shortfall) == (None, None)


def test_a_threshold_for_several_sites_loses_nothing_at_any_that_has_cases_enough() -> None:
    labels, scores = np.tile(LABELS, 2), np.tile(SCORES, 2)
    champion = np.concatenate([calls(hits=10, alarms=7), calls(hits=6, alarms=7)])
    sites = np.repeat(["careful", "careless"], 20)

    def told(sites: NDArray[Any] | None) -> tuple[float, float]:
        return shares(calibrate.choose_operating_point(labels, scores, rule="youden", champion=champion, sites=sites))

    assert told(None) == (0.9, 1.0)
    assert told(sites) == (1.0, 0.5)
    assert told(np.where(sites == "careful", "", sites)) == (0.9, 1.0)
    nine = sites.copy()
    nine[0] = "elsewhere"
    assert told(nine) == (0.9, 1.0)


def test_no_other_threshold_would_have_lost_less() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = np.arange(60) < rng.integers(10, 50)
        scores = np.round(1.0 / (1.0 + np.exp(-(2.0 * labels - 1.0 + rng.normal(size=60)))), 2)
        champion = rng.random(60) < np.where(labels, rng.random(), rng.random())

        def lost(threshold: float) -> float:
            right, theirs = (scores >= threshold) == labels, champion == labels  # noqa: B023 - used within its turn
            return max(0.0, *(theirs[of].mean() - right[of].mean() for of in (labels, ~labels)))  # noqa: B023

        point = calibrate.choose_operating_point(labels, scores, rule="youden", champion=champion)
        assert point.threshold is not None
        assert point.shortfall == pytest.approx(lost(point.threshold))
        assert point.shortfall == pytest.approx(min(lost(threshold) for threshold in np.unique(scores)))


def test_the_threshold_of_all_minds_only_the_sites_that_it_decides_at() -> None:
    large, small = np.tile(np.arange(20), 4), np.arange(20)
    rows = np.concatenate([large, small])
    sites = np.repeat(["large", "small"], [80, 20])
    champion = np.concatenate([np.tile(calls(hits=10, alarms=7), 4), calls(hits=5, alarms=0)])
    scores = np.stack([1.0 - SCORES[rows], SCORES[rows]], axis=1).astype(np.float32)

    def found(**rule: Any) -> dict[str, Any]:
        asked = from_document({**DOCUMENT, "operating_point": rule})
        labels = LABELS[rows].astype(np.int64)
        return afterwards.decisions(scores, labels, sites, protocol=asked, champion=champion)

    own, one = found(by_site=True, beside_champion=True), found(beside_champion=True)
    assert own["operating_points_by_site"]["large"]["sensitivity"]["value"] == 1.0
    assert own["operating_points_by_site"]["large"]["shortfall"] == 0.0
    assert set(own["operating_points_by_site"]) == {"large"}
    assert own["operating_point"]["threshold"] == pytest.approx(0.525, abs=1e-6)
    assert own["operating_point"]["shortfall"] == 0.0
    assert one["operating_point"]["shortfall"] == pytest.approx(0.1)  # at the large site, or .4 at the small one


ASKED = from_document({**DOCUMENT, "operating_point": {"beside_champion": True}})


def served(trained: train.Trained, folder: Path, **changes: Any) -> beside.Beside:
    """A champion on disk, with metadata that say something else of it."""
    data = network.save_weights(trained.module)
    (folder / "champion").write_bytes(data)
    return beside.Beside(
        weights=folder / "champion",
        weights_digest=network.digest_of_bytes(data),
        metadata=json.loads(json.dumps(trained.metadata | changes)),
    )


def fitted(protocol: Protocol = ASKED, **changes: Any) -> train.Trained:
    return train.fit(TRAIN, TUNE, protocol=protocol, strategy="full", **{"seed": 1, **changes})


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return fitted(PROTOCOL, seed=0)


@pytest.fixture(scope="module")
def alone() -> train.Trained:
    return fitted(PROTOCOL)


def rates(metadata: Mapping[str, Any], trained: train.Trained) -> tuple[float, float]:
    """Sensitivity and specificity on tune of a network as these metadata have it serve."""
    model = predict.Model(trained.module, metadata)
    right = model.decided(model.scores(TUNE.images), sites=TUNE.sites) == TUNE.labels
    return float(right[TUNE.labels == 1].mean()), float(right[TUNE.labels == 0].mean())


@pytest.mark.parametrize("by_site", [False, True])
def test_a_candidate_beside_a_champion_far_out_on_its_curve_loses_nothing(
    trained: train.Trained, alone: train.Trained, tmp_path: Path, by_site: bool
) -> None:
    scores = predict.Model(trained.module, trained.metadata).scores(TUNE.images)[:, 1]
    high = {"threshold": float(np.nextafter(scores[TUNE.labels == 0].max(), np.float32(1)))}
    there = {"operating_points_by_site": {"a": high}, "decides_by_site": True} if by_site else {"operating_point": high}
    champion = served(trained, tmp_path, **there)
    theirs = rates(champion.metadata, trained)
    assert theirs[1] == 1.0
    assert rates(alone.metadata, alone)[1] < 1.0
    candidate = fitted(beside=champion)
    ours = rates(candidate.metadata, candidate)
    assert ours[0] >= theirs[0] - candidate.metadata["operating_point"]["shortfall"]
    assert ours[1] >= theirs[1] - candidate.metadata["operating_point"]["shortfall"]
    assert ours[1] > rates(alone.metadata, alone)[1]
    assert candidate.metadata["beside_digest"] == champion.weights_digest
    assert candidate.metadata["started_from"] == "nothing"
    assert network.save_weights(candidate.module) == network.save_weights(alone.module)


def test_what_the_protocol_does_not_ask_for_is_not_done(
    trained: train.Trained, alone: train.Trained, tmp_path: Path
) -> None:
    found = fitted(PROTOCOL, beside=served(trained, tmp_path, operating_point={"threshold": 0.999}))
    assert found.metadata["operating_point"] == alone.metadata["operating_point"]
    assert "beside_digest" not in found.metadata


@pytest.mark.parametrize("why", ["cannot be asked", "has other classes"])
def test_a_champion_that_cannot_be_asked_is_left_out_and_the_metadata_say_so(
    trained: train.Trained, alone: train.Trained, tmp_path: Path, why: str
) -> None:
    champion = served(trained, tmp_path, **({"positive": "normal"} if "classes" in why else {}))
    if "asked" in why:
        champion.weights.write_bytes(b"damaged")
    found = fitted(beside=champion)
    assert found.metadata["operating_point"] == alone.metadata["operating_point"]
    assert why in found.metadata["notes"][-1]
    assert "by the rule alone" in found.metadata["notes"][-1]
    assert "beside_digest" not in found.metadata


def test_a_protocol_that_does_not_ask_keeps_its_digest() -> None:
    assert "beside_champion" not in PROTOCOL.document()["operating_point"]
    assert ASKED.document()["operating_point"]["beside_champion"] is True
    said = from_document({**DOCUMENT, "operating_point": {"beside_champion": False}})
    assert said.digest == PROTOCOL.digest != ASKED.digest


@pytest.mark.parametrize("changes", [{"classes": ["a", "b", "c"]}, {"task": "multilabel"}])
def test_a_line_without_a_positive_class_has_no_threshold_to_choose_beside_another(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"operating_point\.beside_champion"):
        from_document({**DOCUMENT, "operating_point": {"beside_champion": True}, **changes})
