"""The last layer, solved instead of learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from pipelines import analytic

RNG = np.random.default_rng(0)
IMAGES = RNG.random((300, 1, 2, 3)).astype(np.float32)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) * 3).astype(np.int64).clip(0, 2)


def test_the_solution_is_that_of_ridge_regression() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    analytic.solve_head(network, images=IMAGES, labels=LABELS, ridge=0.01)
    features = IMAGES.reshape(300, 6).astype(np.float64)
    targets = np.where(LABELS[:, None] == np.arange(3), 1.0, -1.0)
    peer = Ridge(alpha=0.01 * 300 * np.mean(features**2)).fit(features, targets)
    assert network[1].weight.detach().numpy() == pytest.approx(peer.coef_, abs=1e-5)
    assert network[1].bias.detach().numpy() == pytest.approx(peer.intercept_, abs=1e-5)


def test_the_order_of_the_cases_does_not_matter() -> None:
    solved = []
    for rows in (np.arange(300), RNG.permutation(300)):
        network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
        analytic.solve_head(network, images=IMAGES[rows], labels=LABELS[rows], ridge=0.01)
        solved.append(network[1].weight.detach())
    assert torch.allclose(solved[0], solved[1], atol=1e-6)


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer"):
        analytic.solve_head(nn.Flatten(), images=IMAGES, labels=LABELS, ridge=0.01)
