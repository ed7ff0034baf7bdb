"""A toy line for the tests of training: synthetic radiographs in memory, three epochs of a small network."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines import synthetic, train
from pipelines.protocol import from_document

DOCUMENT: dict[str, Any] = {
    "line": "toy",
    "title": "A toy line",
    "intended_use": "To test the trainer on images that a computer has drawn.",
    "classes": ["normal", "pneumonia"],
    "input": {"channels": 1, "rows": 28, "columns": 28},
    "recipe": {"epochs": 3, "update_epochs": 2, "threads": 1},
}
PROTOCOL = from_document(DOCUMENT)


def cases(n: int, *, seed: int, since: int = 1) -> train.Cases:
    """`n` cases, other ones for each seed."""
    images, labels = synthetic.radiographs(n, rng=np.random.default_rng(seed))
    return train.Cases(
        images=images[:, None].astype(np.float32) / 255.0,
        labels=labels.astype(np.int64),
        sites=np.full(n, "a"),
        label_since=np.full(n, since),
    )


TRAIN, TUNE = cases(96, seed=0), cases(48, seed=1)
