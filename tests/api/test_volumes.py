"""A line of volumes: what it takes and refuses over HTTP, and the slices of what it stored."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest

from api.cli.formats import open_source
from api.cli.sources import Row
from api.console.pictures import NotPixels, png, thumbnail
from pipelines import images
from registry import blobs
from tests.api import pictures
from tests.api.service import Service
from tests.pipelines.test_volumes import SHAPE, enhanced, multi_frame, slices


@pytest.fixture(scope="module")
def volumes(service: Service) -> str:
    """A line of volumes."""
    return service.new_line(input={"depth": 12, "rows": 16, "columns": 16})


def send(client: httpx.Client, line: str, image: bytes) -> httpx.Response:
    return client.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": ("file", image)})


def test_multi_frame_dicom_and_npy_become_cases_with_the_volume_and_no_name(
    service: Service, submitter: httpx.Client, volumes: str
) -> None:
    for sent in (enhanced(slices()), multi_frame(slices(1)), images.npy_bytes(slices(2))):
        answer = send(submitter, volumes, sent)
        assert answer.status_code == 201, answer.text
        stored = blobs.read(service.blob_root, answer.json()["image_digest"])
        assert np.load(io.BytesIO(stored)).shape == SHAPE
        assert b"Doe" not in stored
        assert "Doe" not in answer.text


def test_each_line_refuses_what_it_does_not_read_and_says_what_to_send(
    submitter: httpx.Client, line: str, volumes: str
) -> None:
    for name, sent, reason, words in (
        (line, enhanced(slices()), "not-single-frame", "this is a volume of 12 slices; send one image"),
        (volumes, pictures.png(), "not-a-volume", "send a multi-frame DICOM or an NPY (D, H, W)"),
    ):
        answers = [
            send(submitter, name, sent),
            submitter.post("/v1/predictions", params={"line": name}, content=sent),
        ]
        for answer in answers:
            assert answer.status_code == 422, answer.text
            assert answer.json()["reason"] == reason
            assert words in answer.json()["detail"]


def test_a_slice_of_a_stored_volume_is_a_picture_and_without_one_asked_for_the_middle() -> None:
    volume = slices()
    stored = images.npy_bytes(volume)
    assert (pixels(png(stored, at=3)) == volume[3]).all()
    assert (pixels(png(stored)) == volume[6]).all()
    assert (pixels(png(stored, at=99)) == volume[-1]).all()
    assert thumbnail(stored) == thumbnail(images.npy_bytes(volume[6]))
    with pytest.raises(NotPixels):
        png(stored[:-1])


def test_an_npz_of_volumes_gives_one_npy_a_volume(tmp_path: Path) -> None:
    drawn = np.stack([slices(seed) for seed in range(3)])
    np.savez(tmp_path / "nodules.npz", train_images=drawn, train_labels=np.array([[0], [1], [0]]))
    rows = [row for row in open_source(tmp_path / "nodules.npz").rows() if isinstance(row, Row)]
    assert [row.fields["finding"] for row in rows] == ["0", "1", "0"]
    for row, volume in zip(rows, drawn, strict=True):
        assert isinstance(row.image, bytes)
        assert (images.from_npy(row.image) == volume).all()


def pixels(picture: bytes) -> np.ndarray:
    """The values of a grey PNG of 16 bits that is written unfiltered, as the page's viewer reads them."""
    columns, rows = struct.unpack(">II", picture[16:24])
    at = picture.index(b"IDAT")
    (length,) = struct.unpack(">I", picture[at - 4 : at])
    lines = np.frombuffer(zlib.decompress(picture[at + 4 : at + 4 + length]), np.uint8).reshape(rows, 1 + 2 * columns)
    return np.ascontiguousarray(lines[:, 1:]).view(">u2")
