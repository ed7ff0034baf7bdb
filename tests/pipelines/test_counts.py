"""What a part holds in numbers is what its rows say, counted here one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import case_table
from pipelines.case_table import CaseRow
from pipelines.contents import Contents
from pipelines.shards import Place
from pipelines.summary import summary
from pipelines.types import SPLITS, CaseId, Confirmation, ConfirmedCase, Digest, Example, Waiting

CLASSES = ("normal", "pneumonia")
said = Confirmation(
    confirmation_id=1,
    finding="normal",
    evidence="single_read",
    ai_exposure="blind",
    submitter="north",
    reader="r",
    confirmed_on="2026-03-02",
)
rows = st.lists(
    st.tuples(
        st.sampled_from([*SPLITS, None]),
        st.sampled_from(CLASSES),
        st.sampled_from(["north", "south"]),
        st.sampled_from(["2026-02-28", "2026-03-01"]),
        st.integers(1, 3),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=30,
)


def row(case_id: int, drawn: tuple[str | None, str, str, str, int, int]) -> CaseRow:
    """One case; without a split it waits."""
    split, finding, site, day, since, shard = drawn
    case = ConfirmedCase(
        case_id=CaseId(case_id),
        image_digest=Digest(f"{case_id:064x}"),
        patient=f"{case_id:064x}",
        site=site,
        scanner=None,
        sex=None,
        age_band=None,
        spacing_mm=None,
        confirmations=(said,),
    )
    if split is None:
        return CaseRow(
            case=case, outcome=Waiting(case_id=case.case_id, reason=f"{finding}: x", split=None), place=None, phash=None
        )
    example = Example(
        case_id=case.case_id,
        image_digest=case.image_digest,
        group=case.group,
        split=split,  # type: ignore[arg-type] # one of SPLITS
        finding=finding,
        evidence="single_read",
        ai_exposure="blind",
        reads=1,
        why="single read",
        confirmed_on=day,
        submitters=(site, "third"),
        confirmation_ids=(1,),
        added_in=1,
        label_since=since,
        site=site,
        scanner=None,
        sex=None,
        age_band=None,
    )
    return CaseRow(case=case, outcome=example, place=Place(shard, case_id), phash=case_id)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=rows, second=rows, number=st.integers(1, 3))
def test_a_summary_from_footers_is_what_counting_every_row_gives(
    tmp_path: Path,
    first: list[tuple[str | None, str, str, str, int, int]],
    second: list[tuple[str | None, str, str, str, int, int]],
    number: int,
) -> None:
    held = [*enumerate(first, start=1), *enumerate(second, start=case_table.PART_CASES)]
    parts: dict[int, list[CaseRow]] = {}
    for case_id, drawn in held:
        parts.setdefault(case_table.part_of(case_id), []).append(row(case_id, drawn))
    contents = replace(
        Contents(directory=tmp_path),
        parts=tuple(
            case_table.write_part(tmp_path / "cases", part=part, table=case_table.table_of(inside))
            for part, inside in sorted(parts.items())
        ),
    )
    found = summary(contents, classes=CLASSES, number=number)
    inside = [drawn for _, drawn in held if drawn[0] is not None]
    assert found["examples"] == len(inside)
    assert found["new_examples"] == sum(drawn[4] == number for drawn in inside)
    for split in SPLITS:
        for finding in CLASSES:
            assert found["counts"][split][finding] == sum(drawn[:2] == (split, finding) for drawn in inside)
        for site, counts in found["sites"].items():
            assert counts[split] == sum((drawn[0], drawn[2]) == (split, site) for drawn in inside)
        for month, counts in found["months"].items():
            assert counts[split] == sum((drawn[0], drawn[3][:7]) == (split, month) for drawn in inside)
    submitters = Counter(name for drawn in inside if drawn[4] == number for name in (drawn[2], "third"))
    assert found["new_cases"] == dict(submitters)
    assert found["waiting"] == dict(Counter(drawn[1] for _, drawn in held if drawn[0] is None))
    assert contents.used_shards() == {drawn[5] for drawn in inside}
    assert contents.used_shards() == set(contents.used_rows())
