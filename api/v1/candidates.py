"""Candidates, their gate reports and their signatures.

A passing report lets people sign; it promotes nothing. A signature is bound to the digests of exactly what was signed
(21 CFR Part 11 §11.50, §11.70) and stands only while none of them changes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import CurrentUser, Id, OptionalKey, Pool
from api.v1 import examples
from api.v1.signing import PROBLEMS, Decision, SignatureView, sign_once
from api.v1.views import Digest, View, shown_as
from registry import approvals, candidates, datasets, db, disclosure, erasures, lines
from registry.errors import NotFound

router = guarded_router(tag="Candidates")


class CandidateView(View):
    """A trained model: not yet, now or no longer the champion of its line."""

    model_config = shown_as(examples.CANDIDATE)

    candidate_id: int
    number: int = Field(description="Its number within the line")
    run_id: int
    dataset_version_id: int
    dataset_version: int = Field(description="The dataset version's number within the line")
    protocol_id: int
    weights_digest: Digest
    metadata_digest: Digest
    metadata: dict[str, Any] = Field(description="Architecture, operating point, temperature, recipe")
    state: Literal["trained", "gates_passed", "gates_failed", "rejected", "champion", "retired"]
    mlflow_model_version: str | None = Field(description="Its version in MLflow, once mirrored there")
    erasures: list[int] = Field(description="Erasures of patients whom it has learned from, itself or by its base")
    created_at: datetime


class GateReportView(View):
    """The verdict on a candidate, measured on the sealed test against the champion of that moment."""

    model_config = shown_as(examples.GATE_REPORT)

    gate_report_id: int
    candidate_id: int
    champion_candidate_id: int | None = Field(description="What it was compared with; null: the line had no champion")
    dataset_version_id: int
    protocol_id: int
    verdict: Literal["pass", "fail", "insufficient", "not_passed"] = Field(
        description="`insufficient`: too few cases to tell. It does not pass. `not_passed`: all that you may know yet"
    )
    withheld: bool = Field(
        description="Only the bit is shown: you asked for this run, or may not review, and nobody has decided yet"
    )
    sealed_test_use_id: int | None = Field(description="The use of the sealed test that it answers")
    digest: Digest = Field(description="Of the whole report, withheld or not")
    document: dict[str, Any] = Field(description="Each gate's requirement, estimates with intervals and n, and reason")
    text: str = Field(description="The same for people")
    created_at: datetime


class ApprovalView(SignatureView):
    """A signature on a candidate's gate report."""

    model_config = shown_as(examples.APPROVAL)

    approval_id: int
    candidate_id: int
    gate_report_id: int


@router.get("/lines/{line}/candidates", summary="List candidates", **allow(*ANYONE, problems=("not-found",)))
def list_candidates(pool: Pool, line: str) -> list[CandidateView]:
    """List a line's candidates, newest first, champions past and present among them."""
    with db.transaction(pool) as connection:
        rows = candidates.list_candidates(connection, lines.get_line(connection, line).line_id)
        return [view(connection, row) for row in rows]


@router.get("/candidates/{candidate_id}", summary="Read a candidate", **allow(*ANYONE, problems=("not-found",)))
def read_candidate(pool: Pool, candidate_id: Id) -> CandidateView:
    """Read one candidate with the recipe it was made by."""
    with db.transaction(pool) as connection:
        return view(connection, candidates.get(connection, candidate_id))


@router.get(
    "/candidates/{candidate_id}/gate-report",
    response_model=GateReportView,
    summary="Read a gate report",
    **allow(
        *ANYONE,
        problems=("not-found",),
        answers={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    ),
)
def read_gate_report(
    pool: Pool,
    user: CurrentUser,
    candidate_id: Id,
    accept: Annotated[str, Header(description="`text/plain` for the report as a page of text")] = "application/json",
) -> Response:
    """Read the latest gate report of a candidate: as JSON, or as text with `Accept: text/plain`.

    Before a person has decided it is open to reviewers, approvers and auditors who did not ask for the run; others
    learn whether the candidate passed. Who could read every number would fit the next candidate to them.
    """
    with db.transaction(pool) as connection:
        shown = disclosure.latest_report(connection, candidate_id, reader=user)
        number = candidates.get(connection, candidate_id).number
    if shown is None:
        raise NotFound(f"candidate {number} has no gate report yet; its run is still at work")
    values = {name: getattr(shown.report, name) for name in shown.report.__slots__}
    report = GateReportView.model_validate(values | {"withheld": shown.withheld})
    if accept.startswith("text/plain"):
        return PlainTextResponse(report.text)
    return JSONResponse(report.model_dump(mode="json"))


@router.get(
    "/candidates/{candidate_id}/approvals", summary="List signatures", **allow(*ANYONE, problems=("not-found",))
)
def list_approvals(pool: Pool, candidate_id: Id) -> list[ApprovalView]:
    """List the signatures that stand: those bound to what the candidate's latest gate report was measured with."""
    with db.transaction(pool) as connection:
        candidates.get(connection, candidate_id)
        return [ApprovalView.model_validate(row) for row in approvals.standing(connection, candidate_id)]


@router.post(
    "/candidates/{candidate_id}/approvals",
    status_code=201,
    response_model=ApprovalView,
    summary="Sign a candidate",
    response_description="Signed",
    **allow("approver", problems=(*PROBLEMS, "gate-not-passed")),
)
async def sign(
    *, request: HttpRequest, user: CurrentUser, pool: Pool, key: OptionalKey, candidate_id: Id, decision: Decision
) -> Response:
    """Approve or reject a candidate whose gates passed.

    An API key alone does not sign: send the signer's `password` too, or sign in (`POST /v1/session`) at most a minute
    before.

    Refused to whoever asked for the run, and to whoever submitted more of its new labels than the protocol allows. One
    rejection ends the candidate. Enough approvals by distinct people (the protocol says how many) allow a promotion.
    """

    def work(connection: db.Connection) -> ApprovalView:
        row = approvals.sign(
            connection, candidate_id=candidate_id, approver=user, decision=decision.decision, reason=decision.reason
        )
        return ApprovalView.model_validate(row)

    return await sign_once(request, user=user, pool=pool, key=key, what=str(candidate_id), decision=decision, work=work)


def view(connection: db.Connection, candidate: candidates.Candidate) -> CandidateView:
    """Show a candidate with the number of its dataset version, and whom it should not have learned from."""
    number = datasets.get(connection, candidate.dataset_version_id).number
    erased = erasures.of_subject(connection, subject="candidate", subject_id=candidate.candidate_id)
    values = {name: getattr(candidate, name) for name in candidate.__slots__}
    return CandidateView.model_validate({**values, "dataset_version": number, "erasures": erased})
