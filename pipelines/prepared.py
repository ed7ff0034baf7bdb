"""What the network sees, ready in a memory-mapped file: prepared once for each shard and kind of input.

One file grows by a segment for each shard that has not been prepared yet, so a new version prepares what is new, and
all its images are one array. It is a cache: whoever deletes it loses time and nothing else, and after an erasure it is
deleted. Shards are checked against their digest when they are prepared.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipelines import job, shards
from pipelines.data_repository import VersionDamaged
from pipelines.images import to_network_input
from pipelines.protocol import InputSpec
from pipelines.seals import sha256_of
from pipelines.shards import Shard

CHUNK_IMAGES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Images as the network sees them: behaves like a read-only (N, C, rows, columns) float32 array in [0, 1].

    Of volumes it is (N, 1, depth, rows, columns).
    """

    array: NDArray[np.float32]
    """(M, C, rows, columns) of all segments, memory-mapped."""
    places: NDArray[np.int64]
    """(N,) row of `array` that each image is."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, rows, columns)."""
        return (len(self.places), *self.array.shape[1:])

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.float32]: ...
    def __getitem__(self, rows: int | slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """Images of some rows, as a copy in memory: (n, C, rows, columns); of one: (C, rows, columns)."""
        found: NDArray[np.float32] = self.array[self.places[rows]]
        return found


def prepare(
    folder: Path,
    *,
    spec: InputSpec,
    directory: Path,
    held: Iterable[Shard],
    shard_of: NDArray[np.int64],
    row_of: NDArray[np.int64],
) -> Prepared:
    """Prepare what `folder` lacks of some shards in `directory`; images are at (`shard_of`, `row_of`), each (N,).

    Raises VersionDamaged where a shard does not match its digest.
    """
    held = list(held)
    home = folder / "x".join(map(str, (spec.channels, *spec.shape)))
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        index = home / "segments.json"  # digest of a shard -> first row
        segments: dict[str, int] = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
        rows = segments.pop("", 0)
        for shard in held:
            if shard.digest not in segments:
                _append(home / "images.f32", directory / shard.name, shard=shard, spec=spec, first=rows)
                segments[shard.digest] = rows
                rows += shard.images
                job.write_atomically(index, json.dumps({**segments, "": rows}).encode())
        array = np.memmap(home / "images.f32", dtype=np.float32, mode="r", shape=(rows, spec.channels, *spec.shape))
    first = {shard.id: segments[shard.digest] for shard in held}
    bases = np.zeros(max(first, default=0) + 1, dtype=np.int64)
    bases[list(first)] = list(first.values())
    return Prepared(array, bases[shard_of] + row_of)


def _append(file: Path, source: Path, *, shard: Shard, spec: InputSpec, first: int) -> None:
    """Write a shard's segment; what a killed writer left behind the last segment is written over."""
    if sha256_of(source) != shard.digest:
        raise VersionDamaged(f"{source} does not match its digest; check the version out anew")
    size = spec.channels * math.prod(spec.shape) * 4
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.truncate(first * size)
        stream.truncate((first + shard.images) * size)  # rows without an image stay black
        for row, stack in shards.arrays(source):
            for start in range(0, len(stack), CHUNK_IMAGES):
                ready = to_network_input(stack[start : start + CHUNK_IMAGES], spec)
                stream.seek((first + row + start) * size)
                stream.write(ready.tobytes())
