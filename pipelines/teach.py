"""The champion as teacher: how far a network's answers are from its own.

Invariant: the teacher looks at the very images that the network sees, augmented alike, and never learns.

References: LwF, Li and Hoiem, ECCV 2016, section 3 (softened answers); DER++, Buzzega et al., NeurIPS 2020 (logits).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.strategies import Teaching

TEMPERATURE = 2.0
"""Softens the answers of both before they are compared, so that the unlikely classes count too."""


def apart(logits: Tensor, images: Tensor, *, teacher: nn.Module, held: Tensor, teaching: Teaching) -> Tensor:
    """Return the weighted distance between `logits` (B, K) and the teacher's on those of `images` that are `held` (B,).

    Mean over these cases, and 0 where there is none: cross-entropy between softened answers, in nats, or the mean
    square between logits.
    """
    if not bool(held.any()):
        return logits.new_zeros(())
    with torch.no_grad():
        wanted = teacher(images[held])
    if teaching.distance == "logits":
        distance = functional.mse_loss(logits[held], wanted)
    else:
        softened = torch.softmax(wanted / TEMPERATURE, dim=1)
        distance = functional.cross_entropy(logits[held] / TEMPERATURE, softened) * TEMPERATURE**2
    return teaching.weight * distance
