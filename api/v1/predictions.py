"""Predictions: the champion's scores, logged with the digest of the weights that made them.

No transaction is open while the network runs; the answer is given only after its log row is committed.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Field

from api.auth import allow, guarded_router
from api.dependencies import CurrentReader, Id, Image, Inference, LineName, Pool, Reader, Settings
from api.inference import InferenceClient, kind_of
from api.settings import ApiSettings
from api.v1 import examples
from api.v1.views import Digest, View, shown_as
from registry import blobs, cases, db, lines, predictions, worklists
from registry.errors import NotFound
from registry.users import Role

router = guarded_router(tag="Predictions")

READERS: tuple[Role, ...] = ("submitter", "reviewer", "approver", "operator")
Shown = Annotated[
    bool,
    Query(description="Is the answer given to a person? Send false where it is only recorded: blind reads stay blind"),
]
_UNAVAILABLE = ("no-champion", "blind-case", "inference-unavailable")


class PredictionView(View):
    """The champion's answer for one image."""

    model_config = shown_as(examples.PREDICTION)

    prediction_id: int
    line: str
    case_id: int | None = Field(description="null for an image that was not kept")
    candidate_id: int = Field(description="The model that answered")
    number: int = Field(description="Its number within the line")
    weights_digest: Digest
    scores: dict[str, float] | None = Field(
        description="Probability of each class, 0 to 1; of several findings each is by itself. Null, with `decision`, "
        "where it was recorded for a case that is to be read blind first"
    )
    decision: str | None = Field(
        description="The class decided for at the operating point; of several findings those present, as a "
        "confirmation writes them"
    )
    threshold: float | None = Field(
        description="Threshold on the positive class's score; null where the highest score decides, and where each of "
        "several findings has its own (`operating_point`)"
    )
    second_look: bool | None = Field(
        description="Whether the score lies in the protocol's band about the threshold, in which the model asks for a "
        "second look; null, like the scores, where a case is to be read blind first"
    )
    operating_point: dict[str, Any] | None = Field(
        description="The rule behind the threshold, the sensitivity and specificity it stands for, and where measured; "
        "of several findings that of each, by name"
    )
    latency_seconds: float = Field(description="Time the inference process took")


_REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary", "description": "PNG, NPY or DICOM"}},
            }
        },
        "image/png": {"schema": {"type": "string", "format": "binary"}},
        "application/dicom": {"schema": {"type": "string", "format": "binary"}},
        "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
    },
}

