"""Several processes that train one model on one machine: each takes its parts of every batch, all take the same step.

Invariant: after every step all have the same weights. A batch is cut into parts as where memory is short
(`pipelines.memory`), the parts are dealt out and their gradients added up, so a step is that of one process with as
many parts, but for the order of the sum, and for what dropout leaves out in the networks that have it; BatchNorm's
running statistics are the mean over the processes. The first process alone looks at the clock and writes.

Reference: Li et al., "PyTorch Distributed", VLDB 2020 (data-parallel training by adding up gradients).

    torchrun --nproc-per-node 2 -m pipelines.train JOB_DIR
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The processes that train together, and which of them this one is; by itself, it is the first and only."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes: a GPU of its own, or the CPU."""
        return torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")

    def mine(self, parts: Sequence[T]) -> Sequence[T]:
        """Return this process's share of the parts of a batch; none where there are fewer than processes."""
        return parts[self.rank :: self.size]

    def add_up(self, module: nn.Module, loss: float) -> float:
        """Add up the gradients of all processes, and average BatchNorm's statistics; returns the sum of the losses."""
        if self.size == 1:
            return loss
        told = torch.tensor(loss, dtype=torch.float64, device=next(module.parameters()).device)
        distributed.all_reduce(told)
        for parameter in module.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._sum([parameter.grad for parameter in module.parameters() if parameter.grad is not None])
        running = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._sum(running)
        for buffer in running:
            buffer.div_(self.size)
        return float(told)

    def of_the_first(self, value: float) -> float:
        """Return the first process's value in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        if not tensors:
            return
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(message)
        for tensor, summed in zip(tensors, torch.split(message, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that `torchrun` has started, by what it says in the environment; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Group(rank=distributed.get_rank(), size=size)
    finally:
        distributed.destroy_process_group()
