"""Several networks as one model: one file, one digest, the mean of their probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines import network, predict, train
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT, PROTOCOL, cases, champion, joined

TWO = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 2, "update_epochs": 1, "members": 2}})
ARCHITECTURE = network.architecture_for(TWO)
FEW, TUNE = cases(32, seed=0), cases(32, seed=1)


class Killed(Exception):
    """Stands for a kill between two batches."""


@pytest.fixture(scope="module")
def trained() -> train.Trained:
    return train.fit(FEW, TUNE, protocol=TWO, strategy="full", seed=0)


def test_they_answer_with_the_mean_of_their_probabilities() -> None:
    module = network.build(replace(ARCHITECTURE, members=3)).eval()
    images = torch.rand(4, 1, 28, 28)
    with torch.inference_mode():
        own = [torch.softmax(member(images), dim=1) for member in network.members_of(module)]
        assert torch.allclose(torch.softmax(module(images), dim=1), sum(own) / 3, atol=1e-6)
    assert len(own) == 3
    assert not torch.allclose(own[0], own[1])
    assert network.members_of(own_network := network.build(replace(ARCHITECTURE, members=1))) == [own_network]


def test_they_are_one_file_and_come_back_from_it(trained: train.Trained, tmp_path: Path) -> None:
    base = champion(trained, tmp_path)
    model = predict.Model.from_files(base.weights, metadata=trained.metadata, expected_digest=base.weights_digest)
    again = predict.Model(trained.module, trained.metadata)
    assert (model.scores(TUNE.images) == again.scores(TUNE.images)).all()
    assert trained.metadata["architecture"]["members"] == 2
    one = network.parameter_count(network.build(network.architecture_for(PROTOCOL)))
    assert trained.metadata["parameters"] == 2 * one


def test_each_learns_and_the_cost_says_so(trained: train.Trained) -> None:
    first, second = network.members_of(trained.module)
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.ndim > 1
    )
    assert trained.metadata["sample_gradients"] == 2 * 2 * 32


def test_a_member_learns_what_it_would_have_learned_alone() -> None:
    one, two = ({"epochs": 1, "members": members} for members in (1, 2))
    alone, together = (
        train.fit(FEW, TUNE, protocol=from_document({**DOCUMENT, "recipe": recipe}), strategy="full", seed=0)
        for recipe in (one, two)
    )
    first = network.members_of(together.module)[0]
    assert network.save_weights(first) == network.save_weights(alone.module)


def test_a_killed_run_of_them_ends_as_an_unbroken_one(trained: train.Trained, tmp_path: Path) -> None:
    left = iter(range(3))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        train.fit(FEW, TUNE, protocol=TWO, strategy="full", seed=0, checkpoints=tmp_path, keep_going=kill)
    resumed = train.fit(FEW, TUNE, protocol=TWO, strategy="full", seed=0, checkpoints=tmp_path)
    assert network.save_weights(resumed.module) == network.save_weights(trained.module)


@pytest.mark.parametrize("strategy", ["replay", "interpolate", "analytic"])
def test_an_update_starts_from_them_all(trained: train.Trained, tmp_path: Path, strategy: str) -> None:
    new = cases(16, seed=3, since=2)
    both = joined(FEW, new)
    base = champion(trained, tmp_path)
    update = train.fit(both, TUNE, protocol=TWO, strategy=strategy, seed=1, base=base)  # type: ignore[arg-type]
    assert update.metadata["started_from"] == "champion"
    for mine, theirs in zip(*(network.members_of(made.module) for made in (update, trained)), strict=True):
        heads = [[part for part in one.modules() if isinstance(part, torch.nn.Linear)][-1] for one in (mine, theirs)]
        assert not torch.equal(heads[0].weight, heads[1].weight)


def test_their_heads_grow_together(trained: train.Trained, tmp_path: Path) -> None:
    base = champion(trained, tmp_path)
    more = replace(ARCHITECTURE, classes=("normal", "effusion", "pneumonia"))
    grown = network.load_grown(base.weights, architecture=more, trained_as=base.architecture)
    old, new = (
        [predict.in_batches(member, TUNE.images) for member in network.members_of(module)]
        for module in (trained.module, grown)
    )
    assert all(mine[:, [0, 2]] == pytest.approx(theirs, abs=1e-5) for mine, theirs in zip(new, old, strict=True))


def test_their_heat_map_is_that_of_all_and_they_can_be_exported(trained: train.Trained) -> None:
    model = predict.Model(trained.module, trained.metadata)
    heat = model.heat_map(TUNE.images[0], 1)
    assert heat.shape == (28, 28)
    assert heat.max() in (0.0, 1.0)
    images = torch.from_numpy(TUNE.images[:3])
    exported = torch.export.export(
        predict.export(model), (images,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
    )
    assert exported.module()(images).detach().numpy() == pytest.approx(model.scores(TUNE.images[:3]), abs=1e-5)
