"""Bytes from outside: what is accepted comes out right, and everything else is refused by code."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from pipelines import images
from pipelines.protocol import InputSpec

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def png(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def dicom(
    pixels: np.ndarray,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    **attributes: object,
) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.Modality = "Doe^Jane", "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", pixels.tobytes())
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def code_of(data: bytes) -> str:
    with pytest.raises(images.ImageRefused) as refusal:
        images.decode(data)
    assert str(refusal.value)
    return refusal.value.code


pixel_arrays = st.one_of(
    *(
        hnp.arrays(dtype, st.one_of(st.tuples(sides, sides), st.tuples(sides, sides, st.just(3))))
        for dtype in (np.uint8, np.uint16)
        for sides in [st.integers(1, 9)]
    )
)
relaxed = settings(max_examples=60, deadline=None)


@relaxed
@given(pixel_arrays)
def test_the_stored_form_gives_back_the_same_pixels_and_the_same_digest(pixels: np.ndarray) -> None:
    again = images.from_npy(images.npy_bytes(pixels))
    assert again.dtype == pixels.dtype
    assert np.array_equal(again, pixels)
    assert images.npy_bytes(again) == images.npy_bytes(np.asfortranarray(pixels))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_npy_of_either_byte_order_is_the_same_image(dtype: str) -> None:
    buffer = io.BytesIO()
    np.save(buffer, (RAMP.astype(np.uint16) * 300).astype(dtype))
    decoded = images.decode(buffer.getvalue()).pixels
    assert images.image_digest(decoded) == images.image_digest(RAMP.astype(np.uint16) * 300)


def test_grey_and_colour_png_come_out_as_they_went_in() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    assert np.array_equal(images.decode(png(RAMP)).pixels, RAMP)
    assert np.array_equal(images.decode(png(colour)).pixels, colour)
    alpha = np.dstack([colour, np.full((3, 4), 9, dtype=np.uint8)])
    assert np.array_equal(images.decode(png(alpha)).pixels, colour)
    deep = RAMP.astype(np.uint16) * 250
    decoded = images.decode(png(deep)).pixels
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, deep)


def png_by_hand(rows: int, columns: int, *, raw: bytes, interlaced: bool = False) -> bytes:
    """An 8-bit grey PNG with `raw` as its pixel data, filter bytes and all."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_png_with_rows_missing_is_refused_and_not_filled_with_black() -> None:
    row = b"\0" + bytes(range(40, 48))
    assert images.decode(png_by_hand(6, 8, raw=row * 6)).pixels.shape == (6, 8)
    with pytest.raises(images.ImageRefused) as refusal:
        images.decode(png_by_hand(6, 8, raw=row * 5))
    assert refusal.value.code == "truncated"


def test_an_interlaced_png_is_whole_when_all_seven_passes_are_there() -> None:
    widths = [[1], [1], [2], [2, 2], [4, 4], [4, 4, 4, 4], [8, 8, 8, 8]]  # of each row of each pass, 8 x 8 pixels
    raw = b"".join(b"\0" + b"\x50" * width for rows in widths for width in rows)
    assert (images.decode(png_by_hand(8, 8, raw=raw, interlaced=True)).pixels == 0x50).all()
    with pytest.raises(images.ImageRefused):
        images.decode(png_by_hand(8, 8, raw=raw[:-9], interlaced=True))


def test_png_text_does_not_survive() -> None:
    from PIL.PngImagePlugin import PngInfo  # noqa: PLC0415 - needed here only

    text = PngInfo()
    text.add_text("Patient", "Doe^Jane")
    decoded = images.decode(png(RAMP, pnginfo=text))
    assert b"Doe" not in images.npy_bytes(decoded.pixels)
    assert decoded.attributes == {}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_dicom_image_keeps_its_pixels_and_loses_its_names(syntax: UID) -> None:
    decoded = images.decode(dicom(RAMP, syntax=syntax), content_type="image/png")  # what the sender claims is no matter
    assert np.array_equal(decoded.pixels, RAMP)
    assert decoded.attributes["Modality"] == "DX"
    assert "Doe" not in str(decoded)


def test_monochrome1_is_turned_over() -> None:
    decoded = images.decode(dicom(RAMP, photometric="MONOCHROME1"))
    assert np.array_equal(decoded.pixels, 255 - RAMP)
    assert decoded.attributes["PhotometricInterpretation"] == "MONOCHROME2"


def test_twelve_stored_bits_fill_the_sixteen_that_are_kept() -> None:
    stored = np.array([[0, 2048, 4095]], dtype=np.uint16)
    decoded = images.decode(dicom(stored, bits=12)).pixels
    assert decoded.tolist() == [[0, round(2048 / 4095 * 65535), 65535]]


