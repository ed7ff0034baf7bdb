"""The files of a dataset version: image shards, tables, and their digests.

A shard is an Arrow IPC file, uncompressed so that it can be memory-mapped, named by the SHA-256 of its bytes; it is
written once and shared by all later versions. A pixel is stored once however many versions hold its case. Every file
is written to a temporary name, flushed to disk and renamed: a reader never meets half a file.

Reference: Apache Arrow columnar format 1.5, "IPC File Format".
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data_repository import VersionDamaged
from pipelines.images import ImageRefused, Pixels, from_npy, npy_bytes
from pipelines.types import CaseId, Confirmation, Digest, Example

SHARD_BYTES = 256 * 2**20
BATCH_BYTES = 32 * 2**20

_IMAGE = pa.schema(
    [
        ("image_digest", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("channels", pa.int32()),
        ("dtype", pa.string()),
        ("pixels", pa.binary()),
    ]
)
_LABEL = pa.schema(
    [
        ("case_id", pa.int64()),
        ("image_digest", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("finding", pa.string()),
        ("evidence", pa.string()),
        ("ai_exposure", pa.string()),
        ("reads", pa.int64()),
        ("submitters", pa.list_(pa.string())),
        ("confirmation_ids", pa.list_(pa.int64())),
        ("site", pa.string()),
        ("scanner", pa.string()),
        ("sex", pa.string()),
        ("age_band", pa.string()),
        ("added_in", pa.int64()),
        ("label_since", pa.int64()),
    ]
)
_CONFIRMATION = pa.schema(
    [
        ("case_id", pa.int64()),
        ("confirmation_id", pa.int64()),
        ("kind", pa.string()),
        ("finding", pa.string()),
        ("evidence", pa.string()),
        ("ai_exposure", pa.string()),
        ("submitter", pa.string()),
        ("reader", pa.string()),
        ("confirmed_on", pa.string()),
        ("reason", pa.string()),
    ]
)


def write_labels(file: Path, examples: Iterable[Example]) -> None:
    """Write the label table: one Example a row, in the order given."""
    rows = [{name: getattr(example, name) for name in _LABEL.names} for example in examples]
    _write_table(file, pa.Table.from_pylist(rows, schema=_LABEL))


def read_labels(file: Path) -> tuple[Example, ...]:
    """Read the label table."""
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    for row in rows:
        row.update(submitters=tuple(row["submitters"]), confirmation_ids=tuple(row["confirmation_ids"]))
    return tuple(Example(**row) for row in rows)


def write_confirmations(file: Path, said: Mapping[CaseId, Sequence[Confirmation]]) -> None:
    """Write what was said about each case, in order of case and confirmation."""
    rows = [
        {"case_id": case_id, **{name: getattr(item, name) for name in _CONFIRMATION.names[1:]}}
        for case_id in sorted(said)
        for item in sorted(said[case_id], key=lambda item: item.confirmation_id)
    ]
    _write_table(file, pa.Table.from_pylist(rows, schema=_CONFIRMATION))


def read_confirmations(file: Path) -> dict[CaseId, tuple[Confirmation, ...]]:
    """Read what was said about each case."""
    found: dict[CaseId, list[Confirmation]] = {}
    for row in pq.read_table(file).to_pylist():
        found.setdefault(CaseId(row.pop("case_id")), []).append(Confirmation(**row))
    return {case_id: tuple(items) for case_id, items in found.items()}


def write_shards(
    directory: Path,
    wanted: Iterable[Digest],
    *,
    stored: Mapping[str, str],
    blobs: Path,
    keep_going: Callable[[], None],
) -> list[dict[str, Any]]:
    """Leave in `directory` exactly the shards that hold the wanted images; only those not `stored` are written.

    `stored` maps image digests to the shards of the version before. Returns the manifest's list of shards, the old
    ones first. Raises VersionDamaged where an image is missing or damaged.
    """
    directory.mkdir(exist_ok=True)
    wanted = set(wanted)
    held: dict[str, int] = {}
    for name in stored.values():
        held[name] = held.get(name, 0) + 1
    needed = {stored[digest] for digest in wanted if digest in stored}
    shards = [
        {"name": name, "digest": name.partition(".")[0], "images": n} for name, n in held.items() if name in needed
    ]
    new = sorted(digest for digest in wanted if digest not in stored)
    while new:
        shard, count = _write_shard(directory, new, blobs=blobs, keep_going=keep_going)
        new = new[count:]
        shards.append({"name": shard.name, "digest": shard.stem, "images": count})
    names = {shard["name"] for shard in shards}
    for file in directory.iterdir():
        if file.name not in names:
            file.unlink()
    return shards


def index_shards(directory: Path, shards: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Map each image digest to the name of the shard that holds it."""
    return {
        digest: shard["name"]
        for shard in shards
        for digest in _open_shard(directory / shard["name"]).column("image_digest").to_pylist()
    }


