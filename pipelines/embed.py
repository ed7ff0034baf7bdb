"""How a model sees an image before it decides: what its last layer is given, made small.

Invariant: equal weights and equal images give equal embeddings; they mean something only beside others of the same
model. The projection to `WIDTH` numbers is random but fixed, and keeps squared distances within about a third of their
size.

Reference: Johnson and Lindenstrauss, Contemporary Mathematics 26, 1984.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.data_repository import VersionDamaged
from pipelines.images import to_network_input
from pipelines.predict import BATCH, Model
from pipelines.shards import read_blob

WIDTH = 64


def look(model: Model, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scores (N, K) float32 in [0, 1] and embeddings (N, 64 or fewer) float32 of `images` (N, C, H, W).

    Raises ValueError for a network without a linear last layer.
    """
    last = _last_linear(model.module)
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    projection = _projection(last.in_features)
    scores, embeddings = [], []
    try:
        for start in range(0, len(images), BATCH):
            scores.append(model.scores(images[start : start + BATCH]))
            embeddings.append((torch.cat(seen).cpu() @ projection).numpy())
            seen.clear()
    finally:
        handle.remove()
    if not scores:
        return np.empty((0, len(model.classes)), np.float32), np.empty((0, projection.shape[1]), np.float32)
    return np.concatenate(scores), np.concatenate(embeddings)


def look_at_stored(
    model: Model, digests: Sequence[str], *, blobs: Path, keep_going: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Have a model look at images of the blob store: scores (N, K), embeddings (N, d), NaN where one cannot be read."""
    spec = model.architecture.input
    scores = np.full((len(digests), len(model.classes)), np.nan, dtype=np.float32)
    embeddings = np.full((len(digests), width_of(model)), np.nan, dtype=np.float32)
    for start in range(0, len(digests), BATCH):
        keep_going()
        rows, pixels = [], []
        for row, digest in enumerate(digests[start : start + BATCH], start=start):
            with contextlib.suppress(VersionDamaged):
                pixels.append(read_blob(blobs, digest))
                rows.append(row)
        if rows:
            scores[rows], embeddings[rows] = look(model, to_network_input(pixels, spec))
    return scores, embeddings


def width_of(model: Model) -> int:
    """Return how many numbers an embedding by this model has."""
    return min(WIDTH, _last_linear(model.module).in_features)


def _last_linear(module: nn.Module) -> nn.Linear:
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise ValueError("this network has no linear last layer to look before")
    return layers[-1]


def _projection(width: int) -> Tensor:
    """(width, 64); narrow layers are left as they are."""
    if width <= WIDTH:
        return torch.eye(width)
    return torch.randn(width, WIDTH, generator=torch.Generator().manual_seed(0)) / math.sqrt(WIDTH)
