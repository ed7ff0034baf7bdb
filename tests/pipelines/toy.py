"""A toy line for the tests of training: synthetic radiographs in memory, three epochs of a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines import network, synthetic, train
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


def joined(first: train.Cases, second: train.Cases) -> train.Cases:
    """The cases of both, in this order."""
    return train.Cases(
        images=np.concatenate([first.images, second.images]),
        labels=np.concatenate([first.labels, second.labels]),
        sites=np.concatenate([first.sites, second.sites]),
        label_since=np.concatenate([first.label_since, second.label_since]),
    )


def champion(trained: train.Trained, folder: Path, *, number: int = 1) -> train.Base:
    """What was trained, written to `folder`, as the start of an update."""
    data = network.save_weights(trained.module)
    (folder / "champion").write_bytes(data)
    return train.Base(
        weights=folder / "champion",
        weights_digest=network.digest_of_bytes(data),
        architecture=network.from_document(trained.metadata["architecture"]),
        dataset_number=number,
    )
