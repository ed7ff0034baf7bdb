"""Numbers that an enhanced multi-frame DICOM object keeps in its functional groups, put where classic ones have them.

Only the keywords listed here have a way out of the nested sequences, so what is kept of a header stays an allow-list.
An object whose frames differ in them is no single volume, and is refused, as is one whose frames lie in one place.

Reference: DICOM PS3.3 C.7.6.16 (2025), Pixel Measures, Plane Position, Pixel Value Transformation, Frame VOI LUT.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from pipelines.images import ImageRefused

NUMBERS: dict[str, tuple[str, ...]] = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
"""Functional group -> what is read of it."""


def flatten(dataset: Dataset) -> None:
    """Set the numbers of a dataset's functional groups on the dataset itself; a classic one stays as it is.

    Raises ImageRefused where they differ from frame to frame, or two frames lie in one place.
    """
    shared, each = list(dataset.get("SharedFunctionalGroupsSequence") or ()), _of_each_frame(dataset)
    for group, keywords in NUMBERS.items():
        for keyword in keywords:
            found = {str(value): value for value in _values([*shared, *each], group, keyword)}
            if len(found) > 1:
                message = f"the frames differ in {keyword}: send a volume of which every frame has the same"
                raise ImageRefused("unsupported-pixels", message)
            for value in found.values():
                setattr(dataset, keyword, value)
    places = [str(place) for place in _values(each, "PlanePositionSequence", "ImagePositionPatient")]
    if len(set(places)) < len(places):
        message = "several frames lie in one place: send one phase, echo or time point at a time"
        raise ImageRefused("unsupported-pixels", message)


def _of_each_frame(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("PerFrameFunctionalGroupsSequence") or ())


def _values(groups: list[Dataset], sequence: str, keyword: str) -> Iterator[object]:
    for group in groups:
        for item in group.get(sequence) or ():
            if keyword in item:
                yield item[keyword].value
