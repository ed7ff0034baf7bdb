"""Uncompressed DICOM into pixels: what the header promises is checked before it is believed.

One frame is an image; many grey ones are a volume, the frames its depth in the order of the file. All frames go through
one rescale and one window, else their values could not be compared.

References: DICOM PS3.3 C.7.6.3 (pixels), C.7.6.6 (multi-frame), C.7.6.16 (functional groups), C.11.1 and C.11.2
(rescale, window), PS3.10 (file format).
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipelines import deidentify, functional_groups
from pipelines.images import Decoded, ImageRefused, Pixels, check_size, check_volume

TRANSFER_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)
"""No compressed syntax: each brings a decoder written in C. No deflate: 400 kB of it can fill a gigabyte."""


def decode(data: bytes) -> Decoded:
    """Turn a DICOM file into pixels, (H, W), (H, W, 3) or (D, H, W), and allow-listed attributes.

    Raises ImageRefused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable values are common; what we keep is checked below
            _check_transfer_syntax(data)
            dataset = pydicom.dcmread(io.BytesIO(data))
            functional_groups.flatten(dataset)
            attributes = deidentify.keep(dataset)
            pixels = _pixels(dataset)
    except ImageRefused:
        raise
    except deidentify.Refused as error:
        raise ImageRefused(error.code, str(error)) from error
    except Exception as error:  # pydicom raises many kinds on hostile bytes; all mean the same to the sender
        raise ImageRefused("unreadable", f"the DICOM file cannot be read ({type(error).__name__})") from error
    if attributes.get("PhotometricInterpretation") == "MONOCHROME1":
        attributes["PhotometricInterpretation"] = "MONOCHROME2"  # true of the pixels that are stored
    return Decoded(pixels=pixels, attributes=attributes)


def _check_transfer_syntax(data: bytes) -> None:
    # Only group 0002 is parsed here: reading on would already inflate a deflated file.
    meta = read_dataset(
        io.BytesIO(data[132:]),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    syntax = meta.get("TransferSyntaxUID")
    if syntax not in TRANSFER_SYNTAXES:
        name = getattr(syntax, "name", syntax) or "none"
        message = f"transfer syntax {name}: send Implicit or Explicit VR Little Endian, uncompressed"
        raise ImageRefused("transfer-syntax", message)


def _pixels(dataset: pydicom.Dataset) -> Pixels:
    if "PixelData" not in dataset:
        raise ImageRefused("no-pixels", "this DICOM object holds no pixel data; send an image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if frames == 1:
        check_size(rows=rows, columns=columns)
    else:
        check_volume(depth=frames, rows=rows, columns=columns)
    photometric, samples = str(dataset.PhotometricInterpretation), int(dataset.SamplesPerPixel)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    colour = photometric == "RGB"
    if colour and frames > 1:
        raise ImageRefused("photometric", "a volume is grey: send MONOCHROME1 or MONOCHROME2, or one colour frame")
    if photometric not in {"MONOCHROME1", "MONOCHROME2", "RGB"} or samples != (3 if colour else 1):
        raise ImageRefused("photometric", f"{photometric}, {samples} samples a pixel: send MONOCHROME1, 2 or RGB")
    if (
        allocated not in ((8,) if colour else (8, 16))
        or not 1 <= stored <= allocated
        or int(dataset.HighBit) != stored - 1
    ):
        raise ImageRefused("unsupported-pixels", f"{stored} of {allocated} bits a sample is not a layout read here")
    if "ModalityLUTSequence" in dataset:
        raise ImageRefused("unsupported-pixels", "a Modality LUT is not applied here; send rescaled pixels")
    raw = bytes(dataset.PixelData)
    expected = frames * rows * columns * samples * allocated // 8
    if len(raw) < expected:
        raise ImageRefused("truncated", f"{len(raw)} bytes of pixels where the header promises {expected}")
    values = np.frombuffer(raw[:expected], dtype="<u2" if allocated == 16 else "u1")
    if colour:
        by_plane = int(dataset.get("PlanarConfiguration") or 0) == 1
        image = values.reshape((3, rows, columns) if by_plane else (rows, columns, 3))
        return np.ascontiguousarray(np.moveaxis(image, 0, -1) if by_plane else image, dtype=np.uint8)
    inverted = photometric == "MONOCHROME1"
    if frames == 1:
        return _grey(values.reshape(rows, columns), dataset, bits=stored, inverted=inverted)
    volume: NDArray[Any] = np.empty((frames, rows, columns), dtype=np.uint8 if stored <= 8 else np.uint16)
    for into, frame in zip(
        volume, values.reshape(frames, rows, columns), strict=True
    ):  # one at a time: memory is short
        into[:] = _grey(frame, dataset, bits=stored, inverted=inverted)
    return volume


def _grey(values: NDArray[Any], dataset: pydicom.Dataset, *, bits: int, inverted: bool) -> Pixels:
    """Stored values -> rescale -> window, or the whole stored range without one -> uint8 (bits <= 8) or uint16."""
    numbers = (values.astype(np.int64) & ((1 << bits) - 1)).astype(np.float64)  # above BitsStored there may be overlays
    low, high = 0.0, float((1 << bits) - 1)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        half = float(1 << (bits - 1))
        numbers = np.where(numbers >= half, numbers - 2.0 * half, numbers)
        low, high = -half, half - 1.0
    slope, intercept = _first(dataset, "RescaleSlope", 1.0), _first(dataset, "RescaleIntercept", 0.0)
    if slope == 0.0:
        raise ImageRefused("unsupported-pixels", "RescaleSlope is 0: nothing can be told from such pixels")
    numbers = numbers * slope + intercept
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        numbers = _window(numbers, dataset)
    else:
        numbers = (numbers - low) / max(high - low, 1e-12)
    if inverted:
        numbers = 1.0 - numbers
    numbers = np.clip(numbers, 0.0, 1.0)
    if bits <= 8:
        return np.round(numbers * 255.0).astype(np.uint8)
    return np.round(numbers * 65535.0).astype(np.uint16)


def _window(numbers: NDArray[np.float64], dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, the first window, onto [0, 1]."""
    centre, width = _first(dataset, "WindowCenter", 0.0), _first(dataset, "WindowWidth", 0.0)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if width < 1.0 and (function == "LINEAR" or width <= 0.0):
        raise ImageRefused("unsupported-pixels", f"WindowWidth {width:g} is not allowed for {function}")
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (numbers - centre) / width, -60.0, 60.0))))
    if function == "LINEAR":
        return (numbers - (centre - 0.5)) / max(width - 1.0, 1e-12) + 0.5
    return (numbers - centre) / width + 0.5


def _first(dataset: pydicom.Dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    if value is None or value == "":
        return default
    number = float(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
    if not np.isfinite(number):
        raise ImageRefused("unsupported-pixels", f"{keyword} is not a finite number")
    return number
