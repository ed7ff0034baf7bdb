"""Plates on which a computer has drawn opacities, rings and bands: a line of several findings for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines import quality_lines, synthetic, train
from pipelines.protocol import from_document

CLASSES = synthetic.FINDINGS
DOCUMENT: dict[str, Any] = {
    "line": "plates",
    "title": "Opacity, ring and band",
    "intended_use": "Finds what synthetic plates show, in tests; of no use to anybody.",
    "classes": list(CLASSES),
    "task": "multilabel",
    "input": {"rows": 28, "columns": 28},
    "recipe": {"epochs": 2, "strategy": "auto"},
    "gates": {"require_improvement": False},
}
PROTOCOL = from_document(DOCUMENT)


def drawn(n: int, *, seed: int, number: int = 1) -> train.Cases:
    pictures, present = synthetic.plates(n, rng=np.random.default_rng(seed))
    return train.Cases(
        images=pictures[:, None].astype(np.float32) / 255.0,
        labels=present,
        sites=np.array(["north", "south"])[np.arange(n) % 2],
        label_since=np.full(n, number),
    )


def quality_table(labels: Any, *, number: int, before: int = 300) -> quality_lines.Table:
    """A dataset version of one image a patient, the first `before` of them from the version before."""
    n = len(labels)
    same = np.full(n, "a")
    return quality_lines.Table(
        number=number,
        classes=CLASSES,
        case_ids=np.arange(n),
        image_digests=np.array([f"digest-{row}" for row in range(n)]),
        phashes=np.zeros(n, dtype=np.uint64),
        labels=labels,
        splits=np.full(n, "train"),
        groups=np.array([f"patient:{row}" for row in range(n)]),
        sites=same,
        scanners=same,
        sexes=same,
        age_bands=same,
        added_in=np.where(np.arange(n) < before, 1, number),
    )
