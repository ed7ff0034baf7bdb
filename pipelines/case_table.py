"""The case table of a dataset version: one row for each confirmed case, those that wait among them.

The table lies in parts, each with the cases of one range of ids, as Parquet files named by range and SHA-256. A version
writes the parts in which something changed and shares the others, so a correction costs one part and not the table.
A row says what is known of the case, the answer and why it stands (or why the case waits: `waiting` is then a text and
`finding` is null), where its pixels lie (`shard`, `row`), and all that was said (`confirmations`). Beside it stands a
number each for its image and its group, so that finding who shares one with a newcomer reads little.

Reference: Apache Parquet format 2.11.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import job
from pipelines.counts import Counts, counts_in, with_counts
from pipelines.seals import sha256_of
from pipelines.shards import Place
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest, Example, Waiting

PART_CASES = 16_384
"""Case ids a part spans."""

_CONFIRMATION = pa.struct(
    [
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
SCHEMA = pa.schema(
    [
        ("case_id", pa.int64()),
        ("image_digest", pa.binary(32)),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("phash", pa.uint64()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("finding", pa.string()),
        ("evidence", pa.string()),
        ("ai_exposure", pa.string()),
        ("reads", pa.int64()),
        ("why", pa.string()),
        ("confirmed_on", pa.string()),
        ("submitters", pa.list_(pa.string())),
        ("confirmation_ids", pa.list_(pa.int64())),
        ("added_in", pa.int64()),
        ("label_since", pa.int64()),
        ("waiting", pa.string()),
        ("site", pa.string()),
        ("scanner", pa.string()),
        ("sex", pa.string()),
        ("age_band", pa.string()),
        ("spacing_mm", pa.list_(pa.float32())),
        ("confirmations", pa.list_(_CONFIRMATION)),
    ]
)
_KEYS = ("image_key", "group_key")
_SAID = tuple(field.name for field in fields(Confirmation))
_EXAMPLE = tuple(field.name for field in fields(Example))
EXAMPLE_COLUMNS = (*_EXAMPLE, "waiting")
"""What it takes to compare examples."""
_CASE = tuple(field.name for field in fields(ConfirmedCase) if field.name not in {"patient", "confirmations"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """One confirmed case: what is known, what became of it, and where its pixels lie if it is in the version."""

    case: ConfirmedCase
    outcome: Example | Waiting
    place: Place | None
    phash: int | None
    """Perceptual hash of the pixels, where they have a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One entry of the manifest's list of parts: the cases with ids from `part` × PART_CASES on."""

    part: int
    name: str
    digest: str
    cases: int

    def document(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return asdict(self)


def part_of(case_id: int) -> int:
    """Number of the part that holds a case."""
    return case_id // PART_CASES


def table_of(rows: Iterable[CaseRow]) -> Any:
    """Rows as an Arrow table of SCHEMA, in the order given."""
    return pa.Table.from_pylist([_plain(row) for row in rows], schema=SCHEMA)


def rows_of(table: Any) -> Iterator[CaseRow]:
    """Rows of a table with all columns."""
    for row in table.to_pylist():
        said = tuple(Confirmation(**item) for item in row["confirmations"])
        spacing = None if row["spacing_mm"] is None else tuple(row["spacing_mm"])
        row |= {"image_digest": Digest(row["image_digest"].hex()), "spacing_mm": spacing}
        kind, _, patient = row["group"].partition(":")
        case = ConfirmedCase(
            **{name: row[name] for name in _CASE}, patient=patient if kind == "patient" else None, confirmations=said
        )
        if row["waiting"] is None:
            row |= {"submitters": tuple(row["submitters"]), "confirmation_ids": tuple(row["confirmation_ids"])}
            outcome: Example | Waiting = Example(**{name: row[name] for name in _EXAMPLE})
        else:
            outcome = Waiting(
                case_id=row["case_id"], reason=row["waiting"], split=row["split"], added_in=row["added_in"]
            )
        place = None if row["shard"] is None else Place(row["shard"], row["row"])
        yield CaseRow(case=case, outcome=outcome, place=place, phash=row["phash"])


def write_part(directory: Path, *, part: int, table: Any) -> Part:
    """Write one part, with what it holds in numbers in its footer; the same rows give the same bytes."""
    directory.mkdir(exist_ok=True)
    partial = directory / "partial"
    pq.write_table(with_counts(_with_keys(table)), partial, compression="zstd")
    job.flush(partial)
    digest = sha256_of(partial)
    name = f"{part:07d}-{digest}.parquet"
    sys.audit("overread.fault", "part.rename.before")
    partial.rename(directory / name)
    return Part(part=part, name=name, digest=digest, cases=table.num_rows)


def read_part(file: Path, columns: Sequence[str] = ()) -> Any:
    """Read one part, or some columns of it."""
    with pq.ParquetFile(file) as opened:
        return opened.read(columns=list(columns) or None)


def read_counts(file: Path) -> Counts:
    """What one part holds in numbers, from its footer."""
    return counts_in(pq.read_schema(file))


def read_keys(file: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Keys of the images and of the groups of one part, (n,) each: equal where those are, and hardly ever else."""
    with pq.ParquetFile(file) as opened:
        if opened.schema_arrow.get_field_index(_KEYS[0]) >= 0:
            table = opened.read(columns=list(_KEYS))
        else:  # written before there were keys
            table = _with_keys(opened.read(columns=["image_digest", "group"]))
    image, group = (table.column(name).to_numpy() for name in _KEYS)
    return image, group


def with_ids(table: Any, ids: Collection[int] | NDArray[np.int64]) -> Any:
    """The rows of a table whose case is one of these."""
    return table.filter(has_id(table, ids))


def has_id(table: Any, ids: Collection[int] | NDArray[np.int64]) -> Any:
    """(n,) bool: whether a row's case is one of these."""
    values = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.int64, count=len(ids))
    return pa.array(np.isin(table.column("case_id").to_numpy(), values))


def merged(before: Any, new: Any, *, without: Collection[int] | NDArray[np.int64]) -> Any:
    """One table in order of case: `before` less the cases in `without`, and `new`. Either may be None."""
    kept = None if before is None else before.filter(pc.invert(has_id(before, without)))
    parts = [table.select(SCHEMA.names) for table in (kept, new) if table is not None]
    return pa.concat_tables(parts).sort_by("case_id").combine_chunks()


def same_examples(one: Any, other: Any) -> bool:
    """Say whether two parts hold the same examples, wherever their pixels lie, whoever waits. None: an empty part."""
    inside = [SCHEMA.empty_table() if table is None else table for table in (one, other)]  # of EXAMPLE_COLUMNS at least
    first, second = (table.filter(pc.is_null(table.column("waiting"))).select(_EXAMPLE) for table in inside)
    return bool(first.equals(second))


def prefixes(table: Any) -> NDArray[np.uint64]:
    """(n,) first eight bytes of each image's digest: enough to find those that may be equal."""
    column = table.column("image_digest").combine_chunks()
    if len(column) == 0:
        return np.empty(0, dtype=np.uint64)
    buffer = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * 32 : (column.offset + len(column)) * 32]
    return buffer.reshape(-1, 32)[:, :8].copy().view(">u8").ravel().astype(np.uint64)


