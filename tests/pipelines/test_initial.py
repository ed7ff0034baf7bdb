"""Weights to begin with: from the file that the protocol names, and from no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipelines import initial, network, train
from pipelines.protocol import ProtocolError, from_document
from pipelines.recipe import InitialWeights
from tests.pipelines.toy import DOCUMENT, PROTOCOL, cases

SMALL = network.architecture_for(PROTOCOL)
FILE = "chest.safetensors"


def _file(folder: Path, data: bytes) -> InitialWeights:
    (folder / FILE).write_bytes(data)
    return InitialWeights(file=FILE, digest=network.digest_of_bytes(data))


def test_what_fits_is_taken_over_and_what_does_not_is_named(tmp_path: Path) -> None:
    other = network.build(replace(SMALL, classes=("a", "b", "c")))
    wanted = _file(tmp_path, network.save_weights(other))
    module = network.build(SMALL)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    notes = initial.fill(module, wanted, folder=tmp_path)
    mine, theirs = module.state_dict(), other.state_dict()
    kept = [name for name in mine if theirs[name].shape != mine[name].shape]
    assert len(kept) == 2
    assert notes == [f"began with {len(mine) - 2} of {len(mine)} tensors from {FILE}; not {kept[0]}, {kept[1]}"]
    assert all(torch.equal(mine[name], own[name] if name in kept else theirs[name]) for name in mine)


def test_one_that_sees_images_twice_begins_as_the_bare_one_and_as_itself(tmp_path: Path) -> None:
    bare, images = network.build(SMALL).eval(), torch.rand(2, 1, 28, 28)
    twice = replace(SMALL, equalise=True)
    module = network.build(twice).eval()
    notes = initial.fill(module, _file(tmp_path, network.save_weights(bare)), folder=tmp_path)
    assert notes == [f"began with {len(bare.state_dict())} of {len(bare.state_dict())} tensors from {FILE}"]
    assert torch.allclose(module(images), bare(images), atol=1e-6)
    again = network.build(twice).eval()
    initial.fill(again, _file(tmp_path, network.save_weights(module)), folder=tmp_path)
    assert network.save_weights(again) == network.save_weights(module)


def test_every_member_begins_with_the_same_file(tmp_path: Path) -> None:
    wanted = _file(tmp_path, network.save_weights(network.build(SMALL)))
    module = network.build(replace(SMALL, members=2))
    initial.fill(module, wanted, folder=tmp_path)
    first, second = (member.state_dict() for member in network.members_of(module))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_file_of_another_digest_is_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    wanted = _file(tmp_path, network.save_weights(network.build(SMALL)))
    (tmp_path / FILE).write_bytes(network.save_weights(network.build(SMALL)))
    module = network.build(SMALL)
    before = network.save_weights(module)
    with pytest.raises(initial.InitialWeightsRefused, match=f"not the {wanted.digest} of the protocol"):
        initial.fill(module, wanted, folder=tmp_path)
    assert network.save_weights(module) == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x04 a pickle that would run", "no safetensors file"),
        (save({"encoder.weight": torch.zeros(3, 3)}), "it is of another one"),
    ],
)
def test_what_is_of_no_use_is_refused_in_words(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(initial.InitialWeightsRefused, match=said):
        initial.fill(network.build(SMALL), _file(tmp_path, data), folder=tmp_path)


def test_a_file_that_is_not_there_is_asked_for_by_its_place(tmp_path: Path) -> None:
    wanted = InitialWeights(file=FILE, digest="0" * 64)
    with pytest.raises(initial.InitialWeightsRefused, match=r"chest\.safetensors, cannot be read \(No such file"):
        initial.fill(network.build(SMALL), wanted, folder=tmp_path)


@pytest.mark.parametrize("name", ["../chest.safetensors", "/etc/chest.safetensors", "chest.pt"])
def test_a_protocol_names_a_safetensors_file_and_no_place(name: str) -> None:
    recipe = {"initial_weights": {"file": name, "digest": "0" * 64}}
    with pytest.raises(ProtocolError, match=r"recipe\.initial_weights\.file"):
        from_document({**DOCUMENT, "recipe": recipe})


def test_a_training_from_nothing_begins_with_the_file_and_tells(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = _file(tmp_path, network.save_weights(network.build(SMALL)))
    recipe = {"epochs": 1, "learning_rate": 1e-9, "initial_weights": wanted.model_dump()}
    protocol = from_document({**DOCUMENT, "recipe": recipe})
    few = cases(16, seed=0)
    trained = train.fit(few, few, protocol=protocol, strategy="full", seed=0, weights_folder=tmp_path)
    begun = network.load_model(tmp_path / FILE, architecture=SMALL, expected_digest=wanted.digest)
    assert trained.metadata["notes"] == [
        f"began with {len(begun.state_dict())} of {len(begun.state_dict())} tensors from {FILE}"
    ]
    for mine, theirs in zip(trained.module.parameters(), begun.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    with pytest.raises(initial.InitialWeightsRefused, match="no folder is named"):
        train.fit(few, few, protocol=protocol, strategy="full", seed=0)
