"""Splitting and assembling: properties that must hold for any set of cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import manifest
from pipelines.protocol import Protocol, Splits, parse
from pipelines.types import CaseId, Confirmation, ConfirmedCase, Digest, Example
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
    *rows: ConfirmedCase, number: int = 1, previous: tuple[Example, ...] = (), protocol: Protocol = PROTOCOL
) -> tuple[list[Example], dict[int, str]]:
    examples, waiting = manifest.assemble(rows, protocol=protocol, split_key=KEY, number=number, previous=previous)
    return examples, {row.case_id: row.reason for row in waiting}


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
    examples, waiting = assemble(*rows)
    assert sorted([*(row.case_id for row in examples), *waiting]) == sorted(row.case_id for row in rows)
    assert [row.case_id for row in examples] == sorted(row.case_id for row in examples)
    splits: dict[str, set[str]] = {}
    for example in examples:
        splits.setdefault(example.group, set()).add(example.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len({row.image_digest for row in examples}) == len(examples)


@relaxed
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(rows: list[ConfirmedCase], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined] - Hypothesis gives a random.Random
    assert assemble(*rows) == assemble(*shuffled)


@relaxed
@given(cases, cases)
def test_what_was_in_one_split_is_never_in_another_later(old: list[ConfirmedCase], new: list[ConfirmedCase]) -> None:
    before, _ = assemble(*old)
    other_shares = PROTOCOL.model_copy(update={"splits": Splits(train=0.2, tune=0.2, sealed_test=0.6)})
    after, _ = assemble(*new, number=2, previous=tuple(before), protocol=other_shares)
    groups = {row.group: row.split for row in before}
    pictures = {row.image_digest: row.split for row in before}
    assert all(groups.get(row.group, row.split) == row.split for row in after)
    assert all(pictures.get(row.image_digest, row.split) == row.split for row in after)


def test_of_two_cases_with_one_image_the_lower_stays_and_the_other_waits() -> None:
    examples, waiting = assemble(case(7, image=1), case(3, image=1))
    assert [row.case_id for row in examples] == [3]
    assert waiting == {7: "same image as another: case 3"}


def test_a_case_already_in_is_not_displaced_by_a_copy_with_a_lower_number() -> None:
    before, _ = assemble(case(7, image=1))
    examples, waiting = assemble(case(7, image=1), case(3, image=1), number=2, previous=tuple(before))
    assert [row.case_id for row in examples] == [7]
    assert list(waiting) == [3]


def test_a_finding_outside_the_protocol_waits() -> None:
    examples, waiting = assemble(case(1, read("tuberculosis")))
    assert not examples
    assert waiting == {1: "not a class of this line: tuberculosis"}


def test_a_changed_answer_is_new_and_an_unchanged_one_is_not() -> None:
    before, _ = assemble(case(1), case(2))
    changed = case(2, read("pneumonia", number=5, evidence="consensus"))
    after, _ = assemble(case(1), changed, case(3), number=2, previous=tuple(before))
    assert [(row.added_in, row.label_since) for row in after] == [(1, 1), (1, 2), (2, 2)]
    assert manifest.new_cases(after, number=2) == ({"north": 2}, 2)


def test_a_case_whose_patient_turns_out_to_be_another_leaves_rather_than_cross_over() -> None:
    before, _ = assemble(case(1, patient="p"))
    elsewhere = next(
        str(n) for n in range(100) if manifest.split_of(KEY, f"patient:{n}", PROTOCOL.splits) != before[0].split
    )
    after, waiting = assemble(replace(case(1), patient=elsewhere), number=2, previous=tuple(before))
    assert not after
    assert waiting[1].startswith("would change its split: ")
