"""What a dataset version holds in numbers: by split and class, by site, by month, by submitter, and who waits why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contents import Contents
from pipelines.types import SPLITS


def summary(contents: Contents, *, classes: Sequence[str], number: int) -> dict[str, Any]:
    """Count the cases of version `number`; every split and class has an entry, if only 0."""
    columns = ("split", "finding", "site", "confirmed_on", "waiting", "label_since")
    by_class: Counter[tuple[str, ...]] = Counter()
    by_site: Counter[tuple[str, ...]] = Counter()
    by_month: Counter[tuple[str, ...]] = Counter()
    submitters: Counter[tuple[str, ...]] = Counter()
    waiting: Counter[str] = Counter()
    new = 0
    for part, table in zip(contents.parts, contents.tables(*columns), strict=True):
        waits = pc.is_valid(table.column("waiting"))
        reasons = table.filter(waits).column("waiting").to_pylist()
        waiting.update(reason.partition(":")[0] for reason in reasons)
        inside = table.filter(pc.invert(waits))
        by_class += _tally(inside, "split", "finding")
        by_site += _tally(inside, "site", "split")
        month = pc.utf8_slice_codeunits(inside.column("confirmed_on"), 0, 7)
        by_month += _tally(inside.append_column("month", month), "month", "split")
        if pc.any(pc.equal(inside.column("label_since"), number)).as_py():
            whole = contents.table(part.part)
            fresh = whole.filter(pc.equal(whole.column("label_since"), number))
            new += fresh.num_rows
            submitters += _tally(pa.table({"submitter": pc.list_flatten(fresh.column("submitters"))}), "submitter")
    return {
        "examples": sum(by_class.values()),
        "new_examples": new,
        "counts": _nested(by_class, SPLITS, classes),
        "sites": _nested(by_site, sorted({site for site, _ in by_site}), SPLITS),
        "months": _nested(by_month, sorted({month for month, _ in by_month}), SPLITS),
        "new_cases": {name: count for (name,), count in sorted(submitters.items())},
        "waiting": dict(sorted(waiting.items())),
    }


def _tally(table: Any, *names: str) -> Counter[tuple[str, ...]]:
    grouped = table.group_by(list(names)).aggregate([([], "count_all")]).to_pylist()
    return Counter({tuple(row[name] for name in names): row["count_all"] for row in grouped})


def _nested(tally: Counter[tuple[str, ...]], outer: Iterable[str], inner: Iterable[str]) -> dict[str, dict[str, int]]:
    inner = list(inner)
    return {str(one): {str(other): tally[(one, other)] for other in inner} for one in outer}
