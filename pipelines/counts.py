"""What one part of a case table holds in numbers: kept in the part's footer, so that no version counts old cases again.

Invariant: counts are a function of the part's rows, and the part's digest covers them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.compute as pc

_KEY = b"overread.counts"
_INSIDE = ("split", "finding", "site", "confirmed_on", "label_since")
Tally = list[tuple[tuple[Any, ...], int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Cases inside by (split, finding), (site, split) and (month, split), cases that wait by why, images by shard.

    `newest` is the latest version in which a case of the part got its label, 0 if none is inside.
    """

    by_class: Tally
    by_site: Tally
    by_month: Tally
    by_shard: Tally
    waiting: dict[str, int]
    newest: int


def counts_of(table: Any) -> Counts:
    """Count the rows of a part."""
    waits = pc.is_valid(table.column("waiting"))
    reasons = table.filter(waits).column("waiting").to_pylist()
    inside = table.select(_INSIDE).filter(pc.invert(waits))
    month = pc.utf8_slice_codeunits(inside.column("confirmed_on"), 0, 7)
    return Counts(
        by_class=tally(inside, "split", "finding"),
        by_site=tally(inside, "site", "split"),
        by_month=tally(inside.append_column("month", month), "month", "split"),
        by_shard=tally(table.select(["shard"]).drop_null(), "shard"),
        waiting=dict(sorted(Counter(reason.partition(":")[0] for reason in reasons).items())),
        newest=pc.max(inside.column("label_since")).as_py() or 0,
    )


def tally(table: Any, *names: str) -> Tally:
    """How many rows have which values in these columns, in order of the values."""
    grouped = table.group_by(list(names)).aggregate([([], "count_all")]).to_pylist()
    found = [(tuple(row[name] for name in names), row["count_all"]) for row in grouped]
    return sorted(found, key=lambda entry: tuple(map(str, entry[0])))


def with_counts(table: Any) -> Any:
    """Return a part's table with its counts in the schema's metadata, from where Parquet puts them into the footer."""
    return table.replace_schema_metadata({_KEY: json.dumps(asdict(counts_of(table)))})


def counts_in(schema: Any) -> Counts:
    """Return the counts that a part's schema carries."""
    held: Mapping[str, Any] = json.loads(schema.metadata[_KEY])
    tallies = {
        name: [(tuple(values), count) for values, count in entries]
        for name, entries in held.items()
        if name.startswith("by_")
    }
    return Counts(**{**held, **tallies})
