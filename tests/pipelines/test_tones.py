"""A network that sees each image a second time by the ranks of its grey levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import network, predict, tones, train
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT, PROTOCOL, cases, champion

EQUALISING = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 2, "equalise": True}})
FEW, TUNE = cases(32, seed=0), cases(32, seed=1)


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return train.fit(FEW, TUNE, protocol=EQUALISING, strategy="full", seed=0)


def test_a_level_becomes_the_share_that_is_darker_and_half_of_what_is_as_dark() -> None:
    image = torch.tensor([[0.0, 0.0], [0.2, 1.0]])[None, None]
    assert tones.equalised(image).flatten().tolist() == [0.25, 0.25, 0.625, 0.875]


def test_no_rising_tone_curve_changes_it() -> None:
    levels = torch.randint(0, 20, (3, 1, 28, 28), generator=torch.Generator().manual_seed(0)) / 19.0
    for curve in (lambda x: x**0.5, lambda x: 0.3 + 0.5 * x, lambda x: x**1.5):
        assert torch.equal(tones.equalised(curve(levels)), tones.equalised(levels))
    assert torch.allclose(tones.equalised(1.0 - levels), 1.0 - tones.equalised(levels))


@pytest.mark.parametrize("shape", [(2, 3, 16, 20), (2, 1, 8, 16, 16), (1, 1, 28, 28)])
def test_each_channel_of_each_image_is_by_itself(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    together = tones.equalised(images)
    assert together.shape == images.shape
    alone = tones.equalised(images[:1, -1:])
    assert torch.equal(together[:1, -1:], alone)
    assert together.flatten(2).mean(dim=2).sub(0.5).abs().max() < 1e-6


def test_an_image_of_one_grey_level_is_no_accident() -> None:
    assert torch.equal(tones.equalised(torch.zeros(1, 1, 4, 4)), torch.full((1, 1, 4, 4), 0.5))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("members", [1, 2])
def test_the_network_keeps_its_input(channels: int, members: int) -> None:
    architecture = replace(network.architecture_for(EQUALISING), in_channels=channels, members=members)
    assert network.from_document(architecture.document()) == architecture
    images = torch.rand(2, channels, 28, 28)
    assert network.build(architecture).eval()(images).shape == (2, 2)


def test_a_protocol_without_it_is_what_it_was() -> None:
    assert "equalise" not in PROTOCOL.document()["recipe"]
    assert "equalise" not in network.architecture_for(PROTOCOL).document()
    assert EQUALISING.digest != PROTOCOL.digest


def test_it_comes_back_from_its_file_explains_itself_and_is_exported(trained: train.Trained, tmp_path: Path) -> None:
    data = network.save_weights(trained.module)
    (tmp_path / "weights").write_bytes(data)
    model = predict.Model.from_files(
        tmp_path / "weights", metadata=trained.metadata, expected_digest=network.digest_of_bytes(data)
    )
    scores = predict.Model(trained.module, trained.metadata).scores(TUNE.images)
    assert (model.scores(TUNE.images) == scores).all()
    heat = model.heat_map(TUNE.images[0], 1)
    assert heat.shape == (28, 28)
    assert heat.max() in (0.0, 1.0)
    program = torch.export.export(predict.export(model), (torch.from_numpy(TUNE.images[:2]),))
    assert np.allclose(program.module()(torch.from_numpy(TUNE.images[:2])).detach().numpy(), scores[:2], atol=1e-6)


def test_an_update_of_a_champion_without_it_begins_from_nothing_and_says_so(tmp_path: Path) -> None:
    base = champion(train.fit(FEW, TUNE, protocol=PROTOCOL, strategy="full", seed=0), tmp_path)
    candidate = train.fit(FEW, TUNE, protocol=EQUALISING, strategy="replay", seed=0, base=base)
    assert candidate.metadata["started_from"] == "nothing"
    assert any("another architecture" in note for note in candidate.metadata["notes"])
