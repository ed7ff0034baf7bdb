"""Image shards: many images in one immutable, memory-mapped file.

A shard is an Arrow IPC file, uncompressed so that it can be mapped, named by the SHA-256 of its bytes; it is written
once and shared by all later versions. An image's place is (shard id, row) and stays as it is: a shard from which an
erased image was taken keeps its id and its rows, and the image's row is empty. Small shards are merged eight at a time
into one of the next size, so their number grows with the logarithm of the images and each image is copied a few times.

Reference: Apache Arrow columnar format 1.5, "IPC File Format"; O'Neil et al., "The log-structured merge-tree", 1996.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import job
from pipelines.data_repository import VersionDamaged
from pipelines.images import ImageRefused, Pixels, from_npy, npy_bytes
from pipelines.seals import sha256_of

SHARD_BYTES = 256 * 2**20
"""Pixels a shard takes before the next one is begun."""
BATCH_BYTES = 4 * 2**20
FAN_IN = 8
"""So many shards of one size are merged into one of the next."""
SMALLEST_TIER_BYTES = 2**20

_IMAGE = pa.schema(
    [
        ("image_digest", pa.binary(32)),
        ("axes", pa.string()),  # HW, HWC or DHW
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),  # uint8 or uint16
        ("spacing_mm", pa.list_(pa.float32())),  # of D, H, W or H, W; null: unknown
        ("pixels", pa.binary()),  # C order, little endian; empty: erased
    ]
)


class Place(NamedTuple):
    """Where an image lies: the shard's id in the manifest, and the row in that shard."""

    shard: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One entry of the manifest's list of shards; `bytes` counts pixels."""

    id: int
    name: str
    digest: str
    images: int
    bytes: int

    def document(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return asdict(self)


class ShardWriter:
    """Writes images into new shards, one after the other, each ended when it is full."""

    def __init__(self, directory: Path, *, first_id: int) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._id = first_id
        self._sink: Any = None
        self._writer: Any = None
        self._batch: list[dict[str, Any]] = []
        self._held = self._images = self._bytes = 0
        self.written: list[Shard] = []

    def add(self, digest: str, pixels: Pixels, *, spacing_mm: Sequence[float] | None = None) -> Place:
        """Add an image (H, W), (H, W, 3) or (D, H, W); its place is valid once the writer is closed."""
        axes = "HW" if pixels.ndim == 2 else "HWC" if pixels.shape[2] == 3 else "DHW"
        return self.copy(
            {
                "image_digest": bytes.fromhex(digest),
                "axes": axes,
                "shape": list(pixels.shape),
                "dtype": pixels.dtype.name,
                "spacing_mm": None if spacing_mm is None else list(spacing_mm),
                "pixels": np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes(),
            }
        )

    def copy(self, row: dict[str, Any]) -> Place:
        """Add a row as another shard has it."""
        if self._writer is None:
            self._sink = pa.OSFile(str(self._directory / "partial"), "wb")
            self._writer = pa.ipc.new_file(self._sink, _IMAGE)
        place = Place(self._id, self._images)
        self._batch.append(row)
        size = len(row["pixels"])
        self._held += size
        self._bytes += size
        self._images += 1
        if self._held >= BATCH_BYTES:
            self._flush_batch()
        if self._bytes >= SHARD_BYTES:
            self._end()
        return place

    def close(self) -> list[Shard]:
        """End the last shard and return all that were written."""
        if self._writer is not None:
            self._end()
        return self.written

    def _flush_batch(self) -> None:
        if self._batch:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._batch, schema=_IMAGE))
        self._batch, self._held = [], 0

    def _end(self) -> None:
        self._flush_batch()
        self._writer.close()
        self._sink.close()
        partial = self._directory / "partial"
        job.flush(partial)
        digest = sha256_of(partial)
        sys.audit("overread.fault", "shard.rename.before")
        name = f"{digest}.arrow"
        partial.rename(self._directory / name)
        self.written.append(Shard(id=self._id, name=name, digest=digest, images=self._images, bytes=self._bytes))
        self._writer = self._sink = None
        self._id += 1
        self._images = self._bytes = 0


class Images:
    """Reads images from a version's shards, each checked against its digest."""

    def __init__(self, directory: Path, shards: Iterable[Shard]) -> None:
        self._files = {shard.id: directory / shard.name for shard in shards}
        self._tables: dict[int, Any] = {}

    def read(self, place: Place, digest: str) -> Pixels:
        """Read one image: (H, W), (H, W, 3) or (D, H, W), uint8 or uint16. Raises VersionDamaged."""
        return self._pixels(self._row(place), digest)

    def look(self, place: Place) -> Pixels:
        """Read one image, checked against the digest that lies beside it. Raises VersionDamaged."""
        row = self._row(place)
        return self._pixels(row, row["image_digest"].hex())

    def _pixels(self, row: dict[str, Any], digest: str) -> Pixels:
        pixels = np.frombuffer(row["pixels"], dtype=np.dtype(row["dtype"]).newbyteorder("<"))
        try:
            pixels = pixels.reshape(row["shape"])
        except ValueError as error:
            raise VersionDamaged(f"image {digest} has the wrong size in its shard") from error
        if hashlib.sha256(npy_bytes(pixels)).hexdigest() != digest:
            raise VersionDamaged(f"image {digest} does not match its digest")
        return pixels.astype(row["dtype"])

    def _row(self, place: Place) -> dict[str, Any]:
        if place.shard not in self._tables:
            self._tables[place.shard] = open_shard(self._files[place.shard])
        row: dict[str, Any] = self._tables[place.shard].slice(place.row, 1).to_pylist()[0]
        return row


