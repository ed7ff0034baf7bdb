"""PneumoSites-6: six hospitals made from one set of chest radiographs, each seeing it through a machine of its own.

A stream for measuring continual learning: every site brings about 640 training images under its own shift and its own
share of pneumonia, no image twice; the official val and test sets come as each site would have taken them.
Invariant: everything is a function of the radiographs and the seed. The shifts of val and test do not depend on the
seed, so that all seeds and strategies are scored on the same images.

Shifts take (N, H, W) float32 in [0, 1] and a generator, and return the same shape and range. The table of sites is the
benchmark's definition: changing it makes another benchmark.

    python -m benchmarks.stream
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.chest_xrays import ChestXrays

Images = NDArray[np.float32]
Shift = Callable[[Images, np.random.Generator], Images]

VAL, TEST, TRAIN = 0, 1, 2


class TooFewCases(ValueError):
    """There are not enough radiographs of a class to give every site its own; the message says how many are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One hospital: its shift, and how many training images of each class it brings."""

    name: str
    normal: int
    pneumonia: int
    shift: Shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteCases:
    """What one site brings, images (N, H, W) uint8, labels (N,) int64: its own training cases, and all of val and test.

    `train_rows` (N,) says which of the original training radiographs these are.
    """

    site: Site
    train_rows: NDArray[np.int64]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def deal(xrays: ChestXrays, *, seed: int, share: float = 1.0) -> dict[str, SiteCases]:
    """Deal the training radiographs to the six sites and show val and test through each site's machine.

    Of every site's training images, and of val and test, `share` in (0, 1] is used: small streams for tests.
    Raises TooFewCases.
    """
    hands = _hands(xrays.train_labels, seed=seed, share=share)
    val, test = _first(xrays.val_labels, share=share), _first(xrays.test_labels, share=share)
    dealt = {}
    for number, (name, site) in enumerate(SITES.items()):
        rows = hands[name]
        dealt[name] = SiteCases(
            site=site,
            train_rows=rows,
            train_images=as_seen(xrays.train_images[rows], site=site, rng=np.random.default_rng([TRAIN, number, seed])),
            train_labels=xrays.train_labels[rows],
            val_images=as_seen(xrays.val_images[val], site=site, rng=np.random.default_rng([VAL, number])),
            val_labels=xrays.val_labels[val],
            test_images=as_seen(xrays.test_images[test], site=site, rng=np.random.default_rng([TEST, number])),
            test_labels=xrays.test_labels[test],
        )
    return dealt


def as_seen(images: NDArray[np.uint8], *, site: Site, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return `images` (N, H, W) uint8 as `site` would have taken them, uint8 again; the input stays as it is."""
    seen = site.shift(images.astype(np.float32) / 255.0, rng)
    return np.asarray(np.rint(seen * 255.0), dtype=np.uint8)


def unchanged(images: Images, _rng: np.random.Generator) -> Images:
    """Site A: the radiographs as they are."""
    return images


def sharp_and_hard(images: Images, _rng: np.random.Generator) -> Images:
    """Site B: gamma .6, contrast 1.4 about the middle and .05 brighter, then an unsharp mask of .8 (sigma 1 px)."""
    toned = _clipped((images**0.6 - 0.5) * 1.4 + 0.5 + 0.05)
    return _clipped(toned + 0.8 * (toned - _blurred(toned, sigma=1.0)))


def inverted(images: Images, _rng: np.random.Generator) -> Images:
    """Site C: black for white (MONOCHROME1 taken for MONOCHROME2), gamma 1.2."""
    return (1.0 - images) ** np.float32(1.2)


def faint_and_noisy(images: Images, rng: np.random.Generator) -> Images:
    """Site D: blur of sigma .7 px, .65 (x - .5) + .45, then noise of deviation .02 + .05 sqrt(x), as of a low dose."""
    flat = _clipped((_blurred(images, sigma=0.7) - 0.5) * 0.65 + 0.45)
    noise = rng.standard_normal(flat.shape, dtype=np.float32)
    return _clipped(flat + noise * (0.02 + 0.05 * np.sqrt(flat)))


