"""What of a DICOM header is kept: a short allow-list, read value by value. Everything else is gone.

Nothing is removed from a dataset, since what one forgets to remove stays; instead a new dictionary is filled with what
is known to be harmless, each value checked against the form it must have. Nested sequences and private elements have
no way in. The image is refused where the header says that a name may be burned into the pixels.

Reference: DICOM PS3.15 Annex E (2025), Table E.1-1; the kept attributes are outside it or made coarser (age).
"""

from __future__ import annotations

import math
import re
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

CODES: dict[str, str] = {
    "Modality": r"[A-Z]{2,16}",
    "PhotometricInterpretation": r"MONOCHROME[12]|RGB",
    "ViewPosition": r"[A-Z]{1,8}",
    "PatientSex": r"[MFO]",
    "BodyPartExamined": r"[A-Z]{2,16}",
    "BurnedInAnnotation": r"NO",
}
"""Attributes with a code for a value, and the form it must have."""

MAKERS = ("Manufacturer", "ManufacturerModelName")
"""Short free text about the machine: kept, without anything that could be a date or a number of many digits."""

COUNTS = ("Rows", "Columns", "NumberOfFrames", "BitsStored")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
"""Distance of rows and of columns in mm; kept as two numbers, `…Rows` and `…Columns`, with the suffix `_mm`."""

BETWEEN_SLICES = ("SpacingBetweenSlices", "SliceThickness")
"""Distances along the depth of a volume in mm."""

AGE_BAND_YEARS = (0, 1, 6, 13, 18, 30, 40, 50, 60, 70, 80)
"""Lower edges. The last band is open, so that no very old person stands out (HIPAA Safe Harbor: 90 and over)."""


class Refused(ValueError):
    """The image must not be taken; `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def keep(dataset: Dataset) -> dict[str, str | int | float]:
    """Pick the attributes that survive from a header; values of the wrong form are left out, not repaired.

    Adds `AgeBand` from PatientAge. Raises Refused ("burned-in") where BurnedInAnnotation is YES.
    """
    if _text(dataset, "BurnedInAnnotation").upper() == "YES":
        raise Refused("burned-in", "the header says that text is burned into the pixels; send an image without it")
    kept: dict[str, str | int | float] = {}
    for keyword, form in CODES.items():
        if re.fullmatch(form, value := _text(dataset, keyword)):
            kept[keyword] = value
    for keyword in MAKERS:
        value = _text(dataset, keyword)
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9 .,&()/-]{0,39}", value) and not re.search(r"\d{5}", value):
            kept[keyword] = value
    for keyword in COUNTS:
        count = dataset.get(keyword)
        if isinstance(count, int) and 0 < count < 65536:
            kept[keyword] = count
    for keyword in BETWEEN_SLICES:
        if distance := _distance(dataset, keyword):
            kept[f"{keyword}_mm"] = distance
    for keyword in SPACINGS:
        for side, distance in zip(("Rows", "Columns"), _distances(dataset, keyword), strict=False):
            kept[f"{keyword}{side}_mm"] = distance
    if band := age_band(_text(dataset, "PatientAge")):
        kept["AgeBand"] = band
    return kept


def age_band(age: str) -> str | None:
    """Coarsen a DICOM age string ("034Y", "006M") to a band of years such as "30-39" or "80+"; None if it is none."""
    match = re.fullmatch(r"(\d{3})([DWMY])", age)
    if match is None:
        return None
    per_year = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    years = int(match[1]) / per_year
    index = max(position for position, edge in enumerate(AGE_BAND_YEARS) if years >= edge)
    if index == len(AGE_BAND_YEARS) - 1:
        return f"{AGE_BAND_YEARS[index]}+"
    low, high = AGE_BAND_YEARS[index], AGE_BAND_YEARS[index + 1] - 1
    return f"{low}-{high}"


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return value.strip() if isinstance(value, str) else ""


def _distance(dataset: Dataset, keyword: str) -> float | None:
    """A positive distance, or None."""
    try:
        number = float(dataset.get(keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and 0.0 < number < 1000.0 else None


def _distances(dataset: Dataset, keyword: str) -> list[float]:
    """Two positive distances, or none."""
    value: Any = dataset.get(keyword)
    if not isinstance(value, MultiValue) or len(value) != 2:
        return []
    try:
        numbers = [float(item) for item in value]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(number) and 0.0 < number < 1000.0 for number in numbers) else []
