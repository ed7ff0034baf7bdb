"""Synthetic chest radiographs: a stand-in where no real image is at hand, and a test object whose truth is known.

A picture is a sum of optical densities as a projection makes them: soft tissue, two dark lung fields, ribs, spine,
heart and diaphragm, vessels, quantum noise. Pneumonia adds one to three soft opacities inside a lung field; vessels,
uneven exposure and a varying heart imitate them a little, so that no single pixel and no mean brightness tells. They
look like radiographs from afar and prove nothing about real ones.

A volume is noise with vessels, faint rods that run through it, and in half of them a nodule, a bright ball. It proves
even less. So does a plate: noise and a soft gradient, on which each of three findings is present or absent by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PREVALENCE = 0.6
"""Share of pneumonia."""

FINDINGS = ("opacity", "ring", "band")
"""What a plate may show: a soft disc, a circle, a stripe."""

_Plane = NDArray[np.float64]


def radiographs(n: int, *, rng: np.random.Generator, size: int = 28) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw n frontal chest radiographs: (n, size, size) uint8, and (n,) labels, 1 for pneumonia, 0 for normal."""
    if n < 0 or size < 16:
        raise ValueError("n must be 0 or more and size 16 or more")
    labels = (rng.random(n) < PREVALENCE).astype(np.int64)
    pictures = np.empty((n, size, size), dtype=np.uint8)
    y, x = np.meshgrid(np.linspace(-1.0, 1.0, size), np.linspace(-1.0, 1.0, size), indexing="ij")
    for index, label in enumerate(labels):
        pictures[index] = _radiograph(y, x, pneumonia=bool(label), rng=rng)
    return pictures, labels