def coarse_and_collimated(images: Images, rng: np.random.Generator) -> Images:
    """Site E: half the pixels a side (14 x 14 of 28 x 28), 5 bit, and 0 to 5 px of each edge behind a black shutter."""
    n, rows, columns = images.shape
    halved = images[:, : rows // 2 * 2, : columns // 2 * 2].reshape(n, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4))
    coarse = halved.repeat(2, axis=1).repeat(2, axis=2)
    coarse = np.pad(coarse, ((0, 0), (0, rows % 2), (0, columns % 2)), mode="edge")
    coarse = np.rint(coarse * 31.0) / np.float32(31.0)
    top, bottom, left, right = rng.integers(0, 6, (4, n, 1))
    y, x = np.arange(rows), np.arange(columns)
    open_rows = (y >= top) & (y < rows - bottom)  # (N, H)
    open_columns = (x >= left) & (x < columns - right)  # (N, W)
    return np.asarray(coarse * open_rows[:, :, None] * open_columns[:, None, :], dtype=np.float32)


def moved_and_marked(images: Images, rng: np.random.Generator) -> Images:
    """Site F: turned by up to 20 degrees, zoomed .8 to 1.1, shifted by up to 2.5 px, gamma 1.6, a bright marker."""
    n, rows, columns = images.shape
    angle = np.radians(rng.uniform(-20.0, 20.0, (n, 1, 1)))
    zoom = rng.uniform(0.8, 1.1, (n, 1, 1))
    move = rng.uniform(-2.5, 2.5, (2, n, 1, 1))
    y, x = np.mgrid[:rows, :columns] - np.array([(rows - 1) / 2.0, (columns - 1) / 2.0])[:, None, None]
    y, x = y - move[0], x - move[1]  # (N, H, W)
    source_y = (np.cos(angle) * y - np.sin(angle) * x) / zoom + (rows - 1) / 2.0
    source_x = (np.sin(angle) * y + np.cos(angle) * x) / zoom + (columns - 1) / 2.0
    picture = np.broadcast_to(np.arange(n)[:, None, None], source_y.shape)
    moved = ndimage.map_coordinates(images, [picture, source_y, source_x], order=1, mode="constant", cval=0.0)
    seen = np.asarray(_clipped(moved) ** np.float32(1.6))
    height, width = max(2, rows // 9), max(2, columns // 7)  # 3 x 4 of 28 x 28
    right = rng.random(n) < 0.5
    seen[~right, 1 : 1 + height, 1 : 1 + width] = 0.95
    seen[right, 1 : 1 + height, columns - 1 - width : columns - 1] = 0.95
    return seen


SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site(name="A", normal=260, pneumonia=380, shift=unchanged),
        Site(name="B", normal=130, pneumonia=510, shift=sharp_and_hard),
        Site(name="C", normal=200, pneumonia=440, shift=inverted),
        Site(name="D", normal=64, pneumonia=576, shift=faint_and_noisy),
        Site(name="E", normal=320, pneumonia=320, shift=coarse_and_collimated),
        Site(name="F", normal=200, pneumonia=440, shift=moved_and_marked),
    )
}


def _hands(labels: NDArray[np.int64], *, seed: int, share: float) -> dict[str, NDArray[np.int64]]:
    """Rows for each site, normal and pneumonia in random order; no row twice."""
    rng = np.random.default_rng([TRAIN, seed])
    decks = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    hands = {}
    for name, site in SITES.items():
        counts = [max(1, round(count * share)) for count in (site.normal, site.pneumonia)]
        for label, count in enumerate(counts):
            if len(decks[label]) < count:
                missing = count - len(decks[label])
                raise TooFewCases(f"site {name} lacks {missing} of its {count} radiographs of class {label}")
        hands[name] = rng.permutation(np.concatenate([deck[:n] for deck, n in zip(decks, counts, strict=True)]))
        decks = [deck[n:] for deck, n in zip(decks, counts, strict=True)]
    return hands


def _first(labels: NDArray[np.int64], *, share: float) -> NDArray[np.int64]:
    """Rows of the first `share` of each class, in their order."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([rows[: max(1, round(len(rows) * share))] for rows in classes]))


def _blurred(images: Images, *, sigma: float) -> Images:
    return np.asarray(ndimage.gaussian_filter(images, (0.0, sigma, sigma), mode="nearest"), dtype=np.float32)


def _clipped(images: NDArray[np.floating]) -> Images:
    return np.asarray(np.clip(images, 0.0, 1.0), dtype=np.float32)
