"""Weights to begin with: a safetensors file that lies in a folder of this machine, named by the protocol with digest.

Invariant: nothing is fetched, nothing in the file can run, and a file of another digest is refused. Tensors that have a
name and a shape in the network are taken over; the others keep the first weights that the seed gives them, and what was
taken is said in words.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from pipelines import job, network
from pipelines.recipe import InitialWeights

NAMED = 3
"""Tensors that keep their own first weights of which the note tells the names."""


class InitialWeightsRefused(job.Refused):
    """The file that a protocol names cannot be begun with; the message says why."""


def fill(module: nn.Module, wanted: InitialWeights | None, *, folder: Path | None) -> list[str]:
    """Take over into `module` what fits of the weights in `folder`; returns a note that says how much.

    Nothing, and no note, where none are wanted. Raises InitialWeightsRefused.
    """
    if wanted is None:
        return []
    if folder is None:
        raise InitialWeightsRefused(f"no folder is named in which {wanted.file} could lie")
    try:
        data = (folder / wanted.file).read_bytes()
    except OSError as error:
        raise InitialWeightsRefused(
            f"the weights to begin with, {folder / wanted.file}, cannot be read ({error.strerror}): put them there"
        ) from error
    if network.digest_of_bytes(data) != wanted.digest:
        raise InitialWeightsRefused(
            f"{wanted.file} has SHA-256 {network.digest_of_bytes(data)}, not the {wanted.digest} of the protocol"
        )
    try:
        known = load_tensors(data)
    except SafetensorError as error:
        raise InitialWeightsRefused(f"{wanted.file} is no safetensors file: {error}") from error
    return [_taken(module, known, file=wanted.file)]


@torch.no_grad()
def _taken(module: nn.Module, known: dict[str, torch.Tensor], *, file: str) -> str:
    own, fitting = [], 0
    for part in network.members_of(module):
        for name, tensor in part.state_dict().items():
            found = known.get(name, known.get(name.removeprefix("network.")))  # an equalising network, or the bare one
            if found is not None and _of_half_the_channels(found, tensor):
                found = torch.cat([found, torch.zeros_like(found)], dim=1)  # what is equalised says nothing yet
            if found is not None and found.shape == tensor.shape:
                tensor.copy_(found)
                fitting += 1
            else:
                own.append(name)
    if not fitting:
        raise InitialWeightsRefused(f"no tensor of {file} has a name and a shape of the network: it is of another one")
    kept = ", ".join(own[:NAMED]) + (f" and {len(own) - NAMED} more" if len(own) > NAMED else "")
    return f"began with {fitting} of {fitting + len(own)} tensors from {file}" + (f"; not {kept}" if own else "")


def _of_half_the_channels(known: torch.Tensor, wanted: torch.Tensor) -> bool:
    return known.ndim > 2 and (known.shape[0], 2 * known.shape[1], *known.shape[2:]) == tuple(wanted.shape)
