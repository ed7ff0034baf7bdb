"""Cases: images in, de-identified and content-addressed.

The image streams through to the jailed decoder; what is stored is what comes back (pixels, allow-listed attributes).
The file itself, its name, and whatever names it holds are never kept.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import File, Form, Query, Response, UploadFile
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import After, CurrentReader, CurrentUser, Id, Inference, Limit, LineName, Pool, Settings
from api.inference import NPY_MEDIA_TYPE, kind_of
from api.v1 import examples
from api.v1.confirmations import ConfirmationView
from api.v1.views import Digest, View, shown_as
from registry import blobs, cases, confirmations, db, lines

router = guarded_router(tag="Cases")

Sex = Literal["female", "male", "other"]
_SEX: dict[Any, Sex] = {"F": "female", "M": "male", "O": "other"}
"""Values of DICOM's PatientSex (PS3.3 C.7.1.1)."""


class CaseView(View):
    """One image under one line: the unit of reading and learning."""

    model_config = shown_as(examples.CASE)

    case_id: int
    line: str
    external_id: str | None = Field(description="Your own id of it, unique per line and submitter")
    image_digest: Digest = Field(description="SHA-256 of the stored pixels (NPY)")
    patient: str | None = Field(description="Keyed hash of the patient identifier you sent; null where you sent none")
    site: str
    scanner: str | None
    sex: Sex | None
    age_band: str | None
    attributes: dict[str, Any] = Field(
        description="Allow-listed attributes of the file, such as `Modality` of a DICOM instance"
    )
    created_at: datetime
    erasure_id: int | None = Field(description="The erasure that took the patient and the image away, if one did")


class CaseWithConfirmations(CaseView):
    """A case and every confirmation of it, the superseded ones too."""

    model_config = shown_as(examples.CASE_WITH_CONFIRMATIONS)

    confirmations: list[ConfirmationView]


@router.post(
    "/cases",
    status_code=201,
    summary="Send an image",
    response_description="The case was made",
    **allow(
        "submitter",
        answers={200: {"model": CaseView, "description": "You sent this image under this external_id before"}},
        problems=(
            "image-refused",
            "body-too-large",
            "not-found",
            "already-exists",
            "inference-unavailable",
            "storage-full",
        ),
    ),
)
def submit_case(
    *,
    user: CurrentUser,
    pool: Pool,
    inference: Inference,
    settings: Settings,
    response: Response,
    image: Annotated[
        UploadFile, File(description="PNG, NPY or DICOM, at most 64 MiB; a volume as multi-frame DICOM or NPY")
    ],
    line: Annotated[str, Form(description="Name of the line", examples=["cxr-pneumonia"])],
    site: Annotated[
        str,
        Form(min_length=1, max_length=80, description="Where it was taken, in your own short name", examples=["north"]),
    ],
    patient: Annotated[
        str | None,
        Form(
            max_length=200,
            description="Identifier of the patient. Only its keyed hash is kept; it makes sure that all images of a "
            "patient are used either for training or for testing, never both. Without it the case counts as a patient "
            "of its own.",
            examples=["MRN-0012345"],
        ),
    ] = None,
    scanner: Annotated[str | None, Form(max_length=80, examples=["dx-2"])] = None,
    sex: Annotated[Sex | None, Form(description="Left out: as the DICOM header says, if it does")] = None,
    age_band: Annotated[
        str | None,
        Form(
            pattern=r"^(\d{1,3}-\d{1,3}|\d{1,3}\+)$",
            description="A range of years, `1-5` or `80+`. Left out: as the DICOM header says, made coarse",
            examples=["1-5"],
        ),
    ] = None,
    external_id: Annotated[
        str | None,
        Form(
            min_length=1,
            max_length=200,
            description="Your own id of this image, for example a hash of its SOP Instance UID. Sent again with the "
            "same image, the answer is the case made first (200); with another image, 409.",
            examples=["north-2026-000123"],
        ),
    ] = None,
) -> CaseView:
    """Send one image as multipart/form-data: a PNG, a NumPy array (NPY) or a single-frame DICOM instance.
    Where the line's protocol names a depth, a volume: a grey multi-frame DICOM instance, or an NPY (D, H, W).

    It is decoded in a jailed process. Kept are the pixels and an allow-list of technical attributes; the file, its name
    and any patient data inside it are not. To send an image again safely after a time-out, give it an `external_id`.
    """
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        kind = kind_of(lines.current_protocol(connection, row.line_id).document)
    decoded = inference.decode(image.file, media_type=image.content_type or "application/octet-stream", kind=kind)
    with db.transaction(pool) as connection:
        if external_id is not None:  # before the file is written: nothing is left of an image that is refused
            cases.sent_before(
                connection,
                line_id=row.line_id,
                external_id=external_id,
                image_digest=hashlib.sha256(decoded.pixels).hexdigest(),
                submitted_by=user.user_id,
            )
        digest = blobs.put(connection, settings.blob_root, decoded.pixels, media_type=NPY_MEDIA_TYPE)
        case, created = cases.submit_case(
            connection,
            line_id=row.line_id,
            image_digest=digest,
            patient=pseudonym(patient, key=settings.patient_key) if patient else None,
            site=site,
            scanner=scanner,
            sex=sex or _SEX.get(decoded.attributes.get("PatientSex")),
            age_band=age_band or decoded.attributes.get("AgeBand"),
            attributes=decoded.attributes,
            external_id=external_id,
            actor=user,
        )
    if not created:
        response.status_code = 200
    return _view(case, line=line)


@router.get("/cases", summary="List cases", **allow(*ANYONE, problems=("not-found",)))
def list_cases(
    *,
    reader: CurrentReader,
    pool: Pool,
    line: LineName,
    after: After = 0,
    limit: Limit = 100,
    confirmed: Annotated[
        bool | None, Query(description="Only those with (true) or without (false) a standing confirmation")
    ] = None,
) -> list[CaseView]:
    """List a line's cases in the order they came. Page by sending the last `case_id` you got as `after`."""
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        found = cases.list_cases(connection, line_id=row.line_id, after=after, limit=limit, confirmed=confirmed)
        if found:
            span = {"first": found[0].case_id, "last": found[-1].case_id, "cases": len(found)}
            reader.sees(connection, "case:list", line_id=row.line_id, **span)
    return [_view(case, line=line) for case in found]


@router.get("/cases/{case_id}", summary="Read a case", **allow(*ANYONE, problems=("not-found",)))
def read_case(reader: CurrentReader, pool: Pool, case_id: Id) -> CaseWithConfirmations:
    """Read a case with every confirmation of it. One with a `superseded_by` no longer stands."""
    with db.transaction(pool) as connection:
        case = cases.get_case(connection, case_id)
        line = lines.line_by_id(connection, case.line_id).name
        rows = confirmations.list_for_case(connection, case_id)
        reader.sees(connection, "case:read", case_id=case_id, line_id=case.line_id)
    known = [ConfirmationView.model_validate(row) for row in rows]
    return CaseWithConfirmations(**_view(case, line=line).model_dump(), confirmations=known)


def pseudonym(patient: str, *, key: bytes) -> str:
    """Replace a patient identifier by its HMAC-SHA-256, 64 hexadecimal digits.

    The site is left out on purpose: a patient seen at two sites must stay one patient, and two patients who share an
    identifier merely share a split.
    """
    return hmac.digest(key, patient.strip().encode(), "sha256").hex()


def _view(case: cases.Case, *, line: str) -> CaseView:
    return CaseView.model_validate({**{name: getattr(case, name) for name in case.__slots__}, "line": line})
