"""A trained model in use: scores, the decision at its operating point, a heat map, and its exportable form.

Invariant: a model is weights checked against their digest plus the metadata written when it was trained; the same two
give the same scores wherever they are loaded, in training, in the gates and in the inference process.

References: Selvaraju et al., ICCV 2017 (GradCAM, by MONAI); Zhang, ICML 2019 (networks that halve an image step by step
answer otherwise when it moves by a pixel: hence the mean over moved copies).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipelines import network, ordinal, several
from pipelines.findings import joined
from pipelines.network import Architecture, from_document, load_model

BATCH = 256
BATCH_PIXELS = 2**21
"""Most numbers in a batch: 256 images of 90 x 90, 32 of 256 x 256."""


SHIFT = 1.0 / 28.0
"""How far the copies of an image are moved, as a share of its side; one pixel at least."""


class Shifted(nn.Module):
    """A network asked of an image and of copies moved along each axis either way: the mean of its logits.

    Five answers for an image, seven for a volume; what comes in at an edge is the edge again. All copies go through the
    network in one pass: for one image that takes less than half the time of a pass each.
    """

    @staticmethod
    def copies(axes: int) -> int:
        """How many an image or volume with so many axes is scored as: itself, and two for each axis."""
        return 1 + 2 * axes

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, classes) logits of `images` (N, C, H, W) or volumes (N, C, D, H, W)."""
        steps = [max(1, round(SHIFT * side)) for side in images.shape[2:]]
        padded = functional.pad(images, [step for step in steps[::-1] for _ in range(2)], mode="replicate")
        moves = [[0] * len(steps)] + [
            [way * step if k == axis else 0 for k in range(len(steps))]
            for axis, step in enumerate(steps)
            for way in (-1, 1)
        ]
        copies = []
        for move in moves:
            moved = padded
            for axis, (step, way) in enumerate(zip(steps, move, strict=True)):
                moved = moved.narrow(2 + axis, step + way, images.shape[2 + axis])
            copies.append(moved)
        logits: Tensor = self.module(torch.cat(copies))
        return logits.reshape(len(moves), -1, logits.shape[1]).mean(dim=0)


class Probabilities(nn.Module):
    """A network with its calibration inside: (N, C, H, W) float32 in [0, 1] -> (N, classes) probabilities.

    They are softmax(logits / temperature + log_prior), `log_prior` (classes,) the class shares of the line; of
    `several` findings each is by itself, the logistic function in place of softmax. Plain enough for `torch.export`
    with a dynamic first dimension.
    """

    log_prior: Tensor

    def __init__(
        self, module: nn.Module, *, temperature: float, log_prior: Sequence[float], several: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.temperature = temperature
        self.several = several
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        self.register_buffer("log_prior", torch.tensor(log_prior, dtype=torch.float32, device=device))

    def forward(self, images: Tensor) -> Tensor:
        """Return class probabilities."""
        scaled = self.module(images) / self.temperature + self.log_prior
        return torch.sigmoid(scaled) if self.several else torch.softmax(scaled, dim=1)


class Model:
    """A network in eval mode with the metadata it was trained with. Not for use by two threads at once."""

    def __init__(self, module: nn.Module, metadata: Mapping[str, Any]) -> None:
        self.module = module.eval()
        self.metadata = metadata
        self.architecture: Architecture = from_document(metadata["architecture"])
        self.classes: tuple[str, ...] = tuple(metadata["classes"])
        positive = metadata["positive"]
        self.positive_index: int | None = None if positive is None else self.classes.index(positive)
        point = metadata["operating_point"]
        self.threshold: float | None = None if point is None else point["threshold"]
        self.points = metadata["operating_points_by_site"] if metadata.get("decides_by_site") else {}
        self.several: bool = metadata.get("several", False)
        own = metadata.get("operating_points", {})
        self.thresholds: dict[str, float | None] = {name: point["threshold"] for name, point in own.items()}
        """Of several findings that of each; None: no threshold met the rule."""
        self._probabilities = _calibrated(self.module, metadata)
        self._explainers: list[Callable[..., Tensor]] = []

    @classmethod
    def from_files(cls, weights: Path, *, metadata: Mapping[str, Any], expected_digest: str | None) -> Model:
        """Load a model. Raises WeightsCorrupt where the bytes are not those of `expected_digest`, and OSError."""
        architecture = from_document(metadata["architecture"])
        return cls(load_model(weights, architecture=architecture, expected_digest=expected_digest), metadata)

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return class probabilities (N, classes) float32 of `images` (N, C, H, W) float32 in [0, 1]."""
        return in_batches(self._probabilities, images)

    def point(self, site: str | None = None) -> Mapping[str, Any] | None:
        """Return the operating point that decides at a site (None: not known which), None where there is none at all.

        It is the line's, unless the model decides by site and a threshold met the rule at this one. Of several findings
        it is that of each, by name.
        """
        if self.several:
            return self.metadata["operating_points"]  # type: ignore[no-any-return]
        own = self.points.get(site)
        if self.threshold is None or own is None or own["threshold"] is None:
            return self.metadata["operating_point"]  # type: ignore[no-any-return]
        return own  # type: ignore[no-any-return]

    def decided(self, scores: NDArray[Any], *, sites: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the class index decided for each row of `scores` (N, classes); `sites` (N,) where they are known.

        With an operating point: the positive class at or above the threshold, else the likeliest of the others.
        Without one: the likeliest class, or among grades their median. Of several findings (N, K) bool: those whose
        score reaches their own threshold.
        """
        if self.several:
            return several.decided(scores, [self.thresholds[name] for name in self.classes])
        if self.metadata.get("ordinal"):
            return ordinal.decided(scores)
        if self.positive_index is None or self.threshold is None:
            return np.asarray(scores.argmax(axis=1), dtype=np.int64)
        thresholds = np.full(len(scores), self.threshold)
        if sites is not None and self.points:
            for site in np.unique(sites):
                point = self.point(str(site))
                assert point is not None, "a model with a threshold has an operating point"
                thresholds[sites == site] = point["threshold"]
        others = scores.copy()
        others[:, self.positive_index] = -1.0
        called = scores[:, self.positive_index] >= thresholds
        return np.where(called, self.positive_index, others.argmax(axis=1)).astype(np.int64)

    def unclear(self, scores: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which rows of `scores` (N, classes) need a second look: those within the protocol's band, or none."""
        band = self.metadata.get("second_look")
        if band is None or self.positive_index is None:
            return np.zeros(len(scores), dtype=np.bool_)
        own = scores[:, self.positive_index]
        return np.asarray((own >= band["low"]) & (own <= band["high"]))

    def decision(self, scores: NDArray[Any], *, sites: NDArray[Any] | None = None) -> list[str]:
        """Return the answer decided for each row of `scores` (N, classes), in words, as `decided`."""
        if self.several:
            return [joined(row, self.classes) for row in self.decided(scores)]
        return [self.classes[index] for index in self.decided(scores, sites=sites)]

    def heat_map(self, image: NDArray[np.float32], class_index: int) -> NDArray[np.float32]:
        """Return where `image` (C, H, W) speaks for a class: (H, W) float32 in [0, 1], 1 where most; GradCAM.

        Of a volume (1, D, H, W), (D, H, W). All 0 where nothing in the image speaks for the class.
        """
        if not self._explainers:
            members, layer = network.members_of(self.module), self.architecture.gradcam_layer
            self._explainers = [_explainer(member, layer=layer) for member in members]
        shown = torch.from_numpy(np.array(image[None], dtype=np.float32))
        heats = [explain(shown, class_idx=class_index)[0, 0].detach().numpy() for explain in self._explainers]
        heat = np.asarray(sum(heats), dtype=np.float32)
        return heat / heat.max() if heat.max() > 0.0 else heat


def export(model: Model) -> nn.Module:
    """Return a module of its own that maps (N, C, H, W) float32 in [0, 1] to probabilities, for `torch.export`."""
    return _calibrated(copy.deepcopy(model.module), model.metadata)


def in_batches(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `module` applied to `images` (N, C, H, W) or (N, 1, D, H, W) batch by batch, (N, classes) float32."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    parts = []
    size = min(BATCH, BATCH_PIXELS // math.prod(images.shape[1:]))
    shifted = any(isinstance(part, Shifted) for part in module.modules())
    size = max(1, size // (Shifted.copies(len(images.shape) - 2) if shifted else 1))
    with torch.inference_mode():
        for start in range(0, len(images), size):
            batch = torch.from_numpy(np.array(images[start : start + size], dtype=np.float32))
            parts.append(module(batch.to(device)).cpu().numpy())
    if not parts:
        return np.empty((0, 0), dtype=np.float32)
    return np.concatenate(parts).astype(np.float32)


def answering(module: nn.Module, *, test_time_shifts: bool) -> nn.Module:
    """Return what gives the logits that count: the network itself, or the mean over moved copies of each image."""
    return Shifted(module) if test_time_shifts else module


def _calibrated(module: nn.Module, metadata: Mapping[str, Any]) -> Probabilities:
    return Probabilities(
        answering(module, test_time_shifts=metadata.get("test_time_shifts", False)),
        temperature=float(metadata["temperature"]),
        log_prior=[float(v) for v in metadata["log_prior"]],
        several=metadata.get("several", False),
    ).eval()


def _explainer(module: nn.Module, *, layer: str) -> Callable[..., Tensor]:
    """GradCAM on a copy of `module` on the CPU: its hooks must not stay on the network that serves."""
    explained = copy.deepcopy(module).cpu().requires_grad_(True)
    for part in explained.modules():
        if isinstance(getattr(part, "inplace", None), bool):
            setattr(part, "inplace", False)  # noqa: B010 - mypy; in place would overwrite what the hook has to keep
    # MONAI's own post-processing turns the map upside down, the most telling place becoming 0.
    return network.monai("visualize").GradCAM(nn_module=explained, target_layers=layer, postprocessing=_as_it_is)  # type: ignore[no-any-return]


def _as_it_is(heat: Tensor) -> Tensor:
    return heat
