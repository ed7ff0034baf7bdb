"""Which cases a freeze has to decide, which of them together, and what becomes of them.

Invariant: deciding only the cases of which something new was said gives the same version as deciding every case.
Cases bear on each other only through a shared image (one may enter) and a shared patient (one split), so with a changed
case go those that have its image, and the splits that its patient has been in.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import case_table, manifest
from pipelines.case_table import CaseRow, part_of
from pipelines.contents import Contents
from pipelines.manifest import Outcome
from pipelines.protocol import Protocol
from pipelines.types import CaseId, ConfirmedCase, Digest, Example, Split, Waiting

_SIDES = ("case_id", "group", "split", "waiting", "added_in")

UNREADABLE = "image unreadable"
"""How the reason of a case begins whose image could not be read; it is tried again at each freeze."""
DECIDED_AT_ONCE = 1024
"""Cases that are held in memory together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a freeze has to look at: `cases` are all of the line (`whole`), or those of which something new was said.

    `cases` gives them in order of id, each time from the first. `gone` are erased cases. Every confirmation up to
    `last_confirmation_id` was considered.
    """

    cases: Callable[[], Iterable[ConfirmedCase]]
    whole: bool
    last_confirmation_id: int
    gone: Collection[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartChange:
    """What changes in one part of the case table: rows that are new or decided anew, and cases that are no more.

    A row's place is where its image lies already; None: nowhere yet, or the case waits. Rows are decided as they are
    taken, some at a time, once, and before the next part is asked for.
    """

    part: int
    before: Any
    rows: Iterator[list[CaseRow]]
    removed: set[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Survey:
    """What a look over all that is there found."""

    together: frozenset[int]
    """First bytes of the images whose cases are decided together."""
    again: dict[int, set[int]]
    """Cases, by part, to decide again although nothing new was said of them."""
    removed: dict[int, set[int]]
    """Cases, by part, of the version before that are no more."""
    kept_splits: dict[str, Split]


def settle_changes(
    before: Contents, change: Change, *, protocol: Protocol, split_key: bytes, number: int
) -> Iterator[PartChange]:
    """Decide what has to be decided, part by part in order; parts in which nothing changes are left out."""
    survey = _survey(before, change, protocol=protocol, split_key=split_key)

    def decide(cases: Iterable[ConfirmedCase], known: Mapping[CaseId, CaseRow]) -> dict[CaseId, CaseRow]:
        cases = list(cases)
        outcomes = manifest.assemble(
            cases,
            protocol=protocol,
            split_key=split_key,
            number=number,
            before={case_id: row.outcome for case_id, row in known.items()},
            kept_splits=survey.kept_splits,
        )
        stored = {row.case.image_digest: row for row in known.values() if row.place is not None}
        return {case.case_id: _row(case, outcomes[case.case_id], stored) for case in cases}

    def is_together(case: ConfirmedCase) -> bool:
        return case_table.prefix(case.image_digest) in survey.together

    shared = _shared(before, change, survey)
    known = {
        row.case.case_id: row
        for part in {part_of(case_id) for case_id in shared}
        for row in _known(before.table(part), shared)
    }
    decided = decide(shared.values(), known)

    def rows(part: int, here: Any, cases: Iterable[ConfirmedCase]) -> Iterator[list[CaseRow]]:
        alone = (case for case in cases if not is_together(case))
        while some := list(islice(alone, DECIDED_AT_ONCE)):
            mine = {row.case.case_id: row for row in _known(here, [case.case_id for case in some])}
            yield list(decide(some, mine).values())
        yield [row for case_id, row in decided.items() if part_of(case_id) == part]

    streams = groupby(change.cases(), key=lambda case: part_of(case.case_id))
    for part, cases in _with_gaps(streams, {*survey.again, *survey.removed}):
        here = before.table(part)
        removed = survey.removed.get(part, set())
        yield PartChange(part=part, before=here, rows=rows(part, here, cases), removed=removed)


def _survey(before: Contents, change: Change, *, protocol: Protocol, split_key: bytes) -> _Survey:
    ids, images, groups = array("q"), array("Q"), set()
    for case in change.cases():
        ids.append(case.case_id)
        images.append(case_table.prefix(case.image_digest))
        if not change.whole:
            groups.add(case.group)
    asked, wanted = np.asarray(ids, dtype=np.int64), np.asarray(images, dtype=np.uint64)
    gone = np.array(sorted(change.gone), dtype=np.int64)
    kept_splits: dict[str, Split] = {}
    removed, touched, left = [], [wanted], []
    concerned = None if change.whole else _concerned(before, asked=asked, gone=gone, images=wanted, groups=groups)
    for table in before.tables("image_digest", *_SIDES, only=concerned):
        numbers, prefixes = table.column("case_id").to_numpy(), case_table.prefixes(table)
        present = _is_in(numbers, asked)
        lost = np.isin(numbers, gone) | (change.whole & ~present)
        removed += numbers[lost].tolist()
        touched.append(prefixes[lost])
        others = ~(present | lost)
        unreadable = pc.fill_null(pc.starts_with(table.column("waiting"), UNREADABLE), fill_value=False).to_numpy()
        left.append((numbers[others], prefixes[others], unreadable[others]))
        _keep_splits(table, kept_splits, groups=groups, whole=change.whole, key=split_key, protocol=protocol)
    every_touched = np.sort(np.concatenate(touched))
    again, images_again = [], [wanted[:0]]
    for numbers, prefixes, unreadable in left:
        chosen = _is_in(prefixes, every_touched) | unreadable
        again += numbers[chosen].tolist()
        images_again.append(prefixes[chosen])
    if again and not change.whole:  # their patients' splits hold as well
        theirs = {row.case.group for part, ids in _by_part(again).items() for row in _known(before.table(part), ids)}
        for table in before.tables(*_SIDES, only=before.parts_with(images=wanted[:0], groups=theirs)):
            _keep_splits(table, kept_splits, groups=theirs, whole=False, key=split_key, protocol=protocol)
    wanted.sort()
    twice = wanted[1:][wanted[1:] == wanted[:-1]]
    return _Survey(
        together=frozenset(np.concatenate([twice, *images_again]).tolist()),
        again=_by_part(again),
        removed=_by_part(removed),
        kept_splits=kept_splits,
    )


def _concerned(
    before: Contents,
    *,
    asked: NDArray[np.int64],
    gone: NDArray[np.int64],
    images: NDArray[np.uint64],
    groups: Collection[str],
) -> set[int]:
    """Parts that hold a case asked for or gone, its image or its group once more, or an image to be tried again."""
    ours = {part_of(case_id) for case_id in gone.tolist()}
    lost = [
        case_table.prefixes(case_table.with_ids(table, gone))
        for table in before.tables("case_id", "image_digest", only=ours)
    ]
    ours |= {part_of(case_id) for case_id in asked.tolist()}
    ours |= {part.part for part, counts in before.counts() if UNREADABLE in counts.waiting}
    return ours | before.parts_with(images=np.concatenate([images, *lost]), groups=groups)


def _keep_splits(
    table: Any, kept: dict[str, Split], *, groups: Collection[str], whole: bool, key: bytes, protocol: Protocol
) -> None:
    """Note the splits of groups that today's shares would put elsewhere."""
    table = table.select(_SIDES)
    if not whole:
        table = table.filter(pc.is_in(table.column("group"), pa.array(sorted(groups), pa.string())))
    for row in table.to_pylist():
        if row["waiting"] is not None:
            waiting = Waiting(
                case_id=row["case_id"], reason=row["waiting"], split=row["split"], added_in=row["added_in"]
            )
            row["split"] = manifest.kept_split(waiting)
        if row["split"] and row["split"] != manifest.split_of(key, row["group"], protocol.splits):
            kept[row["group"]] = row["split"]


