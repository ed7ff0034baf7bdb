"""What a network is taught by: the answers that were given, and the champion, how far the answers are from its own.

Invariant: the teacher looks at the very images that the network sees, augmented alike, and never learns.

References: LwF, Li and Hoiem, ECCV 2016, section 3 (softened answers); DER++, Buzzega et al., NeurIPS 2020 (logits).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.strategies import Teaching

TEMPERATURE = 2.0
"""Softens the answers of both before they are compared, so that the unlikely classes count too."""


def given(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean log-loss in nats of `logits` (B, K) for `labels` (B,), or for (B, K) bool of each column."""
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def apart(
    logits: Tensor,
    images: Tensor,
    *,
    teacher: nn.Module,
    columns: Sequence[int],
    held: Tensor,
    teaching: Teaching,
    part_weight: float = 1.0,
) -> Tensor:
    """Return the weighted distance between `logits` (B, K) and the teacher's on those of `images` that are `held` (B,).

    `columns` are those of the teacher's classes: of a class that is new to it, it says nothing. Mean over the held
    cases, and 0 where there is none: cross-entropy between softened answers, in nats, or mean square between logits;
    times `part_weight`, what these cases count for where they are a part of a batch.
    """
    if not bool(held.any()):
        return logits.new_zeros(())
    with torch.no_grad():
        wanted = teacher(images[held])
    answers = logits[held][:, columns]
    if teaching.distance == "logits":
        distance = functional.mse_loss(answers, wanted)
    else:
        softened = torch.softmax(wanted / TEMPERATURE, dim=1)
        distance = functional.cross_entropy(answers / TEMPERATURE, softened) * TEMPERATURE**2
    return teaching.weight * part_weight * distance
