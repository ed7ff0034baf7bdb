"""What moves the weights: AdamW, or Muon, by which a layer's step goes equally far in every direction that it has.

A layer's gradient is mostly of a few directions, and AdamW follows these; under Muon rare ones count as much. By it the
weights of convolutions and of inner linear layers move by the momentum's nearest orthogonal matrix, a row an output;
the last layer, biases and BatchNorm move by AdamW, and so do convolutions whose channels are apart (EfficientNet's).
Invariant: the same gradients give the same weights, in float32, and one learning rate does for both, since a step of
Muon is as long as AdamW's usually are.

References: AdamW, Loshchilov and Hutter, ICLR 2019. Jordan et al. 2024, "Muon" (momentum, Nesterov, the quintic); Liu
et al. 2025, "Muon is scalable for LLM training" (length of a step, weight decay). What it is worth: decision 29.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.network import members_of
from pipelines.recipe import Recipe

MOMENTUM = 0.95
LENGTH = 0.2
"""Root mean square of a step before the learning rate: what AdamW's steps usually have."""
QUINTIC = (3.4445, -4.775, 2.0315)
"""3.4445 s - 4.775 s^3 + 2.0315 s^5 brings a singular value s in (0, 1] to about 1 (.68 to 1.13) in a few turns."""
TURNS = 5


def over(module: nn.Module, *, recipe: Recipe) -> torch.optim.AdamW:
    """Return the recipe's optimiser over the parameters of `module`; each step's learning rate is set before it."""
    if recipe.optimiser == "muon":
        return Muon(module, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(module.parameters(), weight_decay=recipe.weight_decay, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW over all parameters of `module`, except that its layers' matrices move orthogonally."""

    def __init__(self, module: nn.Module, *, weight_decay: float) -> None:
        super().__init__(module.parameters(), weight_decay=weight_decay, fused=True)
        self.matrices = list(matrices_of(module))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; those of the matrices are used up."""
        assert closure is None, "a gradient is given, not asked for"
        settings = self.param_groups[0]
        for parameter in self.matrices:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1.0 - MOMENTUM)
            towards = orthogonal(parameter.grad.lerp(state["momentum"], MOMENTUM).flatten(1))  # (outputs, the rest)
            parameter.mul_(1.0 - settings["lr"] * settings["weight_decay"])
            length = LENGTH * math.sqrt(max(towards.shape))
            parameter.add_(towards.view(parameter.shape), alpha=-settings["lr"] * length)
            parameter.grad = None  # AdamW passes it by
        super().step()


def matrices_of(module: nn.Module) -> Iterator[Tensor]:
    """The weights of `module` that are matrices within it: of convolutions and of linear layers but the last one."""
    for member in members_of(module):
        layers = [part for part in member.modules() if isinstance(part, nn.Linear)][:-1]
        convolutions = [part for part in member.modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        yield from (part.weight for part in convolutions if part.groups == 1)
        yield from (part.weight for part in layers)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return `matrix` (M, N) float32 with its singular values s brought near 1: U S V' becomes about U V'.

    The quintic's odd powers are polynomials of the smaller Gram matrix times `matrix`, so all turns are made on that:
    for 128 x 1152 less than half the time of turning the matrix itself. Directions of less than a thousandth of the
    matrix's length stay short, and a matrix of noughts stays one.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = wide @ wide.T  # (m, m), m the smaller side
    norm = gram.trace().sqrt() + 1e-7
    gram = gram / norm**2
    total = None  # so many turns at once, as a polynomial of the Gram matrix
    first, third, fifth = QUINTIC
    for left in reversed(range(TURNS)):
        turn = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        turn.diagonal().add_(first)
        total = turn if total is None else turn @ total
        if left:
            gram = turn @ turn @ gram
    assert total is not None
    turned = (total @ wide) / norm
    return turned if wide is matrix else turned.T
