"""AdamW: what moves the weights of a network, one step after the other.

Torch's own kernel and the same bits, without `torch.optim.Optimizer`, whose first use imports torch's compiler: two
seconds of a processor at the start of every training, for nothing that is compiled here.

Reference: Loshchilov, Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """Moves parameters by their gradients; `state` holds by the position of a parameter what it keeps between steps.

    These are `step`, how often it was moved, and `exp_avg` and `exp_avg_sq`, the running means of its gradient and of
    the gradient's square; a parameter that never had a gradient has none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float) -> None:
        self.parameters = tuple(parameters)
        self.state: dict[int, dict[str, Tensor]] = {}
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, *, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        moved = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for place in moved:
            if place not in self.state:
                self.state[place] = _nothing_yet(self.parameters[place])
        kept = [self.state[place] for place in moved]
        adamw(
            [self.parameters[place] for place in moved],
            [grad for parameter in self.parameters if (grad := parameter.grad) is not None],
            [moments["exp_avg"] for moments in kept],
            [moments["exp_avg_sq"] for moments in kept],
            [],
            [moments["step"] for moments in kept],
            fused=True,
            amsgrad=False,
            beta1=FIRST_DECAY,
            beta2=SECOND_DECAY,
            lr=learning_rate,
            weight_decay=self._weight_decay,
            eps=EPSILON,
            maximize=False,
        )


def _nothing_yet(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }
