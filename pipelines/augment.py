"""Make each training image look as if another machine and another hand had taken it.

Invariant: shapes stay, values stay in [0, 1], and all randomness comes from the generator given. Shifts, small
turns and zooms stand for positioning; gamma, contrast, brightness and noise for the scanner. No mirroring: the heart
has a side.

Volumes (N, 1, D, H, W) are changed alike in all three directions, turned about each of their axes. Left out is what
comes slice by slice, such as motion between slices and thicker slices alone.

Reference: Zhang et al., "Generalizing deep learning for medical image segmentation to unseen domains via deep stacked
transformation", IEEE TMI 2020 (acquisition-like augmentation carries over to unseen scanners).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How far each change may go, either way."""

    shift: float = 0.12
    """Share of the image's side."""
    zoom: float = 0.10
    turn_degrees: float = 10.0
    gamma: float = 0.4
    """Natural logarithm of the exponent."""
    contrast: float = 0.3
    brightness: float = 0.1
    noise: float = 0.04
    """Largest standard deviation of the added noise."""


def acquisition(images: Tensor, *, generator: torch.Generator, strength: Strength | None = None) -> Tensor:
    """Return a changed copy of `images` (N, C, H, W) float32 in [0, 1], each image changed in its own way.

    So are volumes (N, 1, D, H, W).
    """
    limits = strength or Strength()
    matrices = (_in_space if images.ndim == 5 else _in_plane)(images, generator=generator, limits=limits)
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    placed = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return _scanner(placed, generator=generator, limits=limits)


def another_scanner(images: Tensor, *, generator: torch.Generator, share: float) -> Tensor:
    """Return `images` (N, C, H, W) in [0, 1] with a `share` of them as a scanner never seen before would show them.

    Each of those draws its gamma (exponent 0.5 to 2) and contrast (0.5 to 1.6 about a level of .4 to .6), and each
    with a chance of its own black for white, half the resolution, a blur, and noise of up to .08. Left out, so that
    the stream benchmark has families that no training has seen: edge enhancement, bit depth, collimation, markers, and
    noise that depends on the signal. Volumes (N, 1, D, H, W) alike.
    """
    each = _each(images)
    pool, linear = (functional.avg_pool3d, "trilinear") if images.ndim == 5 else (functional.avg_pool2d, "bilinear")

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*each, generator=generator)

    def chosen(chance: float) -> Tensor:
        return torch.rand(*each, generator=generator) < chance

    halved = functional.interpolate(
        pool(images, 2, ceil_mode=True), size=images.shape[2:], mode=linear, align_corners=False
    )
    changed = torch.where(chosen(0.25), halved, images)
    frame = (1, 1) * (images.ndim - 2)
    blurred = pool(functional.pad(changed, frame, mode="replicate"), 3, stride=1)
    changed = torch.where(chosen(0.5), torch.lerp(changed, blurred, drawn(0.0, 1.0)), changed)
    changed = torch.where(chosen(0.35), 1.0 - changed, changed)
    changed = changed.clamp(1e-4, 1.0) ** torch.exp2(drawn(-1.0, 1.0))
    changed = (changed - 0.5) * drawn(0.5, 1.6) + drawn(0.4, 0.6)
    noise = torch.randn(images.shape, generator=generator) * drawn(0.0, 0.08)
    changed = (changed + torch.where(chosen(0.5), noise, 0.0)).clamp(0.0, 1.0)
    return torch.where(chosen(share), changed, images)


def _in_plane(images: Tensor, *, generator: torch.Generator, limits: Strength) -> Tensor:
    """(N, 2, 3): where each image's pixels come from."""
    n = len(images)
    angle = _around_zero(n, generator=generator) * math.radians(limits.turn_degrees)
    zoom = 1.0 + _around_zero(n, generator=generator) * limits.zoom
    matrices = torch.zeros(n, 2, 3)
    matrices[:, 0, 0] = torch.cos(angle) * zoom
    matrices[:, 0, 1] = -torch.sin(angle) * zoom
    matrices[:, 1, 0] = torch.sin(angle) * zoom
    matrices[:, 1, 1] = torch.cos(angle) * zoom
    matrices[:, :, 2] = _around_zero(n, 2, generator=generator) * 2.0 * limits.shift  # the grid spans -1..1
    return matrices


def _in_space(images: Tensor, *, generator: torch.Generator, limits: Strength) -> Tensor:
    """(N, 3, 4): where each volume's voxels come from; a turn is one of voxels, however many there are each way."""
    n = len(images)
    zoom = 1.0 + _around_zero(n, 1, 1, generator=generator) * limits.zoom
    turned = torch.eye(3).repeat(n, 1, 1)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = _around_zero(n, generator=generator) * math.radians(limits.turn_degrees)
        turn = torch.eye(3).repeat(n, 1, 1)
        turn[:, first, first] = turn[:, second, second] = torch.cos(angle)
        turn[:, first, second], turn[:, second, first] = -torch.sin(angle), torch.sin(angle)
        turned = turned @ turn
    sides = torch.tensor(images.shape[:1:-1], dtype=torch.float32)  # (W, H, D), as the grid counts them
    turned = turned * zoom * sides[None, None, :] / sides[None, :, None]
    shift = _around_zero(n, 3, 1, generator=generator) * 2.0 * limits.shift
    return torch.cat([turned, shift], dim=2)


def _scanner(images: Tensor, *, generator: torch.Generator, limits: Strength) -> Tensor:
    each = _each(images)
    exponent = torch.exp(_around_zero(*each, generator=generator) * limits.gamma)
    changed = images.clamp(1e-4, 1.0) ** exponent
    mean = changed.mean(dim=tuple(range(1, changed.ndim)), keepdim=True)
    contrast = 1.0 + _around_zero(*each, generator=generator) * limits.contrast
    brightness = _around_zero(*each, generator=generator) * limits.brightness
    changed = (changed - mean) * contrast + mean + brightness
    noise = torch.randn(changed.shape, generator=generator)
    changed = changed + noise * torch.rand(*each, generator=generator) * limits.noise
    return changed.clamp(0.0, 1.0)


def _each(images: Tensor) -> tuple[int, ...]:
    """The shape of one number for each image: (N, 1, 1, 1), of volumes (N, 1, 1, 1, 1)."""
    return (len(images), *(1,) * (images.ndim - 1))


def _around_zero(*shape: int, generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1)."""
    return torch.rand(*shape, generator=generator) * 2.0 - 1.0
