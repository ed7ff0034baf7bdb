"""Images of any kind go into shards and come back as they were; small shards merge, and erased images leave a gap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines import case_table, prepared, shards
from pipelines.case_table import CaseRow
from pipelines.contents import Contents
from pipelines.data_repository import VersionDamaged
from pipelines.freezing import tidy
from pipelines.images import Pixels, image_digest
from pipelines.protocol import InputSpec
from pipelines.shards import FAN_IN, Images, Place, Shard, ShardWriter
from pipelines.types import CaseId, ConfirmedCase, Example

SPEC = InputSpec(channels=1, rows=28, columns=28)
sides = st.integers(1, 9)
kinds = st.one_of(
    st.tuples(sides, sides),  # grey
    st.tuples(sides, sides, st.just(3)),  # colour
    st.tuples(sides, sides, st.integers(4, 9)),  # a volume
)
anything = st.lists(
    st.tuples(st.sampled_from([np.uint8, np.uint16]), kinds).flatmap(lambda kind: arrays.arrays(kind[0], kind[1])),
    min_size=1,
    max_size=6,
)


def store(directory: Path, pictures: list[Pixels], *, first_id: int = 1) -> tuple[list[Place], list[Shard]]:
    writer = ShardWriter(directory, first_id=first_id)
    places = [writer.add(image_digest(picture), picture, spacing_mm=(0.1, 0.2)) for picture in pictures]
    return places, writer.close()


@settings(max_examples=40, deadline=None)
@given(anything)
def test_grey_colour_and_volumes_of_8_and_16_bits_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[Pixels]
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    places, written = store(directory, pictures)
    images = Images(directory, written)
    for picture, place in zip(pictures, places, strict=True):
        got = images.read(place, image_digest(picture))
        assert got.dtype == picture.dtype
        assert np.array_equal(got, picture)


def test_a_full_shard_is_ended_and_the_next_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    pictures = list(np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8))
    places, written = store(tmp_path, pictures)
    assert [shard.images for shard in written] == [4, 4, 2]
    assert {place.shard for place in places} == {1, 2, 3}
    read = Images(tmp_path, written).read(places[9], image_digest(pictures[9]))
    assert np.array_equal(read, pictures[9])


def test_a_changed_pixel_is_found(tmp_path: Path) -> None:
    picture = np.arange(784, dtype=np.uint8).reshape(28, 28)
    (place,), (shard,) = store(tmp_path, [picture])
    data = (tmp_path / shard.name).read_bytes()
    assert data.count(picture.tobytes()) == 1
    (tmp_path / shard.name).write_bytes(data.replace(picture.tobytes(), bytes(784)))
    with pytest.raises(VersionDamaged, match="does not match its digest"):
        Images(tmp_path, [shard]).read(place, image_digest(picture))


def test_an_erased_image_is_gone_from_the_shard_and_all_others_keep_their_place(tmp_path: Path) -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8))
    places, (shard,) = store(tmp_path, pictures)
    after = shards.redact(tmp_path, shard, rows={2})
    assert (after.id, after.images, after.bytes) == (shard.id, 5, 4 * 784)
    assert after.digest != shard.digest
    assert pictures[2].tobytes() not in (tmp_path / after.name).read_bytes()
    assert bytes.fromhex(image_digest(pictures[2])) not in (tmp_path / after.name).read_bytes()
    images = Images(tmp_path, [after])
    for index in (0, 1, 3, 4):
        assert np.array_equal(images.read(places[index], image_digest(pictures[index])), pictures[index])
    assert shards.redact(tmp_path, after, rows={2}) == after


def test_small_shards_are_merged_eight_at_a_time_and_every_image_is_found_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents, every, pictures = Contents(directory=tmp_path), [], {}
    most = 0
    for number in range(1, 4 * FAN_IN + 4):
        picture = rng.integers(0, 256, (28, 28), dtype=np.uint8)
        pictures[number] = picture
        first_id = max((shard.id for shard in every), default=0) + 1
        (place,), written = store(tmp_path / "shards", [picture], first_id=first_id)
        table = case_table.table_of([row(number, picture, place)])
        part = case_table.part_of(number)
        merged = case_table.merged(contents.table(part), table, without=[])
        entry = case_table.write_part(tmp_path / "cases", part=part, table=merged)
        contents = tidy(replace(contents, parts=(entry,)), [*every, *written])
        every = list(contents.shards)
        most = max(most, len(every))
    assert most < FAN_IN + 1
    assert sum(shard.images for shard in every) == len(pictures)  # what no case has is not copied along
    images = Images(tmp_path / "shards", every)
    for table in contents.tables():
        for found in case_table.rows_of(table):
            assert found.place is not None
            read = images.read(found.place, found.case.image_digest)
            assert np.array_equal(read, pictures[found.case.case_id])


def test_only_new_shards_are_prepared_and_an_interrupted_one_is_prepared_again(tmp_path: Path) -> None:
    pictures = list(np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8))
    old_places, old = store(tmp_path, pictures[:4])
    new_places, new = store(tmp_path, pictures[4:], first_id=2)

    def prepare(held: list[Shard], places: list[Place]) -> prepared.Prepared:
        shard_of, row_of = np.array(places, dtype=np.int64).T
        return prepared.prepare(
            tmp_path / "p", spec=SPEC, directory=tmp_path, held=held, shard_of=shard_of, row_of=row_of
        )

    assert len(prepare(old, old_places)) == 4
    (tmp_path / old[0].name).unlink()  # it is not read again
    with (tmp_path / "p" / "1x28x28" / "images.f32").open("ab") as file:
        file.write(b"half a segment of a preparation that was killed")
    both = prepare([*old, *new], [*old_places, *new_places])
    assert both[np.arange(6)][:, 0] == pytest.approx(np.array(pictures) / 255.0, abs=1e-6)


def row(number: int, picture: Pixels, place: Place) -> CaseRow:
    case = ConfirmedCase(
        case_id=CaseId(number),
        image_digest=image_digest(picture),
        patient=str(number),
        site="a",
        scanner=None,
        sex=None,
        age_band=None,
        confirmations=(),
    )
    example = Example(
        case_id=case.case_id,
        image_digest=case.image_digest,
        group=case.group,
        split="train",
        finding="normal",
        evidence="single_read",
        ai_exposure="blind",
        reads=1,
        submitters=("north",),
        confirmation_ids=(number,),
        why="single read",
        confirmed_on="2026-03-02",
        site="a",
        scanner=None,
        sex=None,
        age_band=None,
        added_in=1,
        label_since=1,
    )
    return CaseRow(case=case, outcome=example, place=place, phash=number)
