"""After an update: mixtures of weights, and BatchNorm measured anew for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipelines import blend


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2)).eval()


IMAGES = np.random.default_rng(0).random((300, 1, 8, 8)).astype(np.float32) * 0.3 + 0.5


def test_a_mixture_lies_between_the_two() -> None:
    one, two = _network(0).state_dict(), _network(1).state_dict()
    mixed = blend.mixture(one, two, share=0.25)
    assert torch.allclose(mixed["0.weight"], 0.25 * one["0.weight"] + 0.75 * two["0.weight"])
    assert torch.equal(blend.mixture(one, two, share=1.0)["4.bias"], one["4.bias"])


def test_batch_norm_holds_the_statistics_of_the_images_it_was_measured_on() -> None:
    network = _network(0)
    blend.measure_batch_norm(network, IMAGES)
    seen = network[0](torch.from_numpy(IMAGES)).detach()  # type: ignore[index]
    assert torch.allclose(network[1].running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4)  # type: ignore[index]
    assert torch.allclose(network[1].running_var, seen.var(dim=(0, 2, 3)), rtol=0.05)  # type: ignore[index]
    assert not network.training
    assert network[1].momentum == 0.1  # type: ignore[index]


def test_a_network_without_batch_norm_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    blend.measure_batch_norm(network, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("wanted", [0.25, 0.5, 1.0])
def test_the_mixture_of_least_loss_is_chosen(wanted: float) -> None:
    candidate, champion = _network(0), _network(1)
    target = blend.mixture(candidate.state_dict(), champion.state_dict(), share=wanted)["4.weight"]

    def loss(network: nn.Module) -> float:
        return float((network[4].weight.detach() - target).square().sum())  # type: ignore[index]

    share = blend.choose(candidate, champion=champion, shares=(0.25, 0.5, 0.75, 1.0), images=IMAGES, loss=loss)
    assert share == wanted
    assert torch.equal(candidate.state_dict()["4.weight"], target)