def open_shard(file: Path) -> Any:
    """A shard as a table of views into the mapped file; nothing is copied. Raises VersionDamaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise VersionDamaged(f"shard {file} cannot be read: {error}") from error


def arrays(file: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stacks of equal images in a shard: first row, and (n, *shape) as a view. Images that are empty are left out."""
    first = 0
    for batch in open_shard(file).to_batches():
        columns = {name: batch.column(name) for name in ("axes", "shape", "dtype", "pixels")}
        kinds = list(
            zip(
                columns["axes"].to_pylist(),
                map(tuple, columns["shape"].to_pylist()),
                columns["dtype"].to_pylist(),
                strict=True,
            )
        )
        start = 0
        for end in range(1, len(kinds) + 1):
            if end < len(kinds) and kinds[end] == kinds[start]:
                continue
            _, shape, dtype = kinds[start]
            stack = _stack(columns["pixels"].slice(start, end - start), shape=shape, dtype=dtype)
            yield from ((first + start + offset, stacked) for offset, stacked in stack)
            start = end
        first += len(kinds)


def read_blob(blobs: Path, digest: str) -> Pixels:
    """Read a stored image from its content-addressed place, checked. Raises VersionDamaged."""
    try:
        data = (blobs / digest[:2] / digest).read_bytes()
    except FileNotFoundError:
        raise VersionDamaged("it is missing") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise VersionDamaged("its bytes do not match its digest")
    try:
        return from_npy(data)
    except ImageRefused as error:
        raise VersionDamaged(str(error)) from error


def redact(directory: Path, shard: Shard, *, rows: Collection[int]) -> Shard:
    """Write a shard anew with the images in these rows empty and without digest; all others keep their rows.

    One in which they are so already is left as it is.
    """
    sizes = pc.binary_length(open_shard(directory / shard.name).column("pixels")).to_numpy()
    if not sizes[list(rows)].any():
        return shard
    writer = ShardWriter(directory, first_id=shard.id)
    for number, row in enumerate(_rows(directory / shard.name)):
        writer.copy({**row, "image_digest": bytes(32), "pixels": b""} if number in rows else row)
    (only,) = writer.close()  # it is no larger than it was, so it is one
    return only


def mergeable(shards: Sequence[Shard]) -> list[Shard]:
    """Name the shards to merge now: of the smallest size that has eight of them, all; none if there is no such."""
    tiers: dict[int, list[Shard]] = {}
    for shard in shards:
        if shard.bytes < SHARD_BYTES // 2:
            tier = max(0, (shard.bytes // SMALLEST_TIER_BYTES).bit_length() // 3)
            tiers.setdefault(tier, []).append(shard)
    return next((found for _, found in sorted(tiers.items()) if len(found) >= FAN_IN), [])


def merge(
    directory: Path, shards: Sequence[Shard], *, used: dict[int, NDArray[np.int64]], first_id: int
) -> tuple[list[Shard], dict[int, dict[int, Place]]]:
    """Copy the used rows (shard id -> rows, ascending) of some shards into new ones; returns them and the moves."""
    writer = ShardWriter(directory, first_id=first_id)
    moves: dict[int, dict[int, Place]] = {}
    for shard in shards:
        wanted = set(used.get(shard.id, np.empty(0, dtype=np.int64)).tolist())
        moves[shard.id] = {
            number: writer.copy(row) for number, row in enumerate(_rows(directory / shard.name)) if number in wanted
        }
    return writer.close(), moves


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for batch in open_shard(file).to_batches():
        for start in range(0, batch.num_rows, 256):
            yield from batch.slice(start, 256).to_pylist()


def _stack(pixels: Any, *, shape: tuple[int, ...], dtype: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """Runs of whole images among equals, as views: offset of the first, and (n, *shape)."""
    offsets = np.frombuffer(pixels.buffers()[1], dtype=np.int32)[pixels.offset : pixels.offset + len(pixels) + 1]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    whole = np.diff(offsets) == size
    data = pixels.buffers()[2]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]])))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        view = np.frombuffer(data, dtype=np.uint8, count=(end - start) * size, offset=int(offsets[start]))
        yield start, view.view(np.dtype(dtype).newbyteorder("<")).reshape(end - start, *shape)
