"""What a version consists of: parts of its case table and shards of its images, in one directory, listed by a manifest.

<line>/manifest.json      names everything below by SHA-256
<line>/cases/             parts of the case table (Parquet), see `pipelines.case_table`
<line>/shards/            images (Arrow IPC), see `pipelines.shards`
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines import case_table
from pipelines.case_table import Part
from pipelines.counts import Counts
from pipelines.data_repository import VersionDamaged
from pipelines.seals import Seals
from pipelines.shards import Place, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The files of a version. `document` is the manifest that lists them, empty before there is one."""

    directory: Path
    parts: tuple[Part, ...] = ()
    shards: tuple[Shard, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    counted: dict[str, Counts] = field(default_factory=dict, repr=False, compare=False)
    """What the footers of parts said that have been read, by name."""

    @classmethod
    def listed(cls, directory: Path, document: Mapping[str, Any]) -> Contents:
        """What a manifest lists; nothing is read."""
        return cls(
            directory=directory,
            parts=tuple(Part(**entry) for entry in document["cases"]),
            shards=tuple(Shard(**entry) for entry in document["shards"]),
            document=document,
        )

    def listing(self) -> dict[str, Any]:
        """The manifest's lists."""
        return {
            "cases": [part.document() for part in self.parts],
            "shards": [shard.document() for shard in self.shards],
        }

    def files(self) -> dict[str, Path]:
        """Every large file by its digest."""
        tables = {part.digest: self.directory / "cases" / part.name for part in self.parts}
        return tables | {shard.digest: self.directory / "shards" / shard.name for shard in self.shards}

    def verify(self, seals: Seals) -> None:
        """Check that every file is there with its digest. Raises VersionDamaged."""
        for digest, file in self.files().items():
            if not seals.hold(file, digest):
                raise VersionDamaged(f"{file} is missing or does not match its digest; check the version out anew")

    def sweep(self) -> None:
        """Remove from the directory what is not listed: what a killed freeze left, or what the version let go."""
        listed = set(self.files().values())
        for folder in ("cases", "shards"):
            (self.directory / folder).mkdir(exist_ok=True)
            for file in (self.directory / folder).iterdir():
                if file not in listed:
                    file.unlink()

    def table(self, part: int, *columns: str) -> Any:
        """A part of the case table, with these columns (all without any); None where there is no such part."""
        found = next((entry for entry in self.parts if entry.part == part), None)
        return None if found is None else self._read(found, columns)

    def tables(self, *columns: str, only: Collection[int] | None = None) -> Iterator[Any]:
        """Parts of the case table one after the other, all or some, with these columns (all columns without any)."""
        for part in self.parts:
            if only is None or part.part in only:
                yield self._read(part, columns)

    def parts_with(self, *, images: NDArray[np.uint64], groups: Collection[str]) -> set[int]:
        """Parts that may hold a case with one of these images (by `case_table.prefix`) or of one of these groups."""
        keys = np.fromiter(map(case_table.group_key, groups), dtype=np.uint64, count=len(groups))
        found = set()
        for part in self.parts:
            image, group = case_table.read_keys(self.directory / "cases" / part.name)
            if np.isin(image, images).any() or np.isin(group, keys).any():
                found.add(part.part)
        return found

    def counts(self) -> Iterator[tuple[Part, Counts]]:
        """Every part with what it holds in numbers; no row is read."""
        for part in self.parts:
            if part.name not in self.counted:
                self.counted[part.name] = case_table.read_counts(self.directory / "cases" / part.name)
            yield part, self.counted[part.name]

    def used_shards(self) -> set[int]:
        """Ids of the shards that hold an image of the version."""
        return {shard for _, counts in self.counts() for (shard,), _ in counts.by_shard}

    def used_rows(self) -> dict[int, NDArray[np.int64]]:
        """Rows in use of each shard, ascending; a shard that holds no image of the version is not among them."""
        shard, row = self._places()
        order = np.lexsort((row, shard))
        shard, row = shard[order], row[order]
        edges = np.flatnonzero(np.diff(shard, prepend=-1, append=-1)).tolist()
        return {int(shard[start]): row[start:end] for start, end in pairwise(edges)}

    def moved(self, moves: Mapping[int, Mapping[int, Place]]) -> Contents:
        """Write the parts whose images have moved anew; `moves` are by shard id and row."""
        kept = []
        for part in self.parts:
            table = self._read(part)
            places = list(zip(table.column("shard").to_pylist(), table.column("row").to_pylist(), strict=True))
            if any(shard in moves for shard, _ in places):
                new = [moves[shard][row] if shard in moves else Place(shard, row) for shard, row in places]
                for name, values in zip(("shard", "row"), zip(*new, strict=True), strict=True):
                    position = table.schema.get_field_index(name)
                    table = table.set_column(position, table.schema.field(name), pa.array(values, pa.int32()))
                part = case_table.write_part(self.directory / "cases", part=part.part, table=table)  # noqa: PLW2901
            kept.append(part)
        return replace(self, parts=tuple(kept))

    def _read(self, part: Part, columns: Sequence[str] = ()) -> Any:
        return case_table.read_part(self.directory / "cases" / part.name, columns)

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = [table.drop_null() for table in self.tables("shard", "row")]
        shard, row = (
            np.concatenate([np.empty(0, dtype=np.int64), *(table.column(name).to_numpy() for table in found)])
            for name in ("shard", "row")
        )
        return shard.astype(np.int64), row.astype(np.int64)
