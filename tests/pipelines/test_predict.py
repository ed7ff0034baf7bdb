"""A model in use: scores, decisions, heat maps, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import network, predict, train
from pipelines.metrics import auroc
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT, cases

ARCHITECTURE = network.Architecture(
    network="small_cnn", in_channels=1, classes=("no", "yes"), rows=28, columns=28, gradcam_layer="net.layer_2"
)
METADATA: dict[str, Any] = {
    "architecture": ARCHITECTURE.document(),
    "classes": ["no", "yes"],
    "positive": "yes",
    "temperature": 1.7,
    "log_prior": [-1.2, -0.36],
    "operating_point": {"threshold": 0.3},
}


@pytest.fixture(scope="module")
def model() -> predict.Model:
    torch.manual_seed(0)
    return predict.Model(network.build(ARCHITECTURE), METADATA)


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).random((7, 1, 28, 28), dtype=np.float32)


def test_scores_are_the_calibrated_softmax(model: predict.Model, images: Any) -> None:
    scores = model.scores(images)
    assert scores.shape == (7, 2)
    assert scores.dtype == np.float32
    assert scores.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    with torch.inference_mode():
        logits = model.module(torch.from_numpy(images)).numpy() / 1.7 + np.array([-1.2, -0.36])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores == pytest.approx(expected, abs=1e-6)


def test_the_positive_class_is_called_at_the_operating_point_not_at_one_half(model: predict.Model) -> None:
    scores = np.array([[0.69, 0.31], [0.71, 0.29], [0.1, 0.9], [0.7, 0.3]])
    assert model.decision(scores) == ["yes", "no", "yes", "yes"]


def by_site(**points: float | None) -> predict.Model:
    """A model that decides by site."""
    found = {site: {"threshold": threshold} for site, threshold in points.items()}
    metadata = METADATA | {"operating_points_by_site": found, "decides_by_site": True}
    return predict.Model(network.build(ARCHITECTURE), metadata)


def test_a_site_with_a_point_of_its_own_is_decided_by_that_and_any_other_by_the_lines() -> None:
    scores = np.array([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.75, 0.25]])
    sites = np.array(["strict", "mild", "unheard of", "", "unmet"])
    model = by_site(strict=0.5, mild=0.4, unmet=None)
    assert model.decision(scores, sites=sites) == ["no", "yes", "yes", "yes", "no"]
    assert model.decision(scores) == ["yes", "yes", "yes", "yes", "no"]
    assert [(model.point(site) or {})["threshold"] for site in ("strict", "unmet", "", None)] == [0.5, 0.3, 0.3, 0.3]


def test_points_that_are_there_to_be_looked_at_decide_nothing(model: predict.Model) -> None:
    points = {"operating_points_by_site": {"strict": {"threshold": 0.5}}}
    looked_at = predict.Model(model.module, METADATA | points)
    assert looked_at.decision(np.array([[0.6, 0.4]]), sites=np.array(["strict"])) == ["yes"]
    without = predict.Model(model.module, METADATA | points | {"decides_by_site": True, "operating_point": None})
    assert without.decision(np.array([[0.45, 0.55]]), sites=np.array(["strict"])) == ["yes"]
    assert without.point("strict") is None


def test_among_many_classes_the_likeliest_other_is_called_below_the_operating_point() -> None:
    architecture = network.Architecture(
        network="small_cnn", in_channels=1, classes=("a", "b", "c"), rows=28, columns=28, gradcam_layer="net.layer_2"
    )
    metadata = METADATA | {
        "architecture": architecture.document(),
        "classes": ["a", "b", "c"],
        "positive": "b",
        "log_prior": [0.0, 0.0, 0.0],
        "operating_point": {"threshold": 0.6},
    }
    called = predict.Model(network.build(architecture), metadata)
    assert called.decision(np.array([[0.1, 0.5, 0.4], [0.1, 0.6, 0.3]])) == ["c", "b"]
    largest = predict.Model(network.build(architecture), metadata | {"positive": None, "operating_point": None})
    assert largest.decision(np.array([[0.1, 0.5, 0.4]])) == ["b"]


def test_files_give_the_same_scores_and_the_wrong_digest_gives_none(
    model: predict.Model, images: Any, tmp_path: Path
) -> None:
    data = network.save_weights(model.module)
    (tmp_path / "w").write_bytes(data)
    digest = network.digest_of_bytes(data)
    loaded = predict.Model.from_files(tmp_path / "w", metadata=METADATA, expected_digest=digest)
    assert (loaded.scores(images) == model.scores(images)).all()
    with pytest.raises(network.WeightsCorrupt):
        predict.Model.from_files(tmp_path / "w", metadata=METADATA, expected_digest="0" * 64)


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 28), ("medium_cnn", 28), ("resnet18", 64), ("densenet121", 64)]
)
def test_a_heat_map_covers_the_image_and_leaves_the_scores_alone(name: str, size: int) -> None:
    architecture = network.Architecture(
        network=name,
        in_channels=1,
        classes=("no", "yes"),
        rows=size,
        columns=size,
        gradcam_layer=network.NETWORKS[name][1],
    )
    torch.manual_seed(2)  # new weights may speak against both classes everywhere, and the maps are then empty
    model = predict.Model(network.build(architecture), METADATA | {"architecture": architecture.document()})
    image = np.random.default_rng(1).random((1, size, size), dtype=np.float32)
    before = model.scores(image[None])
    heat = model.heat_map(image, 1)
    assert heat.shape == (size, size)
    assert heat.dtype == np.float32
    assert 0.0 <= heat.min() <= heat.max() <= 1.0
    assert max(model.heat_map(image, index).max() for index in (0, 1)) == 1.0
    assert (model.heat_map(image, 1) == heat).all()
    assert (model.scores(image[None]) == before).all()
    assert all(not module._forward_hooks for module in model.module.modules())


@pytest.fixture(scope="module")
def bright_squares() -> tuple[Any, Any, Any, predict.Model]:
    """Images, labels, the corner of the bright square that a positive one has, and a model that knows it."""
    rng = np.random.default_rng(0)
    labels = np.arange(128) % 2
    images = rng.random((128, 1, 28, 28), dtype=np.float32) * 0.4
    corners = rng.integers(0, 4, 128)
    for image, label, corner in zip(images, labels, corners, strict=True):
        row, column = 3 + 15 * (corner // 2), 3 + 15 * (corner % 2)
        image[0, row : row + 7, column : column + 7] += 0.6 * label
    torch.manual_seed(0)
    module = network.build(ARCHITECTURE)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimiser.step()
    return images, labels, corners, predict.Model(module, METADATA)


def test_a_heat_map_is_hottest_where_the_finding_is(bright_squares: tuple[Any, Any, Any, predict.Model]) -> None:
    images, labels, corners, model = bright_squares
    found = 0
    for image, corner in zip(images[labels == 1], corners[labels == 1], strict=True):
        heat = model.heat_map(image, 1)
        quarters = [heat[r : r + 14, c : c + 14].sum() for r in (0, 14) for c in (0, 14)]
        found += int(np.argmax(quarters) == corner)
    assert found / 64 > 0.8


def test_a_heat_map_is_the_models_and_another_once_its_weights_are_drawn_anew(
    bright_squares: tuple[Any, Any, Any, predict.Model],
) -> None:
    """Adebayo et al., NeurIPS 2018: a map that stays the same shows edges of the image, not what was learned."""
    images, labels, _, model = bright_squares
    torch.manual_seed(1)
    strange = predict.Model(network.build(ARCHITECTURE), METADATA)
    alike = [
        np.corrcoef(model.heat_map(image, 1).ravel(), strange.heat_map(image, 1).ravel())[0, 1]
        for image in images[labels == 1][:24]
        if strange.heat_map(image, 1).max() > 0.0
    ]
    assert len(alike) > 8
    assert abs(np.mean(alike)) < 0.5


def test_scores_within_the_band_need_a_second_look() -> None:
    banded = predict.Model(network.build(ARCHITECTURE), {**METADATA, "second_look": {"low": 0.2, "high": 0.4}})
    positive = np.array([0.1, 0.2, 0.3, 0.4, 0.41])
    assert banded.unclear(np.column_stack([1 - positive, positive])).tolist() == [False, True, True, True, False]
    without = predict.Model(network.build(ARCHITECTURE), METADATA)
    assert not without.unclear(np.full((3, 2), 0.5)).any()


@pytest.mark.parametrize("steadier", [False, True])
def test_the_exported_program_gives_the_same_scores_for_any_number_of_images(images: Any, steadier: bool) -> None:
    architecture = replace(ARCHITECTURE, equalise=steadier)
    model = predict.Model(
        network.build(architecture),
        METADATA | {"architecture": architecture.document(), "test_time_shifts": steadier},
    )
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        predict.export(model), (torch.from_numpy(images),), dynamic_shapes={"images": {0: batch}}
    )
    exported = program.module()(torch.from_numpy(images[:3])).detach().numpy()
    assert exported == pytest.approx(model.scores(images[:3]), abs=1e-6)


def test_no_images_give_no_scores(model: predict.Model) -> None:
    assert len(model.scores(np.empty((0, 1, 28, 28), dtype=np.float32))) == 0


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 60, 56), (2, 1, 16, 28, 56)])
def test_moved_copies_answer_with_their_mean(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    passes: list[torch.Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, moved: torch.Tensor) -> torch.Tensor:
            passes.append(moved)
            return moved.flatten(1)[:, :2]

    answers = predict.Shifted(Watching())(images)
    (together,) = passes
    seen = together.unflatten(0, (1 + 2 * (len(shape) - 2), len(images)))
    assert torch.allclose(answers, torch.stack([moved.flatten(1)[:, :2] for moved in seen]).mean(dim=0))
    assert torch.equal(seen[0], images)
    step = max(1, round(shape[-1] / 28))
    back, forth = seen[-2:]  # along the last axis
    assert torch.equal(forth[..., :-step], images[..., step:])
    assert torch.equal(back[..., step:], images[..., :-step])
    assert torch.equal(back[..., :step], images[..., :1].expand_as(back[..., :step]))


@pytest.mark.parametrize(("shape", "copies"), [((1, 28, 28), 5), ((1, 8, 28, 28), 7), ((3, 128, 96), 5)])
def test_the_copies_of_a_batch_are_no_more_than_a_batch(shape: tuple[int, ...], copies: int) -> None:
    sizes: list[int] = []

    class Watching(torch.nn.Module):
        def forward(self, moved: torch.Tensor) -> torch.Tensor:
            sizes.append(len(moved))
            return moved.flatten(1)[:, :2]

    images = np.random.default_rng(0).random((300, *shape), dtype=np.float32)
    answers = predict.in_batches(predict.Shifted(Watching()), images)
    assert answers.shape == (300, 2)
    assert sum(sizes) == 300 * copies
    assert max(sizes) <= predict.BATCH
    assert max(sizes) * images[0].size <= predict.BATCH_PIXELS


def test_a_model_says_that_it_asks_moved_copies_and_its_export_does(model: predict.Model, images: Any) -> None:
    steadier = predict.Model(model.module, METADATA | {"test_time_shifts": True})
    with torch.inference_mode():
        logits = predict.Shifted(model.module)(torch.from_numpy(images))
        wanted = torch.softmax(logits / METADATA["temperature"] + torch.tensor(METADATA["log_prior"]), dim=1).numpy()
        exported = predict.export(steadier)(torch.from_numpy(images)).numpy()
    assert np.allclose(steadier.scores(images), wanted, atol=1e-6)
    assert np.allclose(exported, wanted, atol=1e-6)
    assert not np.allclose(wanted, model.scores(images), atol=1e-4)
    assert (steadier.heat_map(images[0], 1) == model.heat_map(images[0], 1)).all()


def test_what_is_chosen_on_tune_is_chosen_by_the_answers_that_count() -> None:
    asked = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 1, "test_time_shifts": True}})
    plain = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 1}})
    few, tune = cases(32, seed=0), cases(32, seed=1)
    shifted, alone = (train.fit(few, tune, protocol=one, strategy="full", seed=0) for one in (asked, plain))
    assert network.save_weights(shifted.module) == network.save_weights(alone.module)
    assert shifted.metadata["test_time_shifts"] is True
    assert "test_time_shifts" not in alone.metadata
    found = auroc(tune.labels == 1, predict.Model(shifted.module, shifted.metadata).scores(tune.images)[:, 1])
    assert shifted.metadata["tune"]["auroc"]["value"] == pytest.approx(found)
