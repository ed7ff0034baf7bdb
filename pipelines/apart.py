"""No picture on two sides: a newcomer waits whose picture is a near duplicate of one in another split.

Invariant: of each example some 26 bytes are held, whatever else the case table says of it; parts that did not change
are not compared with those before, and only pictures of pairs across splits are fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import case_table, hamming, near_duplicates
from pipelines.case_table import CaseRow
from pipelines.contents import Contents
from pipelines.data_repository import FreezeRefused
from pipelines.gate_rules import NearDuplicates
from pipelines.hamming import Pairs, Rows
from pipelines.images import Pixels
from pipelines.near_duplicates import Twin
from pipelines.shards import Images, Place, Shard
from pipelines.types import SPLITS, Example, Waiting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sides:
    """The examples of a version in the making, in order of case id; all (N,)."""

    case_id: NDArray[np.int64]
    phash: NDArray[np.uint64]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    split: NDArray[np.int8]
    """Index into SPLITS."""
    incumbent: NDArray[np.bool_]
    """Whether the version before has it too."""


_DTYPES = {"case_id": "i8", "phash": "u8", "shard": "i4", "row": "i4", "split": "i1", "incumbent": "?"}


def keep_apart(contents: Contents, every: Sequence[Shard], *, before: Contents, rule: NearDuplicates) -> Contents:
    """Return the contents with newcomers waiting that have a twin in another split; `every` is all shards there are.

    Raises FreezeRefused where so many look alike that looking is no use.
    """
    if len(every) == len(before.shards):  # no image is new
        return contents
    sides = _sides(contents, before)
    twins = near_duplicates.across_splits(
        _crossing(sides, Images(contents.directory / "shards", every), rule=rule),
        splits=sides.split,
        incumbent=sides.incumbent,
        order=sides.case_id,
    )
    return _with_waiting(contents, {int(sides.case_id[twin.row]): _reason(sides, twin) for twin in twins})


def _sides(contents: Contents, before: Contents) -> Sides:
    n, known = 0, {part.part: part for part in before.parts}
    size = sum(part.cases for part in contents.parts)
    found = {name: np.empty(size, dtype=dtype) for name, dtype in _DTYPES.items()}  # joining takes twice that
    for part in contents.parts:
        table = _inside(contents.table(part.part, "case_id", "phash", "shard", "row", "split", "waiting"))
        here = slice(n, n + table.num_rows)
        for name in ("case_id", "phash", "shard", "row"):
            found[name][here] = table.column(name).to_numpy()
        found["split"][here] = pc.index_in(table.column("split"), pa.array(SPLITS, pa.string())).to_numpy()
        found["incumbent"][here] = True
        if known.get(part.part) != part:
            held = before.table(part.part, "case_id", "waiting")
            ids = [] if held is None else _inside(held).column("case_id").to_numpy()
            found["incumbent"][here] = np.isin(found["case_id"][here], ids)
        n = here.stop
    return Sides(**{name: column[:n] for name, column in found.items()})


def _crossing(sides: Sides, images: Images, *, rule: NearDuplicates) -> Pairs:
    """The pairs on two sides, one of them new, whose pictures are alike."""

    def fetch(rows: Rows) -> list[Pixels]:
        return [images.look(Place(int(sides.shard[row]), int(sides.row[row]))) for row in rows]

    def looked() -> Iterator[Pairs]:
        for pairs in hamming.search(sides.phash, asking=~sides.incumbent, radius=rule.radius):
            across = pairs.where(sides.split[pairs.first] != sides.split[pairs.second])
            yield near_duplicates.confirmed(across, first=fetch, second=fetch, minimum_likeness=rule.minimum_likeness)

    try:
        return Pairs.joined(list(looked()))
    except hamming.TooAlike as error:
        raise FreezeRefused(str(error)) from error


def _reason(sides: Sides, twin: Twin) -> str:
    other = f"case {sides.case_id[twin.other]} in {SPLITS[sides.split[twin.other]]}"
    return f"near duplicate of another: {other}, {twin.distance} of 64 bits apart"


def _with_waiting(contents: Contents, reasons: Mapping[int, str]) -> Contents:
    parts = {part.part: part for part in contents.parts}
    for number in sorted({case_table.part_of(case_id) for case_id in reasons}):
        held = contents.table(number)
        rows = [
            _waits(row, reasons[row.case.case_id]) for row in case_table.rows_of(case_table.with_ids(held, reasons))
        ]
        table = case_table.merged(held, case_table.table_of(rows), without=reasons)
        parts[number] = case_table.write_part(contents.directory / "cases", part=number, table=table)
    return replace(contents, parts=tuple(parts[part] for part in sorted(parts)))


def _waits(row: CaseRow, reason: str) -> CaseRow:
    """A case that was about to come in, and waits; it has not been on a side yet, unless it was before."""
    assert isinstance(row.outcome, Example)
    was = row.outcome.added_in != row.outcome.label_since
    waiting = Waiting(
        case_id=row.case.case_id,
        reason=reason,
        split=row.outcome.split if was else None,
        added_in=row.outcome.added_in if was else None,
    )
    return replace(row, outcome=waiting, place=None, phash=None)


def _inside(table: Any) -> Any:
    return table.filter(pc.is_null(table.column("waiting")))