def test_a_window_is_applied_after_the_rescale_as_the_standard_says() -> None:
    # PS3.3 C.11.2.1.2 with centre 40 and width 81: 0 up to -0.5, 1 from 79.5, straight between.
    stored = np.array([[900, 1024, 1063, 1064, 1200]], dtype=np.int16)
    decoded = images.decode(
        dicom(stored, bits=16, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=81)
    ).pixels
    expected = np.clip((np.array([900, 1024, 1063, 1064, 1200]) - 1024 - 39.5) / 80 + 0.5, 0, 1)
    assert np.abs(decoded[0] / 65535 - expected).max() < 1e-4


def test_colour_by_plane_is_colour_by_pixel() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    by_plane = dicom(colour, photometric="RGB", PlanarConfiguration=1, PixelData=np.moveaxis(colour, -1, 0).tobytes())
    assert np.array_equal(images.decode(by_plane).pixels, colour)
    assert np.array_equal(images.decode(dicom(colour, photometric="RGB", PlanarConfiguration=0)).pixels, colour)


def test_what_cannot_be_read_with_certainty_is_refused_by_code() -> None:
    four_axes = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    assert code_of(b"") == "unsupported-format"
    assert code_of(b"\xff\xd8\xff\xe0" + b"\0" * 200) == "unsupported-format"  # JPEG
    assert code_of(npy(four_axes)) == "not-single-frame"
    assert code_of(npy(RAMP.astype(np.float32))) == "unsupported-pixels"
    assert code_of(npy(np.zeros((0, 4), dtype=np.uint8))) == "empty"
    assert code_of(npy(RAMP)[:-1]) == "truncated"
    assert code_of(npy(RAMP)[:9]) == "truncated"
    assert code_of(png(RAMP)[:-30]) == "truncated"
    assert code_of(dicom(RAMP, Rows=4)) == "truncated"
    assert code_of(dicom(RAMP, Rows=65535, Columns=65535)) == "too-many-pixels"
    assert code_of(dicom(RAMP, photometric="PALETTE COLOR")) == "photometric"
    assert code_of(dicom(RAMP, BurnedInAnnotation="YES")) == "burned-in"
    assert code_of(dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)) == "transfer-syntax"
    for syntax in (RLELossless, ExplicitVRBigEndian):  # their identifiers are as long as the one they replace
        other = dicom(RAMP).replace(ExplicitVRLittleEndian.encode(), syntax.encode())
        assert code_of(other) == "transfer-syntax"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_object_array_is_refused_without_being_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert code_of(buffer.getvalue()) == "unsupported-pixels"


def test_a_header_that_promises_gigabytes_is_refused_before_they_are_allocated() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 20
    assert code_of(bomb) == "too-many-pixels"
    promise = npy(RAMP).replace(b"(3, 4), ", b"(8192, 4800), ").replace(b"      \n", b"\n")
    assert code_of(promise) in {"truncated", "too-many-pixels"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_are_decoded_or_refused_but_never_crash(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([png(RAMP), npy(RAMP), dicom(RAMP)])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = images.decode(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except images.ImageRefused:
        return
    assert decoded.pixels.dtype in (np.uint8, np.uint16)


def test_a_network_sees_values_between_zero_and_one_in_its_own_shape() -> None:
    grey = np.full((56, 56), 255, dtype=np.uint8)
    deep = np.zeros((10, 90), dtype=np.uint16)
    colour = np.dstack([np.full((28, 28), value, dtype=np.uint8) for value in (255, 0, 0)])
    batch = images.to_network_input([grey, deep, colour], InputSpec(channels=1, rows=28, columns=28))
    assert batch.shape == (3, 1, 28, 28)
    assert batch.dtype == np.float32
    assert batch[0].min() == batch[0].max() == 1.0
    assert batch[1].max() == 0.0
    assert batch[2] == pytest.approx(0.299, abs=1e-3)
    coloured = images.to_network_input([grey, colour], InputSpec(channels=3, rows=16, columns=20))
    assert coloured.shape == (2, 3, 16, 20)
    assert coloured[1].mean(axis=(1, 2)) == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)


def test_shrinking_averages_over_the_area() -> None:
    pixels = np.kron(np.array([[0, 255], [255, 0]], dtype=np.uint8), np.ones((8, 8), dtype=np.uint8))
    pixels = np.tile(pixels, (16, 16))
    batch = images.to_network_input([pixels], InputSpec(channels=1, rows=16, columns=16))
    assert batch == pytest.approx(0.5, abs=1e-6)


def test_pictures_for_people_are_png_and_must_be_within_range() -> None:
    heat = np.linspace(0.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
    with Image.open(io.BytesIO(images.png_bytes(heat))) as picture:
        assert np.asarray(picture).max() == 255
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        images.png_bytes(heat * 2)
