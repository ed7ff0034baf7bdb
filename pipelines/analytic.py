"""A new head without learning: the champion's features stay, and its last layer is solved in one step.

Invariant: only the last linear layer changes, and it depends on the cases alone, not on their order or on any rate.
Since the cases are stored, solving over all of them gives what recursive least squares would give batch by batch.

Reference: ACIL, Zhuang et al., NeurIPS 2022 (analytic class-incremental learning); Hoerl and Kennard, 1970 (ridge).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines import predict


def solve_head(module: nn.Module, *, images: NDArray[np.float32], labels: NDArray[np.int64], ridge: float) -> None:
    """Set the last linear layer of `module` to the ridge regression of `labels` (N,), +1 and -1, on its features.

    `images` (N, C, H, W) float32 in [0, 1]; `ridge` > 0 in units of the mean square of a feature. The logits are on the
    scale of the targets: the temperature has to be fitted afterwards. Raises ValueError without a linear layer.
    """
    head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1:]
    if not head:
        raise ValueError("the network has no linear layer to solve")
    features = _features(module, head[0], images)  # (N, D)
    design = np.hstack([features, np.ones((len(features), 1))])
    targets = np.where(labels[:, None] == np.arange(head[0].out_features), 1.0, -1.0)  # (N, K)
    penalty = np.full(design.shape[1], ridge * len(design) * float(np.mean(features**2)))
    penalty[-1] = 0.0  # the intercept is free
    solved = np.linalg.solve(design.T @ design + np.diag(penalty + 1e-9), design.T @ targets)  # (D + 1, K)
    with torch.no_grad():
        head[0].weight.copy_(torch.from_numpy(solved[:-1].T))
        if head[0].bias is not None:
            head[0].bias.copy_(torch.from_numpy(solved[-1]))


def _features(module: nn.Module, head: nn.Linear, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """What arrives at `head` for each image, (N, D)."""
    seen: list[NDArray[np.float64]] = []

    def keep(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().cpu().double().numpy())

    hook = head.register_forward_pre_hook(keep)
    try:
        predict.in_batches(module.eval(), images)
    finally:
        hook.remove()
    return np.concatenate(seen)
