"""Chest radiographs for the demo and the benchmarks: real ones where they can be had, synthetic ones otherwise.

The real ones are PneumoniaMNIST: 5,856 paediatric frontal radiographs at 28 × 28, split by its authors into train, val
and test. Whatever is returned says in a sentence what it is and where it came from, and every place that shows results
shows that sentence.

References: Kermany, Goldbaum et al., Cell 2018; Yang et al., Scientific Data 10, 41 (2023). Licence CC BY 4.0.
"""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import job, synthetic

MD5 = "28209eda62fecd6e6a2d98b1501bb15f"
"""Of the authors' file. MD5 is what they publish; it guards against damage, not against malice."""
MAX_BYTES = 50_000_000
SIZES = 4708, 524, 624
"""Of PneumoniaMNIST's train, val and test, and of synthetic ones in their place."""
URL_SETTING = "OVERREAD_DEMO_DATA_URL"
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "pneumoniamnist.npz"
"""Beside the checkout, where several projects share data."""

_ATTRIBUTION = "PneumoniaMNIST (Kermany et al., Cell 2018; Yang et al., Scientific Data 2023; CC BY 4.0)"


class NotChestXrays(ValueError):
    """The file is not PneumoniaMNIST; the message says in what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChestXrays:
    """Images (N, 28, 28) uint8 and labels (N,) int64, 0 normal and 1 pneumonia, in the authors' three parts.

    `source` is a sentence for people; `real` is False for synthetic images.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    source: str
    real: bool


def find(*, cache: Path, shared: Path | None = SHARED, download: bool = False, seed: int = 0) -> ChestXrays:
    """Find chest radiographs: the shared file, else the cache, else (if asked) a download, else synthetic ones.

    `cache` is a directory. The download goes to the URL in the environment's OVERREAD_DEMO_DATA_URL and nowhere where
    there is none; its checksum must be the authors'. A file that is not what it should be is passed over, and the
    sentence in `source` says so. Never raises for want of data.
    """
    remarks: list[str] = []
    if shared is not None and shared.is_file():
        try:
            return read(shared.read_bytes(), source=f"{_ATTRIBUTION}, from {shared}")
        except NotChestXrays as error:
            remarks.append(f"{shared} was passed over: {error}")
    cached = cache / "pneumoniamnist.npz"
    if download and not _intact(cached):
        remarks += _download(cached)
    if _intact(cached):
        return read(cached.read_bytes(), source=f"{_ATTRIBUTION}, from {cached}, checksum verified")
    return _synthetic(remarks, seed=seed)


def read(data: bytes, *, source: str) -> ChestXrays:
    """Read the NPZ form of PneumoniaMNIST. Raises NotChestXrays."""
    parts: dict[str, NDArray[np.uint8]] = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for part in ("train", "val", "test"):
                for kind in ("images", "labels"):
                    parts[f"{part}_{kind}"] = archive[f"{part}_{kind}"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise NotChestXrays("it is damaged, or lacks an array") from error
    labels: dict[str, NDArray[np.int64]] = {}
    for part in ("train", "val", "test"):
        pixels, truth = parts[f"{part}_images"], parts[f"{part}_labels"].reshape(-1)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (28, 28) or len(pixels) != len(truth):
            raise NotChestXrays(f"{part}_images are {pixels.dtype} {pixels.shape}, not uint8 (N, 28, 28) with N labels")
        if not np.isin(truth, (0, 1)).all():
            raise NotChestXrays(f"{part}_labels are not all 0 or 1")
        labels[part] = truth.astype(np.int64)
    return ChestXrays(
        train_images=parts["train_images"],
        train_labels=labels["train"],
        val_images=parts["val_images"],
        val_labels=labels["val"],
        test_images=parts["test_images"],
        test_labels=labels["test"],
        source=source,
        real=True,
    )


def _intact(file: Path) -> bool:
    return file.is_file() and _md5(file.read_bytes()) == MD5


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _download(target: Path) -> list[str]:
    """Fetch the authors' file; returns remarks about what went wrong, none if nothing did."""
    url = os.environ.get(URL_SETTING, "")
    if not url.startswith(("https://", "http://")):
        return [f"nothing was downloaded, for {URL_SETTING} holds no URL"]
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - the scheme is checked above
            data = response.read(MAX_BYTES + 1)
    except OSError as error:
        return [f"the download failed: {error}"]
    if _md5(data) != MD5:
        return ["the download was thrown away, for its checksum is not the authors'"]
    target.parent.mkdir(parents=True, exist_ok=True)
    job.write_atomically(target, data)
    return []


def _synthetic(remarks: list[str], *, seed: int) -> ChestXrays:
    rng = np.random.default_rng(seed)
    pictures, labels = synthetic.radiographs(sum(SIZES), rng=rng)
    ends = np.cumsum(SIZES)[:2]
    images, truth = np.split(pictures, ends), np.split(labels, ends)
    why = f" ({'; '.join(remarks)})" if remarks else ""
    return ChestXrays(
        train_images=images[0],
        train_labels=truth[0],
        val_images=images[1],
        val_labels=truth[1],
        test_images=images[2],
        test_labels=truth[2],
        source=f"synthetic radiographs from pipelines/synthetic.py, seed {seed}; they prove nothing of real ones{why}",
        real=False,
    )
