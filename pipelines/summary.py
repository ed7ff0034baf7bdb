"""What a dataset version holds in numbers: by split and class, by site, by month, by submitter, and who waits why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contents import Contents
from pipelines.counts import Tally, tally
from pipelines.findings import matrix, side_of, sides
from pipelines.types import SPLITS


def summary(contents: Contents, *, classes: Sequence[str], number: int, several: bool = False) -> dict[str, Any]:
    """Count the cases of version `number`; every split and class has an entry, if only 0.

    Of findings that do not exclude each other (`several`) the cases with each of them and those without have one.
    Reads the footers of the parts, and of those rows only in which a case got its label in this version.
    """
    by_class: Counter[tuple[Any, ...]] = Counter()
    by_site: Counter[tuple[Any, ...]] = Counter()
    by_month: Counter[tuple[Any, ...]] = Counter()
    submitters: Counter[tuple[Any, ...]] = Counter()
    waiting: Counter[str] = Counter()
    new = 0
    for part, counts in contents.counts():
        _add(by_class, counts.by_class)
        _add(by_site, counts.by_site)
        _add(by_month, counts.by_month)
        waiting.update(counts.waiting)
        if counts.newest >= number:
            table = contents.table(part.part, "label_since", "submitters")
            fresh = table.filter(pc.equal(table.column("label_since"), number))
            new += fresh.num_rows
            _add(submitters, tally(pa.table({"submitter": pc.list_flatten(fresh.column("submitters"))}), "submitter"))
    by_split = _nested(by_class, SPLITS, classes)
    if several:
        by_split = _nested(_by_side(by_class, classes), SPLITS, sides(classes))
    return {
        "examples": sum(by_class.values()),
        "new_examples": new,
        "counts": by_split,
        "sites": _nested(by_site, sorted({str(site) for site, _ in by_site}), SPLITS),
        "months": _nested(by_month, sorted({str(month) for month, _ in by_month}), SPLITS),
        "new_cases": {str(name): count for (name,), count in sorted(submitters.items())},
        "waiting": dict(sorted(waiting.items())),
    }


def _add(total: Counter[tuple[Any, ...]], more: Tally) -> None:
    total.update(dict(more))


def _by_side(by_answer: Counter[tuple[Any, ...]], classes: Sequence[str]) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for (split, answer), count in by_answer.items():
        (present,) = matrix([answer], classes)
        found.update(
            {(split, side_of(name, present=there)): count for name, there in zip(classes, present, strict=True)}
        )
    return found


def _nested(tally: Counter[tuple[Any, ...]], outer: Iterable[str], inner: Iterable[str]) -> dict[str, dict[str, int]]:
    inner = list(inner)
    return {one: {other: tally[(one, other)] for other in inner} for one in outer}
