"""What a machine's tone curve cannot change: an image by the ranks of its grey levels, beside the image itself.

Invariant: parameter-free, inside the network and after augmentation, so that whoever holds the weights gives the same
images in [0, 1] as ever.

Vendors' processing, windows and gamma are, all but their clipping, monotone curves over an image's grey levels.
Histogram equalisation (Pizer et al., Computer Vision, Graphics, and Image Processing 1987) takes any of them away, and
with it how bright the image was; so the network is shown both. What it gains is in docs/learning-log.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 256


class Equalised(nn.Module):
    """A network that is shown each channel a second time, equalised; it needs twice the channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network makes of `images` (N, C, H, W), or volumes (N, C, D, H, W), in [0, 1]."""
        return self.network(torch.cat([images, equalised(images)], dim=1))  # type: ignore[no-any-return]


def equalised(images: Tensor) -> Tensor:
    """Return for each pixel of `images` (N, C, ...) in [0, 1] the share of its own channel's that are darker.

    Those as dark as it is, to one of 256 levels, count half: the mean is one half whatever the image.
    """
    flat = images.flatten(2)  # (N, C, pixels)
    level = (flat * (LEVELS - 1) + 0.5).long().clamp(0, LEVELS - 1)
    counts = torch.zeros(*flat.shape[:2], LEVELS, dtype=torch.long, device=flat.device)
    counts.scatter_add_(2, level, torch.ones_like(level))  # whole numbers: the same in any order of adding
    darker = (counts.cumsum(2) - counts) + 0.5 * counts
    return (darker.gather(2, level) / flat.shape[2]).to(images.dtype).reshape(images.shape)