def _shared(before: Contents, change: Change, survey: _Survey) -> dict[CaseId, ConfirmedCase]:
    """The cases that share an image with another, and those to decide again."""
    shared: dict[CaseId, ConfirmedCase] = {}
    for part, ids in survey.again.items():
        shared |= {row.case.case_id: row.case for row in _known(before.table(part), ids)}
    if survey.together:
        shared |= {
            case.case_id: case for case in change.cases() if case_table.prefix(case.image_digest) in survey.together
        }
    return shared


def _known(table: Any, ids: Iterable[int]) -> Iterator[CaseRow]:
    return iter(()) if table is None else case_table.rows_of(case_table.with_ids(table, list(ids)))


def _row(case: ConfirmedCase, outcome: Outcome, stored: Mapping[Digest, CaseRow]) -> CaseRow:
    twin = stored.get(case.image_digest) if isinstance(outcome, Example) else None
    return CaseRow(
        case=case,
        outcome=outcome,
        place=None if twin is None else twin.place,
        phash=None if twin is None else twin.phash,
    )


def _with_gaps(
    streams: Iterable[tuple[int, Iterable[ConfirmedCase]]], parts: Collection[int]
) -> Iterator[tuple[int, Iterable[ConfirmedCase]]]:
    """Parts in order: those of the streams, and between them `parts` that no case arrived for."""
    waiting = sorted(parts, reverse=True)
    for part, cases in streams:
        while waiting and waiting[-1] < part:
            yield waiting.pop(), ()
        if waiting and waiting[-1] == part:
            waiting.pop()
        yield part, cases
    while waiting:
        yield waiting.pop(), ()


def _is_in(values: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Say of each value whether it is among others, which are in order; those are not sorted again for each part."""
    if not len(ordered):
        return np.zeros(len(values), dtype=np.bool_)
    places = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[places] == values)


def _by_part(ids: Iterable[int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for case_id in ids:
        found.setdefault(part_of(case_id), set()).add(case_id)
    return found
