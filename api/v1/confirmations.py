"""Confirmations, one at a time: what a source confirmed of a case, append-only.

A repeat under the same Idempotency-Key gets the first answer; the confirmation, its audit event and the stored answer
are one transaction, so an acknowledged confirmation is never lost and never doubled.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import Response
from pydantic import AwareDatetime, Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import CurrentReader, CurrentUser, Id, IdempotencyKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.views import Request, View, shown_as
from registry import cases, confirmations, db

router = guarded_router(tag="Confirmations")

Evidence = Literal["report_text", "single_read", "consensus", "follow_up", "pathology"]
AiExposure = Literal["blind", "aided", "unknown"]


class NewConfirmation(Request):
    """One source's confirmed diagnosis of a case."""

    model_config = shown_as(examples.NEW_CONFIRMATION)

    finding: str = Field(
        max_length=2000,
        description="One of the classes of the line's protocol. Where these do not exclude each other (`task: "
        "multilabel`): those present, joined by `+` in any order, or `none_of_these`",
    )
    evidence: Evidence = Field(
        description="What it rests on, from weakest to strongest: the protocol says what is enough"
    )
    ai_exposure: AiExposure = Field(description="Had the reader seen the prediction? `blind`: no; `aided`: yes")
    reader: str = Field(min_length=1, max_length=120, description="Who decided, as a stable pseudonym of yours")
    confirmed_at: AwareDatetime | None = Field(
        default=None, description="When it was decided, with offset; now where left out"
    )
    supersedes: int | None = Field(
        default=None, ge=1, description="The confirmation of the same case that this one corrects"
    )
    reason: str | None = Field(
        default=None,
        min_length=1,
        max_length=2000,
        description="A note of the reader, kept for ever: what was seen, or why it is corrected. No names of patients",
    )


class ConfirmationView(View):
    """A confirmation as the record holds it. It never changes; a correction is a new one that supersedes it."""

    model_config = shown_as(examples.CONFIRMATION)

    confirmation_id: int
    case_id: int
    kind: Literal["confirmation", "retraction", "adjudication"] = Field(
        description="A retraction took another one back and counts for nothing; an adjudication decides over all"
    )
    finding: str | None = Field(
        description="Null in a retraction, and in an adjudication that finds the case cannot be answered"
    )
    evidence: Evidence
    ai_exposure: AiExposure
    reader: str
    confirmed_at: datetime
    supersedes: int | None = Field(description="The confirmation that this one corrects")
    superseded_by: int | None = Field(description="The confirmation that corrects this one; null while it stands")
    reason: str | None = Field(description="Why; retractions and adjudications always say it")
    created_at: datetime


@router.post(
    "/cases/{case_id}/confirmations",
    status_code=201,
    response_model=ConfirmationView,
    summary="Confirm a diagnosis",
    response_description="Recorded; it is safe on disk",
    **allow(
        "submitter",
        "reviewer",
        problems=(
            *PROBLEMS,
            "not-found",
            "already-superseded",
            "unknown-finding",
            "future-date",
            "wrong-line",
        ),
    ),
)
def confirm(user: CurrentUser, pool: Pool, key: IdempotencyKey, case_id: Id, confirmation: NewConfirmation) -> Response:
    """Record what a source confirmed of a case, on what evidence, and whether the reader had seen the model's answer.

    The answer is sent after the record is safe on disk. Repeat the request with the same `Idempotency-Key` until you
    have one: you then get the first answer again, marked `Idempotent-Replayed: true`. To correct a confirmation, send
    a new one that names it in `supersedes`.
    """

    def work(connection: db.Connection) -> ConfirmationView:
        diagnosis = confirmations.Diagnosis(case_id=case_id, **dict(confirmation))
        return ConfirmationView.model_validate(confirmations.confirm(connection, diagnosis, actor=user))

    asked = f"confirm {case_id} {confirmation.model_dump_json()}"
    return once(pool, user=user, key=key, request=asked, work=work, pipelined=True)


@router.get(
    "/cases/{case_id}/confirmations", summary="Read a case's confirmations", **allow(*ANYONE, problems=("not-found",))
)
def list_confirmations(reader: CurrentReader, pool: Pool, case_id: Id) -> list[ConfirmationView]:
    """Read every confirmation of a case in the order they came, the superseded ones too."""
    with db.transaction(pool) as connection:
        line_id = cases.get_case(connection, case_id).line_id
        reader.sees(connection, "confirmation:list", case_id=case_id, line_id=line_id)
        rows = confirmations.list_for_case(connection, case_id)
    return [ConfirmationView.model_validate(row) for row in rows]