def read_images(directory: Path, shards: Iterable[Mapping[str, Any]], digests: Iterable[Digest]) -> Iterator[Pixels]:
    """Read images one after the other, each checked against its digest. Raises VersionDamaged."""
    tables = [_open_shard(directory / shard["name"]) for shard in shards]
    where = {
        digest: (number, row)
        for number, table in enumerate(tables)
        for row, digest in enumerate(table.column("image_digest").to_pylist())
    }
    for digest in digests:
        if digest not in where:
            raise VersionDamaged(f"image {digest} is in none of the shards in {directory}")
        number, row = where[digest]
        yield _pixels(tables[number], row, digest)


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


def verify(directory: Path, document: Mapping[str, Any], *, shards: bool) -> None:
    """Check a version's files against its manifest, the shards only if asked. Raises VersionDamaged."""
    expected = {
        "labels.parquet": document["labels_digest"],
        "confirmations.parquet": document["confirmations_digest"],
        "waiting.ndjson": document["waiting_digest"],
    }
    if shards:
        expected |= {f"shards/{shard['name']}": shard["digest"] for shard in document["shards"]}
    for name, digest in expected.items():
        if not (directory / name).is_file() or sha256_of(directory / name) != digest:
            raise VersionDamaged(
                f"{directory / name} is missing or does not match its digest; check the version out anew"
            )


def sha256_of(file: Path) -> Digest:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return Digest(hashlib.file_digest(stream, "sha256").hexdigest())


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary path beside `file` to write to; at the end it is flushed to disk and takes the name."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _flush(temporary)
        sys.audit("overread.fault", "table.rename.before")
        temporary.replace(file)
        _flush(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_table(file: Path, table: Any) -> None:
    with replacing(file) as temporary:
        pq.write_table(table, temporary)


def _write_shard(
    directory: Path, digests: Sequence[Digest], *, blobs: Path, keep_going: Callable[[], None]
) -> tuple[Path, int]:
    """Write as many of the images as one shard takes; returns its place and their number."""
    count = total = held = 0
    rows: list[dict[str, Any]] = []
    partial = directory / "partial"  # swept with everything that the manifest does not list
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _IMAGE) as writer:
        for digest in digests:
            keep_going()
            pixels = read_blob(blobs, digest)
            row = {"image_digest": digest, "height": pixels.shape[0], "width": pixels.shape[1]}
            row |= {"channels": 1 if pixels.ndim == 2 else pixels.shape[2], "dtype": pixels.dtype.name}
            rows.append({**row, "pixels": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()})
            held += pixels.nbytes
            total += pixels.nbytes
            count += 1
            if held >= BATCH_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_IMAGE))
                rows, held = [], 0
            if total >= SHARD_BYTES:
                break
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_IMAGE))
    _flush(partial)
    sys.audit("overread.fault", "shard.rename.before")
    return partial.rename(directory / f"{sha256_of(partial)}.arrow"), count


def _open_shard(file: Path) -> Any:
    """A shard as a table of views into the mapped file; nothing is copied."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise VersionDamaged(f"shard {file} cannot be read: {error}") from error


def _pixels(table: Any, row: int, digest: str) -> Pixels:
    height, width, channels, dtype = (table.column(name)[row].as_py() for name in _IMAGE.names[1:5])
    shape = (height, width) if channels == 1 else (height, width, channels)
    view = np.frombuffer(table.column("pixels")[row].as_buffer(), dtype=np.dtype(dtype).newbyteorder("<"))
    try:
        pixels = view.reshape(shape)
    except ValueError as error:
        raise VersionDamaged(f"image {digest} has the wrong size in its shard") from error
    if hashlib.sha256(npy_bytes(pixels)).hexdigest() != digest:
        raise VersionDamaged(f"image {digest} does not match its digest")
    return pixels.astype(dtype)
