"""What changed between two versions of a line: who came, who left and why, whose answer became another.

Only the parts of the case table in which the two differ are fetched and read, so it costs what changed.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.case_table import Part
from pipelines.contents import Contents
from pipelines.data_repository import DataRepository, tag_of

EXAMPLES = 20
"""Cases named of each kind; all are counted."""
_COLUMNS = ("case_id", "finding", "split", "evidence", "waiting")


def difference(repository: Path, *, line: str, old: int, new: int) -> dict[str, Any]:
    """Compare two versions of a line; returns plain values: counts of each kind of change, and some cases of each.

    Raises VersionUnknown, ToolFailed.
    """
    source = DataRepository(path=repository)
    with tempfile.TemporaryDirectory() as folder:
        sides = [_open(source, tag_of(line, number), line, Path(folder) / str(number)) for number in (old, new)]
        listed = [{part.part: part for part in side.parts} for side in sides]
        differing = sorted(
            part for part in listed[0].keys() | listed[1].keys() if listed[0].get(part) != listed[1].get(part)
        )
        for side, parts, number in zip(sides, listed, (old, new), strict=True):
            _fetch(source, side, tag_of(line, number), [parts[part] for part in differing if part in parts])
        changes = list(_changes(sides, differing))
    return {
        "line": line,
        "old": {"number": old, **_named(sides[0])},
        "new": {"number": new, **_named(sides[1])},
        "same_protocol": sides[0].document["protocol_digest"] == sides[1].document["protocol_digest"],
        "parts_read": len(differing),
        "changes": dict(sorted(Counter(kind for kind, _ in changes).items())),
        "cases": {
            kind: [case for found, case in changes if found == kind][:EXAMPLES]
            for kind in sorted({kind for kind, _ in changes})
        },
    }


def _open(source: DataRepository, tag: str, line: str, directory: Path) -> Contents:
    return Contents.listed(directory, json.loads(source.show(tag, f"{line}/manifest.json")))


def _fetch(source: DataRepository, side: Contents, tag: str, parts: list[Part]) -> None:
    (side.directory / "cases").mkdir(parents=True, exist_ok=True)
    line = side.document["line"]
    source.fetch(tag, {f"{line}/cases/{part.name}": str(side.directory / "cases" / part.name) for part in parts})


def _named(side: Contents) -> dict[str, Any]:
    return {name: side.document[name] for name in ("examples", "counts", "waiting")}


def _changes(sides: list[Contents], parts: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = pa.table({name: [] for name in _COLUMNS})
    for part in parts:
        before, after = (
            {row["case_id"]: row for row in (empty if table is None else table.select(_COLUMNS)).to_pylist()}
            for table in (side.table(part) for side in sides)
        )
        for case_id in sorted(before.keys() | after.keys()):
            old, new = before.get(case_id), after.get(case_id)
            if old != new:
                yield _kind(old, new), {"case_id": case_id, **_words(old, new)}


def _kind(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    was, is_in = (row is not None and row["waiting"] is None for row in (old, new))
    if not was and is_in:
        return "entered"
    if was and not is_in:
        return "left"
    if not was:
        return "still waiting" if new is not None else "no longer waiting"
    assert old is not None
    assert new is not None
    return "other finding" if old["finding"] != new["finding"] else "other evidence"


def _words(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    return {"was": _shown(old), "is": _shown(new)}


def _shown(row: dict[str, Any] | None) -> str | None:
    if row is None:
        return None
    return f"waiting: {row['waiting']}" if row["waiting"] else f"{row['finding']} ({row['evidence']}, {row['split']})"
