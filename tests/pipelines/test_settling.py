"""Deciding only what changed gives the same version as deciding everything, whatever the history."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipelines import case_table, manifest, settling
from pipelines.case_table import CaseRow
from pipelines.contents import Contents
from pipelines.protocol import Protocol, Splits
from pipelines.settling import Change, settle_changes
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest, Example
from tests.pipelines.saying import read, said
from tests.pipelines.test_manifest import KEY, PROTOCOL

Said = dict[int, tuple[Confirmation, ...]]


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Eight cases a part, three of them decided at once, so that a few dozen cases are many of both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(case_table, "PART_CASES", 8)
        patch.setattr(settling, "DECIDED_AT_ONCE", 3)
        yield


def case(number: int, items: tuple[Confirmation, ...]) -> ConfirmedCase:
    """A case of which number, and nothing else, decides image and patient: two in three share one with another."""
    return ConfirmedCase(
        case_id=CaseId(number),
        image_digest=Digest(f"{number % 17:016x}" + f"{number % 17:048x}"),
        patient=None if number % 5 == 0 else str(number % 11),
        site="a",
        scanner=None,
        sex=None,
        age_band=None,
        confirmations=items,
    )


def version(
    before: Contents, cases: Sequence[ConfirmedCase], *, number: int, whole: bool, gone: set[int], protocol: Protocol
) -> Contents:
    """The case table of the next version, without images."""
    rows = sorted(cases, key=lambda row: row.case_id)
    change = Change(cases=lambda: iter(rows), whole=whole, gone=gone, last_confirmation_id=1)
    parts = {part.part: part for part in before.parts}
    for changed in settle_changes(before, change, protocol=protocol, split_key=KEY, number=number):
        rows_now = [row for some in changed.rows for row in some]
        without = [*changed.removed, *(row.case.case_id for row in rows_now)]
        table = case_table.merged(changed.before, case_table.table_of(rows_now), without=without)
        directory = before.directory / "cases"
        directory.mkdir(parents=True, exist_ok=True)
        parts[changed.part] = case_table.write_part(directory, part=changed.part, table=table)
    return replace(before, parts=tuple(parts[part] for part in sorted(parts) if parts[part].cases))


def rows_of(contents: Contents) -> list[CaseRow]:
    return [row for table in contents.tables() for row in case_table.rows_of(table)]


# Without shrinking: each try writes files, and a failing history says enough as it is.
lively = settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
histories = st.lists(
    st.tuples(
        st.dictionaries(st.integers(1, 40), said, max_size=12),
        st.sets(st.integers(1, 40), max_size=2),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@lively
@given(histories)
def test_deciding_what_changed_is_deciding_everything_and_nothing_changes_sides(
    steps: list[tuple[Said, set[int], bool]],
) -> None:
    everything: Said = {}
    gone: set[int] = set()
    last = PROTOCOL
    sides: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as home:
        little, much = (Contents(directory=Path(home) / name) for name in ("little", "much"))
        for number, (told, erased, other_shares) in enumerate(steps, start=1):
            gone |= erased
            news = {case_id: items for case_id, items in told.items() if case_id not in gone}
            everything = {key: items for key, items in (everything | news).items() if key not in gone}
            shares = Splits(train=0.2, tune=0.2, sealed_test=0.6) if other_shares else PROTOCOL.splits
            protocol = PROTOCOL.model_copy(update={"splits": shares})
            changed, whole = [case(*item) for item in news.items()], False
            every = [case(*item) for item in everything.items()]
            if protocol != last:  # then all have to be decided, as the service does
                changed, whole, last = every, True, protocol
            little = version(little, changed, number=number, whole=whole, gone=gone, protocol=protocol)
            much = version(much, every, number=number, whole=True, gone=gone, protocol=protocol)
            assert rows_of(little) == rows_of(much)
            assert [row.case.case_id for row in rows_of(little)] == sorted(everything)
            for row in rows_of(little):  # neither patient nor image is ever in another split than it was
                if isinstance(row.outcome, Example):
                    assert sides.setdefault(row.outcome.group, row.outcome.split) == row.outcome.split
                    assert sides.setdefault(row.outcome.image_digest, row.outcome.split) == row.outcome.split


def test_a_copy_comes_in_once_the_case_before_it_is_erased(tmp_path: Path) -> None:
    first, copy = case(1, (read("normal"),)), case(18, (read("normal", number=2),))
    contents = version(Contents(directory=tmp_path), [first, copy], number=1, whole=True, gone=set(), protocol=PROTOCOL)
    assert [isinstance(row.outcome, Example) for row in rows_of(contents)] == [True, False]
    contents = version(contents, [], number=2, whole=False, gone={1}, protocol=PROTOCOL)
    (row,) = rows_of(contents)
    assert isinstance(row.outcome, Example)
    assert (row.case.case_id, row.outcome.added_in) == (18, 2)


def test_a_case_decided_again_for_its_image_keeps_its_patient_s_split(tmp_path: Path) -> None:
    contents = Contents(directory=tmp_path)
    mine, other = case(38, (read("normal", number=1),)), case(4, (read("normal", number=2, evidence="report_text"),))
    contents = version(contents, [other, mine], number=1, whole=True, gone=set(), protocol=PROTOCOL)
    (row,) = [row for row in rows_of(contents) if row.case.case_id == mine.case_id]
    moved = next(
        PROTOCOL.model_copy(update={"splits": shares})
        for shares in (Splits(train=0.98, tune=0.01, sealed_test=0.01), Splits(train=0.01, tune=0.01, sealed_test=0.98))
        if manifest.split_of(KEY, row.case.group, shares) != row.outcome.split
    )
    contents = version(contents, [other, mine], number=2, whole=True, gone=set(), protocol=moved)
    said_more = case(4, (read("pneumonia", number=3, evidence="report_text"),))
    contents = version(contents, [said_more], number=3, whole=False, gone=set(), protocol=moved)
    (now,) = [row for row in rows_of(contents) if row.case.case_id == mine.case_id]
    assert isinstance(now.outcome, Example)
    assert now.outcome.split == row.outcome.split


def test_a_newcomer_takes_the_side_that_its_patient_has_though_shares_changed_meanwhile(tmp_path: Path) -> None:
    contents = Contents(directory=tmp_path)
    first, second = case(1, (read("normal", number=1),)), case(23, (read("normal", number=2),))
    assert first.group == second.group
    contents = version(contents, [first], number=1, whole=True, gone=set(), protocol=PROTOCOL)
    (row,) = rows_of(contents)
    moved = next(
        PROTOCOL.model_copy(update={"splits": shares})
        for shares in (Splits(train=0.98, tune=0.01, sealed_test=0.01), Splits(train=0.01, tune=0.01, sealed_test=0.98))
        if manifest.split_of(KEY, row.case.group, shares) != row.outcome.split
    )
    contents = version(contents, [first], number=2, whole=True, gone=set(), protocol=moved)
    contents = version(contents, [second], number=3, whole=False, gone=set(), protocol=moved)
    assert [row.outcome.split for row in rows_of(contents)] == [row.outcome.split] * 2


def test_only_the_parts_in_which_something_changed_are_written(tmp_path: Path) -> None:
    cases = [case(number, (read("normal", number=number),)) for number in range(1, 25)]
    first = version(Contents(directory=tmp_path), cases, number=1, whole=True, gone=set(), protocol=PROTOCOL)
    corrected = case(10, (read("pneumonia", number=99),))
    second = version(first, [corrected], number=2, whole=False, gone=set(), protocol=PROTOCOL)
    changed = [old.part for old, new in zip(first.parts, second.parts, strict=True) if old != new]
    assert changed == [case_table.part_of(10)]


def test_few_cases_of_a_part_are_in_memory_at_once(tmp_path: Path) -> None:
    drawn: list[int] = []

    def cases() -> Iterator[ConfirmedCase]:
        for number in range(1, 8):
            drawn.append(number)
            yield case(number, (read("normal", number=number),))

    change = Change(cases=cases, whole=True, last_confirmation_id=1)
    parts = settle_changes(Contents(directory=tmp_path), change, protocol=PROTOCOL, split_key=KEY, number=1)
    rows = next(parts).rows
    drawn.clear()
    assert [row.case.case_id for row in next(rows)] == [1, 2, 3]
    assert drawn == [2, 3]  # the first was looked at to know the part


def test_a_case_out_of_its_group_s_split_is_remembered(tmp_path: Path) -> None:
    contents = Contents(directory=tmp_path)
    contents = version(contents, [case(1, (read("normal"),))], number=1, whole=True, gone=set(), protocol=PROTOCOL)
    (row,) = rows_of(contents)
    before = row.outcome.split
    other = next(
        shares
        for shares in (Splits(train=0.98, tune=0.01, sealed_test=0.01), Splits(train=0.01, tune=0.01, sealed_test=0.98))
        if manifest.split_of(KEY, row.case.group, shares) != before
    )
    amended = PROTOCOL.model_copy(update={"splits": other})
    weak = case(1, (read("normal", number=2, evidence="report_text"),))
    contents = version(contents, [weak], number=2, whole=True, gone=set(), protocol=amended)
    assert not isinstance(rows_of(contents)[0].outcome, Example)
    back = case(1, (read("normal", number=3),))
    contents = version(contents, [back], number=3, whole=False, gone=set(), protocol=amended)
    (row,) = rows_of(contents)
    assert isinstance(row.outcome, Example)
    assert (row.outcome.split, row.outcome.added_in, row.outcome.label_since) == (before, 1, 3)


def test_parts_written_before_there_were_keys_are_found_in_by_the_same_numbers(tmp_path: Path) -> None:
    cases = [case(number, (read("normal", number=number),)) for number in range(1, 24)]
    contents = version(Contents(directory=tmp_path), cases, number=1, whole=True, gone=set(), protocol=PROTOCOL)
    images = np.array([case_table.prefix(cases[9].image_digest)], dtype=np.uint64)  # number 10, shared with nobody
    groups = {cases[11].group}  # the patient of 1, 12 and 23
    asked = {"with an image": {"images": images, "groups": ()}, "of a group": {"images": images[:0], "groups": groups}}
    found = {name: contents.parts_with(**keys) for name, keys in asked.items()}
    assert found == {"with an image": {1}, "of a group": {0, 1, 2}}
    for file in (tmp_path / "cases").iterdir():
        pq.write_table(case_table.read_part(file).select(case_table.SCHEMA.names), file)
    assert {name: contents.parts_with(**keys) for name, keys in asked.items()} == found