def prefix(digest: str) -> int:
    """The same of one digest in hexadecimal."""
    return int(digest[:16], 16)


def group_key(group: str) -> int:
    """A number of 64 bits for a group."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest())


def said_in(tables: Iterable[Any]) -> dict[CaseId, tuple[Confirmation, ...]]:
    """What was said about each case of tables with `case_id` and `confirmations`."""
    return {
        CaseId(row["case_id"]): tuple(Confirmation(**item) for item in row["confirmations"])
        for table in tables
        for row in table.to_pylist()
    }


def _with_keys(table: Any) -> Any:
    keys = np.fromiter(map(group_key, table.column("group").to_pylist()), dtype=np.uint64, count=table.num_rows)
    for name, values in zip(_KEYS, (prefixes(table), keys), strict=True):
        table = table.drop_columns(name) if name in table.column_names else table
        table = table.append_column(name, pa.array(values, pa.uint64()))
    return table


def _plain(row: CaseRow) -> Mapping[str, Any]:
    case, outcome = row.case, row.outcome
    plain: dict[str, Any] = {name: getattr(case, name) for name in _CASE}
    if isinstance(outcome, Example):
        plain |= {name: getattr(outcome, name) for name in _EXAMPLE}
    else:
        plain |= {"split": outcome.split, "added_in": outcome.added_in, "waiting": outcome.reason}
    plain |= {"group": case.group, "image_digest": bytes.fromhex(case.image_digest)}
    plain |= {"confirmations": [{name: getattr(item, name) for name in _SAID} for item in case.confirmations]}
    if row.place is not None:
        plain |= {"shard": row.place.shard, "row": row.place.row, "phash": row.phash}
    return plain
