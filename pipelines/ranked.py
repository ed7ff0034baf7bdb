"""What a network is taught by: the log-loss, and where the classes are grades their ranks too.

The ranked probability score is the sum, over the grades but the last, of the squared distance between the probability
of being at most there and whether that is so. Like the log-loss it is strictly proper, so their sum is: the
probabilities stay those of the classes (docs/decisions/0021).

References: Epstein, Journal of Applied Meteorology 1969; Hou et al., arXiv:1611.05916 (as a network's loss).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def loss(logits: Tensor, labels: Tensor, *, task: Literal["nominal", "ordinal"]) -> Tensor:
    """Return the mean loss of `logits` (B, K) for `labels` (B,) in 0..K-1: log-loss in nats, for grades more."""
    told = functional.cross_entropy(logits, labels)
    if task == "nominal":
        return told
    at_most = torch.softmax(logits, dim=1).cumsum(dim=1)[:, :-1]  # (B, K - 1)
    is_so = labels[:, None] <= torch.arange(at_most.shape[1], device=labels.device)
    return told + (at_most - is_so.to(at_most.dtype)).square().sum(dim=1).mean()
