"""Splitting and assembling: properties that must hold for any set of cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import manifest
from pipelines.protocol import Protocol, Splits, parse
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest, Example, Split, Waiting
from tests.pipelines.saying import read, relaxed, said

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = parse((ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml").read_text(encoding="utf-8"))
KEY = bytes(range(32))

cases = st.lists(
    st.builds(
        ConfirmedCase,
        case_id=st.integers(1, 10**6).map(CaseId),
        image_digest=st.integers(0, 30).map(lambda number: Digest(f"{number:064x}")),
        patient=st.none() | st.integers(0, 20).map(str),
        site=st.just("a"),
        scanner=st.none(),
        sex=st.none(),
        age_band=st.none(),
        confirmations=said,
    ),
    max_size=30,
    unique_by=lambda case: case.case_id,
)


def case(number: int, *items: Confirmation, image: int | None = None, patient: str | None = None) -> ConfirmedCase:
    return ConfirmedCase(
        case_id=CaseId(number),
        image_digest=Digest(f"{number if image is None else image:064x}"),
        patient=patient,
        site="a",
        scanner=None,
        sex=None,
        age_band=None,
        confirmations=items or (read("normal", number=number),),
    )


def assemble(
    *rows: ConfirmedCase,
    number: int = 1,
    before: Mapping[CaseId, manifest.Outcome] | None = None,
    protocol: Protocol = PROTOCOL,
) -> dict[CaseId, manifest.Outcome]:
    kept_splits = {} if before is None else splits_of(rows, before)
    return manifest.assemble(
        rows, protocol=protocol, split_key=KEY, number=number, before=before, kept_splits=kept_splits
    )


def splits_of(rows: Iterable[ConfirmedCase], before: Mapping[CaseId, manifest.Outcome]) -> dict[str, Split]:
    found = {row.group: manifest.kept_split(before[row.case_id]) for row in rows if row.case_id in before}
    return {group: split for group, split in found.items() if split}


def inside(outcomes: Mapping[CaseId, manifest.Outcome]) -> list[Example]:
    return [row for _, row in sorted(outcomes.items()) if isinstance(row, Example)]


def reasons(outcomes: Mapping[CaseId, manifest.Outcome]) -> dict[int, str]:
    return {case_id: row.reason for case_id, row in outcomes.items() if isinstance(row, Waiting)}


@relaxed
@given(st.binary(min_size=16, max_size=64), st.text(max_size=20))
def test_a_split_hangs_on_key_and_group_alone(key: bytes, group: str) -> None:
    assert manifest.split_of(key, group, PROTOCOL.splits) == manifest.split_of(key, group, PROTOCOL.splits)


def test_splits_have_the_shares_asked_for() -> None:
    splits = Splits(train=0.5, tune=0.15, sealed_test=0.35)
    drawn = [manifest.split_of(KEY, f"patient:{n}", splits) for n in range(20_000)]
    for name in ("train", "tune", "sealed_test"):
        assert drawn.count(name) / len(drawn) == pytest.approx(getattr(splits, name), abs=0.015)  # 4 SE


def test_another_key_gives_other_splits() -> None:
    groups = [f"patient:{n}" for n in range(200)]
    one, other = ([manifest.split_of(key, group, PROTOCOL.splits) for group in groups] for key in (KEY, KEY[::-1]))
    assert one != other


@relaxed
@given(cases)
def test_no_patient_and_no_image_is_in_two_splits_and_no_case_is_lost(rows: list[ConfirmedCase]) -> None:
    outcomes = assemble(*rows)
    assert sorted(outcomes) == sorted(row.case_id for row in rows)
    splits: dict[str, set[str]] = {}
    for example in inside(outcomes):
        splits.setdefault(example.group, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len({row.image_digest for row in inside(outcomes)}) == len(inside(outcomes))


@relaxed
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(rows: list[ConfirmedCase], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined] - Hypothesis gives a random.Random
    assert assemble(*rows) == assemble(*shuffled)


def test_of_two_cases_with_one_image_the_lower_stays_and_the_other_waits() -> None:
    outcomes = assemble(case(7, image=1), case(3, image=1))
    assert [row.case_id for row in inside(outcomes)] == [3]
    assert reasons(outcomes) == {7: "same image as another: case 3"}


def test_a_case_already_in_is_not_displaced_by_a_copy_with_a_lower_number() -> None:
    outcomes = assemble(case(7, image=1), case(3, image=1), number=2, before=assemble(case(7, image=1)))
    assert [row.case_id for row in inside(outcomes)] == [7]
    assert list(reasons(outcomes)) == [3]


def test_a_finding_outside_the_protocol_waits() -> None:
    assert reasons(assemble(case(1, read("tuberculosis")))) == {1: "not a class of this line: tuberculosis"}


def test_a_changed_answer_is_new_and_an_unchanged_one_is_not() -> None:
    changed = case(2, read("pneumonia", number=5, evidence="consensus"))
    after = inside(assemble(case(1), changed, case(3), number=2, before=assemble(case(1), case(2))))
    assert [(row.added_in, row.label_since) for row in after] == [(1, 1), (1, 2), (2, 2)]


def test_a_row_says_why_its_answer_stands_and_since_when() -> None:
    (row,) = inside(assemble(case(1, read("pneumonia"), read("pneumonia", number=2, reader="ben"))))
    assert (row.why, row.confirmed_on) == ("single read by 2 of 2 readers, blind", "2026-03-02")


def test_a_case_whose_patient_turns_out_to_be_another_leaves_rather_than_cross_over() -> None:
    before = assemble(case(1, patient="p"))
    (old,) = inside(before)
    elsewhere = next(str(n) for n in range(100) if manifest.split_of(KEY, f"patient:{n}", PROTOCOL.splits) != old.split)
    moved = replace(case(1), patient=elsewhere)
    outcomes = manifest.assemble([moved], protocol=PROTOCOL, split_key=KEY, number=2, before=before)
    assert reasons(outcomes)[1].startswith("would change its split: ")
    again = manifest.assemble([moved], protocol=PROTOCOL, split_key=KEY, number=3, before=outcomes)
    assert again == outcomes  # not after a version without it either
    assert manifest.kept_split(outcomes[CaseId(1)]) is None  # it does not pull the other patient along
