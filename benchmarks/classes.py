"""The class-incremental track: two classes arrive at a time, and the model learns each pair without losing the others.

By default scikit-learn's handwritten digits (1,797 images of 8 x 8, doubled to 16 x 16), or any file in MedMNIST's
form. R[i, j] is the accuracy on the test cases of pair j after update i, by arg-max over all classes known by then; 0
before its day.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from benchmarks.tracks import Arrival
from pipelines.protocol import Protocol, from_document
from pipelines.train import Cases

PER_ARRIVAL = 2
SHARES = (0.60, 0.15)
"""Of a class, to train and to tune on; the rest is tested."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """Images of many classes, and which part each is in."""

    images: NDArray[np.float32]
    """(N, C, H, W) in [0, 1]."""
    labels: NDArray[np.int64]
    """(N,) 0, 1, 2, …"""
    parts: NDArray[np.str_]
    """(N,) train, tune or test."""


def digits(*, seed: int) -> Pictures:
    """Deal scikit-learn's digits into the three parts, class by class."""
    known = load_digits()
    labels = known.target.astype(np.int64)
    rng, parts = np.random.default_rng([seed, 10]), np.full(len(labels), "test ")
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = [round(sum(SHARES[:k]) * len(rows)) for k in (1, 2)]
        parts[rows[: ends[0]]] = "train"
        parts[rows[ends[0] : ends[1]]] = "tune"
    images = np.kron(known.images.astype(np.float32) / 16.0, np.ones((1, 2, 2), dtype=np.float32))
    return Pictures(images=images[:, None], labels=labels, parts=np.char.strip(parts))


def npz(file: Path) -> Pictures:
    """Read a file in MedMNIST's form: train_images (N, H, W) or (N, H, W, 3) uint8, train_labels (N, 1), and so on."""
    images, labels, parts = [], [], []
    with np.load(file, allow_pickle=False) as arrays:
        for theirs, ours in (("train", "train"), ("val", "tune"), ("test", "test")):
            pixels = arrays[f"{theirs}_images"].astype(np.float32) / 255.0
            images.append(pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1))
            labels.append(arrays[f"{theirs}_labels"].reshape(-1).astype(np.int64))
            parts.append(np.full(len(pixels), ours))
    return Pictures(images=np.concatenate(images), labels=np.concatenate(labels), parts=np.concatenate(parts))


def arrivals(pictures: Pictures, *, order: str) -> list[Arrival]:
    """Let the classes arrive two by two; the pairs in the `order` of their letters, A being classes 0 and 1.

    Labels are numbered anew in the order of arrival. Raises ValueError where the order names other pairs.
    """
    count = int(pictures.labels.max()) + 1
    pairs = {
        chr(ord("A") + k // PER_ARRIVAL): range(k, min(k + PER_ARRIVAL, count)) for k in range(0, count, PER_ARRIVAL)
    }
    if len(set(order)) != len(order) or not order or set(order) - set(pairs):
        raise ValueError(f"an order names pairs out of {''.join(pairs)}, each at most once, and {order!r} does not")
    known: list[int] = []
    found = []
    for number, letter in enumerate(order, start=1):
        known = known + list(pairs[letter])
        train, tune, test = (
            _part(pictures, name, pair=list(pairs[letter]), known=known, number=number)
            for name in ("train", "tune", "test")
        )
        names = tuple(f"class-{label}" for label in known)
        found.append(Arrival(site=letter, train=train, tune=tune, test=test, classes=names))
    return found


def growing(protocol: Protocol, *, arrival: Arrival) -> Protocol:
    """Return the protocol with the classes known on the day of an arrival, and its images' size; or as it is."""
    if not arrival.classes:
        return protocol
    _, channels, rows, columns = arrival.train.images.shape
    return from_document(
        {
            **protocol.document(),
            "classes": list(arrival.classes),
            "positive": None,
            "operating_point": {},
            "input": {"channels": channels, "rows": rows, "columns": columns},
        }
    )


def _part(pictures: Pictures, name: str, *, pair: list[int], known: list[int], number: int) -> Cases:
    """The cases of a pair in one part, with the labels' places among the `known` ones."""
    rows = np.flatnonzero(np.isin(pictures.labels, pair) & (pictures.parts == name))
    return Cases(
        images=pictures.images[rows],
        labels=np.array([known.index(label) for label in pictures.labels[rows].tolist()], dtype=np.int64),
        sites=np.full(len(rows), "one"),
        label_since=np.full(len(rows), number),
    )