Slice = Annotated[
    int | None,
    Query(
        alias="slice",
        ge=0,
        le=65535,
        description="Of a volume: over which of its slices, from 0. Left out: the middle one",
    ),
]
Finding = Annotated[str, Query(max_length=60, description="One of the line's classes", examples=["pneumonia"])]
_PNG = {"description": "The heat map", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


@router.post(
    "/predictions",
    summary="Score an image that is not kept",
    **allow(
        *READERS,
        problems=("image-refused", "body-too-large", "not-found", *_UNAVAILABLE),
        extra={"requestBody": _REQUEST_BODY},
    ),
)
def predict_image(
    *, reader: CurrentReader, pool: Pool, inference: Inference, line: LineName, image: Image, shown: Shown = True
) -> PredictionView:
    """Have the line's champion score an image, sent as the body itself or as the file `image` of a form.

    The image is decoded in a jailed process and forgotten; the scores stay in the record with the digest of the pixels.
    Not a diagnosis: a second reader's opinion under the line's intended use.
    """
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        kind = kind_of(lines.current_protocol(connection, row.line_id).document)
    decoded = inference.decode(image.file, media_type=image.media_type, kind=kind)
    return _predict(pool, inference, reader=reader, line=row, pixels=decoded.pixels, case=None, shown=shown)


@router.post(
    "/predictions/heat-map",
    response_class=Response,
    summary="Draw what the score of an image that is not kept rests on",
    **allow(
        *READERS,
        problems=("image-refused", "body-too-large", "not-found", "unknown-finding", *_UNAVAILABLE),
        answers={200: _PNG},
        extra={"requestBody": _REQUEST_BODY},
    ),
)
def heat_map_of_image(
    *,
    reader: CurrentReader,
    pool: Pool,
    inference: Inference,
    line: LineName,
    finding: Finding,
    image: Image,
    at: Slice = None,
) -> Response:
    """Draw the champion's GradCAM for one finding over an image, as PNG; the image is sent and forgotten as above."""
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        kind = kind_of(lines.current_protocol(connection, row.line_id).document)
    decoded = inference.decode(image.file, media_type=image.media_type, kind=kind)
    _refuse_if_blind(pool, line=row, pixels=decoded.pixels)
    picture = inference.heat_map(line, pixels=decoded.pixels, finding=finding, at=at)
    with db.transaction(pool) as connection:
        reader.sees(connection, "heat_map:draw", line_id=row.line_id, finding=finding)
    return Response(picture, media_type="image/png")


@router.post(
    "/cases/{case_id}/predictions",
    summary="Score a case",
    **allow(*READERS, problems=("not-found", *_UNAVAILABLE)),
)
def predict_case(
    *, reader: CurrentReader, pool: Pool, inference: Inference, settings: Settings, case_id: Id, shown: Shown = True
) -> PredictionView:
    """Have the champion of the case's line score the stored image.

    The protocol's `blind_fraction` of cases, which nobody can choose, are read without the model first: until such a
    case is confirmed, an answer that is to be shown is refused, and one that is not is recorded without its scores
    being told. The same holds for its heat map, and for its image sent again.
    """
    line, case, pixels = _stored(pool, settings, case_id)
    return _predict(pool, inference, reader=reader, line=line, pixels=pixels, case=case, shown=shown)


@router.get(
    "/cases/{case_id}/heat-map",
    response_class=Response,
    summary="Draw what a score rests on",
    **allow(*READERS, problems=("not-found", "unknown-finding", *_UNAVAILABLE), answers={200: _PNG}),
)
def heat_map(
    *,
    reader: CurrentReader,
    pool: Pool,
    inference: Inference,
    settings: Settings,
    case_id: Id,
    finding: Finding,
    at: Slice = None,
) -> Response:
    """Draw the champion's GradCAM for one finding over the stored image, as PNG.

    A heat map shows where the network looked, not why it is right. Show it only on request.
    """
    line, _, pixels = _stored(pool, settings, case_id)
    _refuse_if_blind(pool, line=line, pixels=pixels)
    picture = inference.heat_map(line.name, pixels=pixels, finding=finding, at=at)
    with db.transaction(pool) as connection:
        reader.sees(connection, "heat_map:draw", case_id=case_id, line_id=line.line_id, finding=finding)
    return Response(picture, media_type="image/png")


def _stored(pool: db.Pool, settings: ApiSettings, case_id: Id) -> tuple[lines.Line, cases.Case, bytes]:
    with db.transaction(pool) as connection:
        case = cases.get_case(connection, case_id)
        line = lines.line_by_id(connection, case.line_id)
    if case.erasure_id is not None:
        raise NotFound(f"the image of case {case_id} has been erased at its patient's request")
    return line, case, blobs.read(settings.blob_root, case.image_digest)


def _refuse_if_blind(pool: db.Pool, *, line: lines.Line, pixels: bytes) -> None:
    with db.transaction(pool) as connection:
        worklists.refuse_if_blind(connection, line=line, image_digest=hashlib.sha256(pixels).hexdigest())


def _predict(
    pool: db.Pool,
    inference: InferenceClient,
    *,
    reader: Reader,
    line: lines.Line,
    pixels: bytes,
    case: cases.Case | None,
    shown: bool,
) -> PredictionView:
    digest = hashlib.sha256(pixels).hexdigest()
    case_id, site = (None, None) if case is None else (case.case_id, case.site)
    if shown:
        _refuse_if_blind(pool, line=line, pixels=pixels)
    scored = inference.predict(line.name, pixels=pixels, site=site)
    with db.transaction(pool) as connection:
        withheld = not shown and worklists.is_blind(connection, line=line, image_digest=digest)
        logged = predictions.log_prediction(
            connection,
            line_id=line.line_id,
            case_id=case_id,
            candidate_id=scored.candidate_id,
            weights_digest=scored.weights_digest,
            image_digest=digest,
            scores=scored.scores,
            decision=scored.decision,
            threshold=scored.threshold,
            shown=shown,
            latency_seconds=scored.latency_seconds,
            requested_by=reader.user.user_id,
        )
        reader.sees(
            connection, "prediction:make", case_id=case_id, line_id=line.line_id, prediction=logged.prediction_id
        )
    values = {name: getattr(scored, name) for name in scored.__slots__}
    values |= {"scores": None, "decision": None, "second_look": None} if withheld else {}
    return PredictionView(prediction_id=logged.prediction_id, line=line.name, case_id=case_id, **values)
