"""Networks are built from their document, and weights are used only if they are the right ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import network, predict

SMALL = network.Architecture(
    network="small_cnn", in_channels=1, classes=("no", "yes"), rows=28, columns=28, gradcam_layer="net.layer_2"
)


@pytest.mark.parametrize(
    ("name", "channels", "size", "classes"),
    [
        ("small_cnn", 1, 28, 2),
        ("small_cnn", 3, 64, 5),
        ("medium_cnn", 1, 28, 2),
        ("resnet18", 3, 64, 2),
        ("densenet121", 1, 64, 3),
        ("seresnet50", 1, 64, 2),
        ("efficientnet_b0", 3, 64, 4),
        ("vit_tiny", 1, 28, 2),
        ("vit_tiny", 3, 112, 3),
    ],
)
def test_every_network_maps_images_to_one_logit_a_class(name: str, channels: int, size: int, classes: int) -> None:
    module = network.build(
        network.Architecture(
            network=name,
            in_channels=channels,
            classes=tuple(f"c{k}" for k in range(classes)),
            rows=size,
            columns=size,
            gradcam_layer=network.NETWORKS[name][1],
        )
    ).eval()
    with torch.inference_mode():
        assert module(torch.rand(2, channels, size, size)).shape == (2, classes)
    assert network.NETWORKS[name][1] in dict(module.named_modules())


def test_the_default_network_is_small() -> None:
    assert 75_000 <= network.parameter_count(network.build(SMALL)) <= 200_000


def test_weights_come_back_as_they_went_and_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    module = network.build(SMALL).eval()
    data = network.save_weights(module)
    assert network.save_weights(module) == data
    (tmp_path / "w").write_bytes(data)
    loaded = network.load_model(
        tmp_path / "w", architecture=SMALL.document(), expected_digest=network.digest_of_bytes(data)
    )
    images = torch.rand(3, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(module(images), loaded(images))
    assert not loaded.training


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = bytearray(network.save_weights(network.build(SMALL)))
    digest = network.digest_of_bytes(bytes(data))
    data[-1] ^= 1
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(network.WeightsCorrupt, match="is not the expected"):
        network.load_model(tmp_path / "w", architecture=SMALL, expected_digest=digest)


@pytest.mark.parametrize("keep", [3, 2000])
def test_what_is_no_safetensors_file_is_refused_even_without_a_digest(tmp_path: Path, keep: int) -> None:
    (tmp_path / "w").write_bytes(network.save_weights(network.build(SMALL))[:keep])
    with pytest.raises(network.WeightsCorrupt, match="does not fit"):
        network.load_model(tmp_path / "w", architecture=SMALL)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(network.save_weights(network.build(SMALL)))
    with pytest.raises(network.WeightsCorrupt, match="does not fit"):
        network.load_model(tmp_path / "w", architecture=replace(SMALL, classes=("a", "b", "c")))


def test_an_unknown_network_names_those_there_are() -> None:
    with pytest.raises(
        network.UnknownNetwork, match="densenet121, efficientnet_b0, medium_cnn, resnet18, seresnet50, small_cnn, vit"
    ):
        network.build(replace(SMALL, network="alexnet"))


def test_an_incomplete_architecture_names_the_missing_field() -> None:
    document = SMALL.document()
    del document["rows"]
    with pytest.raises(network.NetworkError, match="'rows'"):
        network.from_document(document)


def test_a_transformer_shows_where_it_looked_and_says_which_images_it_cannot_cut() -> None:
    wanted = replace(SMALL, network="vit_tiny", gradcam_layer=network.NETWORKS["vit_tiny"][1])
    metadata = {
        "architecture": wanted.document(),
        "classes": ["no", "yes"],
        "positive": "yes",
        "operating_point": None,
        "temperature": 1.0,
        "log_prior": [0.0, 0.0],
    }
    model = predict.Model(network.build(wanted), metadata)
    heat = model.heat_map(np.random.default_rng(0).random((1, 28, 28), dtype=np.float32), 1)
    assert heat.shape == (28, 28)
    assert np.isfinite(heat).all()
    with pytest.raises(network.NetworkError, match="cut into patches"):
        network.build(replace(wanted, rows=31))


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0"])
def test_a_network_that_halves_an_image_away_is_refused_in_words(name: str) -> None:
    with pytest.raises(network.NetworkError, match="needs 32 pixels along each side"):
        network.build(replace(SMALL, network=name, rows=28, columns=64))
