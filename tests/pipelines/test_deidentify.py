"""Nothing but the allow-list survives, wherever in the file it stood."""

from __future__ import annotations

import json

import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipelines import deidentify

CANARY = "CANARY4711"
TEXT_VR = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}
VALUES = {
    "DA": "19470411",
    "DT": "19470411",
    "TM": "194704",
    "UI": "1.2.4711",
    "AS": "047Y",
    "IS": "4711",
    "DS": "4711.4711",
}
ALLOWED = {*deidentify.CODES, *deidentify.MAKERS, *deidentify.COUNTS, *deidentify.SPACINGS, "PatientAge"}


def everything() -> Dataset:
    """A dataset with every attribute of the data dictionary that can hold a text, date, number or UID."""
    dataset = Dataset()
    for tag, (vr, _vm, _name, _retired, keyword) in DicomDictionary.items():
        if keyword in ALLOWED or tag >> 16 in {0x0000, 0x0002} or not keyword:
            continue
        value = CANARY if vr in TEXT_VR else VALUES.get(vr)
        if value is not None:
            dataset.add_new(tag, vr, value)
    return dataset


@pytest.mark.filterwarnings("ignore::UserWarning")  # a canary is no valid value of most attributes
def test_of_a_canary_in_every_attribute_nested_and_private_none_survives() -> None:
    dataset = everything()
    assert len(dataset) > 2500
    nested = everything()
    nested.ReferencedStudySequence = Sequence([everything()])
    dataset.RequestAttributesSequence = Sequence([nested])
    block = dataset.private_block(0x0011, CANARY, create=True)
    block.add_new(0x01, "LO", CANARY)
    block.add_new(0x02, "PN", CANARY)
    dataset.add_new(0x0029_1234, "UN", CANARY.encode())
    dataset.Modality = "DX"
    assert deidentify.keep(dataset) == {"Modality": "DX"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("keyword", sorted(deidentify.CODES.keys() | {"PatientAge", "PixelSpacing", "Rows"}))
def test_a_name_hidden_in_an_allowed_attribute_does_not_survive(keyword: str) -> None:
    dataset = Dataset()
    dataset.add_new(keyword, "LO", f"{CANARY} Doe^Jane 1947-04-11")
    assert "4711" not in json.dumps(deidentify.keep(dataset))
    assert "Doe" not in json.dumps(deidentify.keep(dataset))


def test_what_is_kept_is_kept_in_a_coarse_form() -> None:
    dataset = Dataset()
    dataset.Modality, dataset.PatientSex, dataset.PatientAge = "DX", "F", "034Y"
    dataset.Manufacturer, dataset.ManufacturerModelName = "Siemens", "Ysio Max 1234567"
    dataset.PixelSpacing, dataset.Rows = [0.14, 0.15], 2048
    assert deidentify.keep(dataset) == {
        "Modality": "DX",
        "PatientSex": "F",
        "Manufacturer": "Siemens",
        "Rows": 2048,
        "PixelSpacingRows_mm": 0.14,
        "PixelSpacingColumns_mm": 0.15,
        "AgeBand": "30-39",
    }


def test_text_burned_into_the_pixels_is_refused() -> None:
    dataset = Dataset()
    dataset.BurnedInAnnotation = "YES"
    with pytest.raises(deidentify.Refused) as refusal:
        deidentify.keep(dataset)
    assert refusal.value.code == "burned-in"


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("003D", "0-0"),
        ("011M", "0-0"),
        ("012M", "1-5"),
        ("005Y", "1-5"),
        ("079Y", "70-79"),
        ("080Y", "80+"),
        ("104Y", "80+"),
        ("34Y", None),
        ("", None),
    ],
)
def test_ages_become_bands(age: str, band: str | None) -> None:
    assert deidentify.age_band(age) == band