def volumes(
    n: int, *, rng: np.random.Generator, shape: tuple[int, int, int] = (12, 16, 16)
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw n volumes: (n, D, H, W) uint8, and (n,) labels, 1 where there is a nodule, 0 where only vessels are."""
    if n < 0 or min(shape) < 8:
        raise ValueError("n must be 0 or more and each side 8 or more")
    labels = np.arange(n, dtype=np.int64) % 2
    rng.shuffle(labels)
    drawn = np.empty((n, *shape), dtype=np.uint8)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float64)  # (D, H, W, 3)
    thick = min(shape) / 6.0
    for index, label in enumerate(labels):
        bright = np.zeros(shape)
        for _ in range(int(rng.integers(1, 3))):
            away = places - rng.uniform(0.25, 0.75, 3) * shape
            along = np.array([1.0, *rng.normal(0.0, 0.25, 2)])
            along /= np.linalg.norm(along)
            away -= (away @ along)[..., None] * along  # how far along a vessel a voxel lies does not matter
            bright += 0.25 * _step(thick / 2.0 - np.linalg.norm(away, axis=-1), width=0.5)
        if label:
            away = places - rng.uniform(0.25, 0.75, 3) * shape
            bright += rng.uniform(0.5, 0.7) * _step(thick - np.linalg.norm(away, axis=-1), width=0.5)
        picture = rng.uniform(0.15, 0.25) + bright + rng.normal(0.0, 0.06, shape)
        drawn[index] = np.round(np.clip(picture, 0.0, 1.0) * 255.0)
    return drawn, labels


def plates(
    n: int, *, rng: np.random.Generator, size: int = 28, shares: tuple[float, ...] = (0.4, 0.4, 0.2)
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw n plates: (n, size, size) uint8, and (n, K) bool, which of the first K `FINDINGS` each of them shows.

    `shares` (K,) say how often each is present, whatever else is.
    """
    if n < 0 or size < 16 or len(shares) > len(FINDINGS):
        raise ValueError("n must be 0 or more, size 16 or more, and there are three findings at most")
    present = rng.random((n, len(shares))) < np.array(shares)
    drawn = np.empty((n, size, size), dtype=np.uint8)
    y, x = np.meshgrid(np.linspace(-1.0, 1.0, size), np.linspace(-1.0, 1.0, size), indexing="ij")
    for index, shown in enumerate(present):
        picture = 0.35 + 0.1 * rng.normal() * x + 0.1 * rng.normal() * y + rng.normal(0.0, 0.08, x.shape)
        for name, there in zip(FINDINGS, shown, strict=False):
            where = rng.uniform(-0.5, 0.5, 2)
            if there:
                picture += rng.uniform(0.2, 0.35) * _shape(name, y - where[0], x - where[1])
        drawn[index] = np.round(np.clip(picture, 0.0, 1.0) * 255.0)
    return drawn, present


def _shape(name: str, y: _Plane, x: _Plane) -> _Plane:
    radius = np.hypot(y, x)
    away = {"opacity": radius, "ring": np.abs(radius - 0.4) * 2.0, "band": np.abs(y) * 2.0}[name]
    shape: _Plane = np.exp(-((away / 0.25) ** 2))
    return shape


def _radiograph(y: _Plane, x: _Plane, *, pneumonia: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    # The patient stands a little turned, shifted, nearer or farther.
    angle, scale = rng.normal(0.0, 0.05), rng.normal(1.0, 0.06)
    dy, dx = rng.normal(0.0, 0.05, size=2)
    v = (np.cos(angle) * (y - dy) - np.sin(angle) * (x - dx)) / scale
    u = (np.sin(angle) * (y - dy) + np.cos(angle) * (x - dx)) / scale
    left = _ellipse(v, u, centre=(-0.02, -0.42), radii=(0.68, rng.normal(0.30, 0.02)))
    right = _ellipse(v, u, centre=(-0.02, 0.42), radii=(0.68, rng.normal(0.30, 0.02)))
    lungs = np.maximum(left, right) * _step(0.62 + 0.12 * np.cos(3.0 * u) - v, width=0.08)  # above the diaphragm
    body = _ellipse(v, u, centre=(0.2, 0.0), radii=(1.5, 0.95), edge=0.15)
    ribs = 0.5 + 0.5 * np.cos(2.0 * np.pi * (v * rng.normal(3.4, 0.15) + 0.9 * u**2 + rng.random()))
    density = 0.62 * body - rng.normal(0.40, 0.03) * lungs + 0.07 * ribs**3 * lungs
    density += rng.normal(0.20, 0.03) * np.exp(-((u / 0.11) ** 2))  # spine
    heart = _ellipse(v, u, centre=(0.30, rng.normal(0.13, 0.03)), radii=(0.33, rng.normal(0.30, 0.04)), edge=0.2)
    density += 0.22 * heart
    for _ in range(int(rng.integers(4, 9))):  # vessels and hila, in everybody
        density += rng.uniform(0.03, 0.12) * lungs * _spot(v, u, rng=rng, spread=(0.04, 0.13))
    if pneumonia:
        for _ in range(int(rng.integers(1, 4))):
            density += rng.uniform(0.13, 0.28) * lungs * _spot(v, u, rng=rng, spread=(0.14, 0.34))
    exposure = 1.0 + rng.normal(0.0, 0.08) + rng.normal(0.0, 0.06) * u + rng.normal(0.0, 0.06) * v
    picture = np.clip(density * exposure + rng.normal(0.04, 0.02), 0.0, 1.0) ** rng.normal(1.0, 0.08)
    noisy = picture + rng.normal(0.0, 0.025, size=picture.shape)
    grey: NDArray[np.uint8] = np.round(np.clip(noisy, 0.0, 1.0) * 255.0).astype(np.uint8)
    return grey


def _step(distance: _Plane, *, width: float) -> _Plane:
    """0 far below zero, 1 far above, smooth between."""
    step: _Plane = 0.5 + 0.5 * np.tanh(distance / width)
    return step


def _ellipse(
    y: _Plane, x: _Plane, *, centre: tuple[float, float], radii: tuple[float, float], edge: float = 0.12
) -> _Plane:
    radius = np.hypot((y - centre[0]) / radii[0], (x - centre[1]) / radii[1])
    return _step(1.0 - radius, width=edge)


def _spot(y: _Plane, x: _Plane, *, rng: np.random.Generator, spread: tuple[float, float]) -> _Plane:
    """A soft spot of height 1 somewhere in a lung field, longer one way than the other."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    centre_y, centre_x = rng.uniform(-0.45, 0.45), side * rng.uniform(0.25, 0.55)
    height, width = rng.uniform(*spread, size=2)
    spot: _Plane = np.exp(-(((y - centre_y) / height) ** 2) - ((x - centre_x) / width) ** 2)
    return spot
