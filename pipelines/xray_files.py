"""Chest radiographs as PNG files for the demo, as the machines of several hospitals would have taken them.

    python -m pipelines.xray_files FOLDER --count 100 --machines A B

writes index.csv (file, finding) and every file once for each machine (a site of `pipelines.sites`), `A/00000.png`, and
prints the sentence that says what the radiographs are.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import chest_xrays, images, sites
from pipelines.chest_xrays import ChestXrays

NORMAL_SHARE = 0.4
"""Of the files, in every stretch of them: the data set itself has 26 % normal."""


def mixed(labels: NDArray[np.int64], *, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw rows (count,) of radiographs with `labels` (N,): none twice, and evenly mixed in every stretch of them.

    Raises ValueError where there are not that many.
    """
    rng = np.random.default_rng(seed)
    ranks = np.arange(count)
    normal = np.floor((ranks + 1) * NORMAL_SHARE) > np.floor(ranks * NORMAL_SHARE)  # (count,)
    rows = np.empty(count, dtype=np.int64)
    for label, places in ((0, normal), (1, ~normal)):
        having = rng.permutation(np.flatnonzero(labels == label))
        if len(having) < places.sum():
            raise ValueError(f"there are only {len(having)} radiographs of class {label}; ask for fewer than {count}")
        rows[places] = having[: places.sum()]
    return rows


def write_files(xrays: ChestXrays, folder: Path, *, count: int, machines: Sequence[str] = ("A",)) -> None:
    """Write `count` training radiographs as each machine would have taken them, and index.csv beside them.

    Synthetic ones look alike on every machine: a model has more than enough to learn from them as they are.
    Raises ValueError where there are not that many.
    """
    rows = mixed(xrays.train_labels, count=count)
    names = [f"{rank:05d}.png" for rank in range(count)]
    for machine in machines:
        site = sites.SITES[machine if xrays.real else "A"]
        seen = sites.as_seen(xrays.train_images[rows], site=site, rng=np.random.default_rng(0))
        (folder / machine).mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, seen, strict=True):
            (folder / machine / name).write_bytes(images.png_bytes(image))
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as index:
        writer = csv.writer(index)
        writer.writerow(("file", "finding"))
        writer.writerows(
            (name, ("normal", "pneumonia")[label])
            for name, label in zip(names, xrays.train_labels[rows].tolist(), strict=True)
        )


def main(arguments: list[str]) -> int:
    """Write radiographs as files, and print the sentence that says what they are."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.xray_files", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--machines", nargs="+", choices=sites.SITES, default=["A"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "overread")
    parsed = parser.parse_args(arguments)
    xrays = chest_xrays.find(cache=parsed.cache, download=bool(os.environ.get(chest_xrays.URL_SETTING)))
    try:
        write_files(xrays, parsed.folder, count=parsed.count, machines=parsed.machines)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(xrays.source)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
