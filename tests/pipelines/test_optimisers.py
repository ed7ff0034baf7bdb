"""Muon: which weights it moves, by what, and that AdamW moves the rest as it always does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import network, optimisers, train
from pipelines.network import Architecture
from pipelines.optimisers import LENGTH, MOMENTUM, QUINTIC, TURNS, matrices_of, orthogonal
from pipelines.protocol import from_document
from pipelines.recipe import Recipe
from tests.pipelines.toy import DOCUMENT, cases

SMALL = Architecture(network="small_cnn", in_channels=1, rows=32, columns=32, classes=("a", "b"), gradcam_layer="")


def brought(values: np.ndarray) -> np.ndarray:
    """What the quintic makes of singular values, one by one."""
    for _ in range(TURNS):
        values = QUINTIC[0] * values + QUINTIC[1] * values**3 + QUINTIC[2] * values**5
    return values


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 9), (7, 1)])
def test_directions_stay_and_singular_values_are_those_of_the_quintic(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    expected = left @ np.diag(brought(values / np.sqrt(np.sum(values**2)))) @ right
    np.testing.assert_allclose(orthogonal(matrix).numpy(), expected, atol=2e-4)


def test_rare_directions_go_as_far_as_the_common_one() -> None:
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (8, 60))
    matrix = left @ np.diag(np.geomspace(1.0, 0.01, 8)) @ right.T
    values = np.linalg.svd(orthogonal(torch.from_numpy(matrix).float()).numpy(), compute_uv=False)
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_a_matrix_of_noughts_stays_one() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))


def names_of(module: nn.Module) -> set[str]:
    matrices = {id(parameter) for parameter in matrices_of(module)}
    return {name for name, parameter in module.named_parameters() if id(parameter) in matrices}


def test_every_network_has_all_convolutions_and_inner_linear_layers_moved_and_its_head_left() -> None:
    for name in network.NETWORKS:
        made = network.build(replace(SMALL, network=name))
        linear = [place for place, part in made.named_modules() if isinstance(part, nn.Linear)]
        moved = names_of(made)
        assert moved >= {f"{place}.weight" for place in linear[:-1]}, name
        assert f"{linear[-1]}.weight" not in moved, name
        for place, part in made.named_modules():
            if isinstance(part, nn.Conv2d):
                assert (f"{place}.weight" in moved) == (part.groups == 1), f"{name}: {place}"
        assert not [place for place in moved if place.endswith("bias")]


def test_each_of_several_networks_keeps_its_own_head_from_it() -> None:
    alone = names_of(network.build(SMALL))
    pair = names_of(network.build(replace(SMALL, members=2)))
    assert pair == {f"members.{k}.{name}" for k in range(2) for name in alone}


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.inner(rows)))
        return found


def test_two_steps_by_hand() -> None:
    torch.manual_seed(11)
    module = TwoLayers()
    moved = optimisers.over(module, recipe=Recipe(optimiser="muon", weight_decay=0.1))
    for settings in moved.param_groups:
        settings["lr"] = 0.01
    weight = module.inner.weight.detach().clone()
    momentum = torch.zeros_like(weight)
    for seed in (0, 1):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        module.inner.weight.grad = gradient.clone()
        moved.step()
        momentum = MOMENTUM * momentum + (1.0 - MOMENTUM) * gradient
        step = orthogonal((1.0 - MOMENTUM) * gradient + MOMENTUM * momentum)
        weight = weight * (1.0 - 0.01 * 0.1) - 0.01 * LENGTH * 3.0**0.5 * step
        torch.testing.assert_close(module.inner.weight.detach(), weight)


def test_what_is_no_matrix_moves_as_by_adamw() -> None:
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(7))
    after = []
    for kind in ("adamw", "muon"):
        torch.manual_seed(11)
        module = TwoLayers()
        moved = optimisers.over(module, recipe=Recipe(optimiser=kind))
        module(rows).square().sum().backward()
        moved.step()
        after.append({name: parameter.detach().clone() for name, parameter in module.named_parameters()})
    for name in after[0]:
        assert torch.equal(after[0][name], after[1][name]) == (name != "inner.weight"), name


class Killed(Exception):
    """Stands for a kill between two batches."""


def test_a_run_by_it_is_another_one_and_goes_on_to_the_byte_after_a_kill(tmp_path: Path) -> None:
    few, tune = cases(32, seed=0), cases(32, seed=1)

    def weights(optimiser: str, **given: object) -> bytes:
        recipe = {"epochs": 3, "threads": 1, "batch_size": 16, "optimiser": optimiser}
        protocol = from_document({**DOCUMENT, "recipe": recipe})
        made = train.fit(few, tune, protocol=protocol, strategy="full", seed=0, **given)  # type: ignore[arg-type]
        return network.save_weights(made.module)

    unbroken = weights("muon")
    assert unbroken != weights("adamw")
    left = iter(range(5))

    def kill() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        weights("muon", checkpoints=tmp_path, keep_going=kill)
    assert weights("muon", checkpoints=tmp_path) == unbroken
