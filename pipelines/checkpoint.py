"""Checkpoints of a training run: one safetensors file and one JSON file an epoch, the last two kept.

Invariant: a checkpoint is used only if its bytes match its digest and it is of the very same run; otherwise the one
before is used, otherwise the run starts anew. The JSON is written last, so a checkpoint without it does not exist. Runs
that share a directory, such as one in more parts after memory ran out, leave each other's alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipelines import job
from pipelines.network import digest_of_bytes

KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A run after `epoch` epochs. `module`, `average` and `optimiser` are filled in place by `load`."""

    module: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    chosen: Mapping[str, Tensor] | None = None
    """Weights of the latest epoch that chance could not tell from the best up to it."""
    chosen_epoch: int = 0
    ceiling: float = math.inf
    """The least, over the epochs, of log-loss on tune plus its standard error: no epoch above it is chosen."""
    history: tuple[dict[str, Any], ...] = ()


def save(state: State, *, directory: Path, identity: str) -> None:
    """Write the state after an epoch and remove what is older than the one before."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"module/{name}": tensor for name, tensor in state.module.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {f"chosen/{name}": tensor for name, tensor in (state.chosen or {}).items()}
    for position, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{position}/{name}": tensor for name, tensor in moments.items()}
    # clone: safetensors refuses tensors that share memory
    data = save_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    name = f"epoch-{identity[:16]}-{state.epoch:05d}"
    job.write_atomically(directory / f"{name}.safetensors", data)
    document = {
        "identity": identity,
        "digest": digest_of_bytes(data),
        "epoch": state.epoch,
        "chosen_epoch": state.chosen_epoch,
        "ceiling": state.ceiling,
        "history": list(state.history),
    }
    job.write_atomically(directory / f"{name}.json", json.dumps(document, allow_nan=False).encode())
    for old in _of(identity, directory=directory)[KEPT:]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load(state: State, *, directory: Path, identity: str) -> State:
    """Fill the state from the newest sound checkpoint of this run; returns it as it is where there is none."""
    for file in _of(identity, directory=directory):
        found = _read(file, identity=identity)
        if found is not None:
            return _fill(state, document=found[0], tensors=found[1])
    return state


def _of(identity: str, *, directory: Path) -> list[Path]:
    """Name a run's checkpoints, the newest first."""
    return sorted(directory.glob(f"epoch-{identity[:16]}-*.json"), reverse=True)


def _read(file: Path, *, identity: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        data = file.with_suffix(".safetensors").read_bytes()
    except (OSError, ValueError):  # cut short by a crash: the one before is there for that
        return None
    if not isinstance(document, dict) or document.get("identity") != identity:
        return None
    if document["digest"] != digest_of_bytes(data):
        return None
    return document, load_tensors(data)


def _fill(state: State, *, document: dict[str, Any], tensors: dict[str, Tensor]) -> State:
    state.module.load_state_dict(_below("module/", tensors))
    state.average.load_state_dict(_below("average/", tensors))
    parameters = [parameter for group in state.optimiser.param_groups for parameter in group["params"]]
    for position, parameter in enumerate(parameters):
        moments = _below(f"optimiser/{position}/", tensors)
        # In the parameter's own memory layout, or the resumed sums would differ in their last bits.
        state.optimiser.state[parameter] = {
            name: torch.empty_like(parameter).copy_(tensor)
            if tensor.shape == parameter.shape
            else tensor.to(parameter.device)  # the count of steps, which fused AdamW wants beside the parameter
            for name, tensor in moments.items()
        }
    return State(
        module=state.module,
        average=state.average,
        optimiser=state.optimiser,
        epoch=document["epoch"],
        chosen={name: tensor.to(parameters[0].device) for name, tensor in _below("chosen/", tensors).items()},
        chosen_epoch=document["chosen_epoch"],
        ceiling=document["ceiling"],
        history=tuple(document["history"]),
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
