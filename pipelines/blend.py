"""Averages of weights: over a run, and between candidate and champion with BatchNorm measured anew for the mixture.

Invariant: nothing here learns. The means and variances that BatchNorm keeps belong to the weights they were measured
with, so a mixture of weights needs its own; they come from a few hundred cases, forwards only.

References: WiSE-FT, Wortsman et al., CVPR 2022 (interpolation keeps what fine-tuning forgets); Izmailov et al., UAI
2018, section 3.2 (BatchNorm after averaging).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.predict import BATCH_PIXELS

BATCH = 128


def following(average: nn.Module, *, towards: nn.Module) -> Callable[[int, int], None]:
    """Return what moves averaged weights towards the network's at a step (from 0) of so many steps in all.

    They look back over a twentieth of the run. The tensors are found once: walking a small network for them at every
    step would cost a fiftieth of the step. Both keep their tensors, whatever is loaded into them.
    """
    pairs = list(zip(_tensors(average), _tensors(towards), strict=True))
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    averaged, learnt = ([pair[side] for pair in pairs if pair[0].is_floating_point()] for side in (0, 1))

    @torch.no_grad()
    def move(step: int, steps: int) -> None:
        share = max(1.0 / max(1.0, 0.05 * steps), 9.0 / (10.0 + step))
        torch._foreach_lerp_(averaged, learnt, min(1.0, share))
        for mine, theirs in counters:
            mine.copy_(theirs)

    return move


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, in the order of the network."""
    return itertools.chain(module.parameters(), module.buffers())


def choose(
    candidate: nn.Module,
    *,
    champion: nn.Module,
    shares: Sequence[float],
    images: NDArray[np.float32],
    loss: Callable[[nn.Module], float],
) -> float:
    """Turn `candidate` into its mixture with `champion` of least `loss`; returns the candidate's share in it.

    `shares` in [0, 1] are tried in turn, BatchNorm measured on `images` (N, C, H, W) for each; of equals the first.
    """
    own = {name: tensor.clone() for name, tensor in candidate.state_dict().items()}
    best: tuple[float, float, dict[str, Tensor]] | None = None
    for share in shares:
        candidate.load_state_dict(mixture(own, champion.state_dict(), share=share))
        measure_batch_norm(candidate, images)
        found = loss(candidate)
        if best is None or found < best[0]:
            best = found, share, {name: tensor.clone() for name, tensor in candidate.state_dict().items()}
    assert best is not None, "there is at least one share to try"
    candidate.load_state_dict(best[2])
    return best[1]


def mixture(candidate: Mapping[str, Tensor], champion: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Return share x candidate + (1 - share) x champion, tensor by tensor; counters are the candidate's."""
    return {
        name: torch.lerp(champion[name], tensor, share) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in candidate.items()
    }


@torch.no_grad()
def measure_batch_norm(module: nn.Module, images: NDArray[np.float32]) -> None:
    """Set the BatchNorm statistics of `module` to those of `images` (N, C, H, W) and leave it in eval mode.

    A network without BatchNorm stays as it is.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    device = next(module.parameters()).device
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    module.train()
    size = max(2, min(BATCH, BATCH_PIXELS // math.prod(images.shape[1:])))
    parts = max(1, round(len(images) / size))
    for part in np.array_split(images, parts):
        module(torch.from_numpy(np.array(part)).to(device))
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
