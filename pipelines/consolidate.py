"""Elastic weight consolidation: how much each weight matters for what was learned, and the pull back to the champion's.

For installs that may not keep images: what is carried from one model to the next is this, a number a weight, beside
the weights and known by its digest. Invariant: it adds up over models, so that a case counts as much as when it was
seen; a weight that the champion does not have, a row for a new class, is held by nothing. BatchNorm's means are no
weights and are not held: the known weakness of the method.

References: Kirkpatrick et al., PNAS 2017; Schwarz et al., ICML 2018 (one sum for all that came before); Kunstner et
al., NeurIPS 2019 (labels drawn from the model's own answers, not the given ones, make it a Fisher matrix).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from pipelines.network import WeightsCorrupt, digest_of_bytes

Fisher = Mapping[str, Tensor]
"""By the name of each parameter, its diagonal Fisher information, in the parameter's shape, summed over cases."""


def measure(module: nn.Module, images: NDArray[np.float32], *, cases: int, seed: int, before: Fisher) -> bytes:
    """Return, as safetensors bytes, the Fisher information of `module` on `images` (N, C, H, W) float32 in [0, 1].

    The mean over `images` stands for `cases` cases and is added to that of `before`. One backward pass an image.
    """
    module.eval()
    parameters = dict(module.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    for image in images:
        logits = module(torch.from_numpy(np.array(image[None], dtype=np.float32)))
        drawn = torch.multinomial(torch.softmax(logits.detach(), dim=1), 1, generator=generator)[:, 0]
        loss = functional.cross_entropy(logits, drawn)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # some of MONAI's networks have parameters that take no part
                sums[name] += gradient**2
    scale = cases / max(1, len(images))
    total = {
        name: before[name].to(own.device) + scale * own if name in before else scale * own for name, own in sums.items()
    }
    return bytes(save_tensors({name: tensor.contiguous() for name, tensor in total.items()}))


def read(file: Path, *, expected_digest: str, like: nn.Module, head: Collection[str], columns: Sequence[int]) -> Fisher:
    """Return what was measured of a champion, in the shapes of `like`; of its `head` rows besides `columns` get 0.

    Raises WeightsCorrupt where the bytes are not those of `expected_digest` or do not fit, and OSError.
    """
    data = file.read_bytes()
    if digest_of_bytes(data) != expected_digest:
        raise WeightsCorrupt(f"{file.name}: SHA-256 {digest_of_bytes(data)} is not the expected {expected_digest}")
    try:
        known = load_tensors(data)
        found = {}
        for name, parameter in like.named_parameters():
            found[name] = torch.zeros_like(parameter, requires_grad=False)
            found[name][list(columns) if name in head else ...] = known[name]
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise WeightsCorrupt(f"{file.name} does not fit the network: {error}") from error
    return found


@torch.no_grad()
def pull(module: nn.Module, *, back_to: Mapping[str, Tensor], fisher: Fisher, weight: float) -> None:
    """Add to the gradients of `module` those of weight / 2 x sum of fisher x (parameter - champion's)^2."""
    for name, parameter in module.named_parameters():
        if parameter.grad is None:  # it takes no part, and stays where it is
            continue
        parameter.grad.add_(fisher[name].to(parameter.device) * (parameter - back_to[name]), alpha=weight)
