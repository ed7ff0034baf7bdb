"""The champion as the start of an update, and as its teacher.

Invariant: its weights are used only if their bytes match their digest; weights that it does not have, those of a new
network or the rows of new classes, depend on the seed alone. torch's global generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines import network
from pipelines.strategies import Plan
from pipelines.types import Digest, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The champion that an update starts from."""

    weights: Path
    weights_digest: Digest
    architecture: network.Architecture
    dataset_number: int
    fisher: Path | None = None
    """How much each of its weights matters (`pipelines.consolidate`); None: that was not measured."""
    fisher_digest: Digest | None = None


def from_job(document: Mapping[str, Any] | None) -> Base | None:
    """Read the champion out of a job's configuration; None where there is none."""
    if document is None:
        return None
    fisher = document.get("state", {}).get("fisher")
    return Base(
        weights=Path(document["weights"]),
        weights_digest=Digest(document["weights_digest"]),
        architecture=network.from_document(document["architecture"]),
        dataset_number=int(document["dataset_number"]),
        fisher=None if fisher is None else Path(fisher["path"]),
        fisher_digest=None if fisher is None else Digest(fisher["digest"]),
    )


def fitting(
    base: Base | None, *, architecture: network.Architecture, strategy: Strategy
) -> tuple[Base | None, list[str]]:
    """Return the champion if it can be the start of this architecture and strategy, and what there is to say if not."""
    if base is None:
        return None, []
    if base.architecture != architecture and not network.grows_into(base.architecture, architecture):
        return None, ["the champion has another architecture or other classes: trained from nothing"]
    if strategy == "ewc" and base.fisher is None:
        return None, ["how much each weight of the champion matters was not measured with it: trained from nothing"]
    return base, []


def growth(base: Base | None, *, architecture: network.Architecture, plan: Plan) -> list[str]:
    """Return a note on the classes by which the champion's head grew, none where it did not."""
    if base is None or base.architecture == architecture or plan.start == "nothing":
        return []
    added = [name for name in architecture.classes if name not in base.architecture.classes]
    return [f"the champion's head grew by {', '.join(added)}" if added else "the champion's classes in another order"]


def first_weights(architecture: network.Architecture, *, plan: Plan, base: Base | None, seed: int) -> nn.Module:
    """Return the champion with its weights, or a new network whose weights depend on the seed alone."""
    if plan.start == "champion":
        return grown(architecture, base=base, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build(architecture)


def grown(architecture: network.Architecture, *, base: Base | None, seed: int) -> nn.Module:
    """Return the champion with a row of its head for each class; rows it has not learned depend on the seed alone."""
    assert base is not None, "a plan asks for a champion only if there is one"
    if base.architecture == architecture:
        return as_it_is(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.load_grown(
            base.weights,
            architecture=architecture,
            trained_as=base.architecture,
            expected_digest=base.weights_digest,
        )


def as_it_is(base: Base) -> nn.Module:
    """Return the champion as it is. Raises WeightsCorrupt where its bytes are not those of its digest, and OSError."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn before they are overwritten
        return network.load_model(base.weights, architecture=base.architecture, expected_digest=base.weights_digest)
