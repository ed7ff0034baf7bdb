"""Amendments of protocols: proposed by one, signed by others, in force with the last signature that is needed.

What is said in advance about how a model may change is not changed by whoever finds it in the way. A proposal names
what it changes clause by clause, and which of the changes ask for less evidence; a signature is bound to the digests of
the protocol before and the one after.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Request as HttpRequest
from fastapi import Response
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import CurrentUser, Id, Inference, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import examples, signing
from api.v1.lines import ProtocolView
from api.v1.signing import Decision, SignatureView
from api.v1.views import Digest, Reason, Request, View, shown_as
from registry import amendments, db, lines

router = guarded_router(tag="Lines")


class NewAmendment(Request):
    """The wish that another protocol takes the place of the one in force."""

    model_config = shown_as(examples.NEW_AMENDMENT)

    protocol: Annotated[str, Field(min_length=1, max_length=200_000)] = Field(
        description="The whole protocol as it is to be, in YAML"
    )
    reason: Reason


class AmendmentSignatureView(SignatureView):
    """A signature on an amendment, bound to the digests of the protocol before and the one after."""

    model_config = shown_as(examples.AMENDMENT_SIGNATURE)

    amendment_approval_id: int
    amendment_id: int


class AmendmentView(View):
    """A protocol that somebody proposed in the place of another, and who has signed it."""

    model_config = shown_as(examples.AMENDMENT)

    amendment_id: int
    state: Literal["proposed", "adopted", "rejected", "outdated"] = Field(
        description="`outdated`: another protocol is in force than the one it was proposed against"
    )
    protocol_id: int = Field(description="The protocol that it was proposed against")
    changes: list[str] = Field(description="Each clause that is another, and whether it asks for less evidence")
    document: dict[str, Any] = Field(description="The protocol as it is to be, every default filled in")
    digest: Digest
    reason: str
    proposer: str
    created_at: datetime
    required: int = Field(description="How many have to sign, as the protocol says that it was proposed against")
    approvals: list[AmendmentSignatureView]


@router.get("/protocols/{protocol_id}", summary="Read a protocol", **allow(*ANYONE, problems=("not-found",)))
def read_protocol(pool: Pool, protocol_id: Id) -> ProtocolView:
    """Read one version of a protocol, in force or not: candidates, reports and signatures name it by this id."""
    with db.transaction(pool) as connection:
        return ProtocolView.model_validate(lines.protocol(connection, protocol_id))


@router.post(
    "/lines/{line}/amendments",
    status_code=201,
    response_model=AmendmentView,
    summary="Propose an amendment",
    response_description="Proposed; nothing has changed yet",
    **allow(
        *("operator", "reviewer"),
        problems=(
            *PROBLEMS,
            *("not-found", "protocol-invalid", "protocol-moved", "wrong-line", "invalid", "inference-unavailable"),
        ),
    ),
)
def propose_amendment(
    *, user: CurrentUser, pool: Pool, inference: Inference, key: OptionalKey, line: str, wish: NewAmendment
) -> Response:
    """Propose another protocol in the place of the one in force. It counts once enough others have signed it."""
    with db.transaction(pool) as connection:
        before = lines.current_protocol(connection, lines.get_line(connection, line).line_id)
    compared = inference.compare_protocol(wish.protocol, before=before.document)

    def work(connection: db.Connection) -> AmendmentView:
        made = amendments.propose(
            connection,
            line_id=before.line_id,
            protocol_id=before.protocol_id,
            document=compared.document,
            digest=compared.digest,
            changes=compared.changes,
            reason=wish.reason,
            actor=user,
        )
        return _view(connection, made)

    asked = f"amend {line} {compared.digest} {wish.reason}"
    return once(pool, user=user, key=key, request=asked, work=work)


@router.get("/lines/{line}/amendments", summary="List amendments", **allow(*ANYONE, problems=("not-found",)))
def list_amendments(pool: Pool, line: str) -> list[AmendmentView]:
    """List every amendment that was ever proposed to a line's protocol, newest first."""
    with db.transaction(pool) as connection:
        found = amendments.list_for_line(connection, lines.get_line(connection, line).line_id)
        return [_view(connection, one) for one in found]


@router.get("/amendments/{amendment_id}", summary="Read an amendment", **allow(*ANYONE, problems=("not-found",)))
def read_amendment(pool: Pool, amendment_id: Id) -> AmendmentView:
    """Read what an amendment changes, why, and who has signed it."""
    with db.transaction(pool) as connection:
        return _view(connection, amendments.get(connection, amendment_id))


@router.post(
    "/amendments/{amendment_id}/approvals",
    status_code=201,
    response_model=AmendmentView,
    summary="Sign an amendment",
    response_description="Signed; in force, if this was the last signature that was needed",
    **allow("approver", problems=(*signing.PROBLEMS, "protocol-moved")),
)
async def sign_amendment(
    *, request: HttpRequest, user: CurrentUser, pool: Pool, key: OptionalKey, amendment_id: Id, decision: Decision
) -> Response:
    """Approve or reject an amendment; the last signature that is needed puts it in force.

    An API key alone does not sign: send the signer's `password` too, or sign in (`POST /v1/session`) at most a minute
    before. Refused to whoever proposed it, and where another protocol has come into force meanwhile.
    """

    def work(connection: db.Connection) -> AmendmentView:
        amendments.sign(
            connection, amendment_id=amendment_id, approver=user, decision=decision.decision, reason=decision.reason
        )
        return _view(connection, amendments.get(connection, amendment_id))

    what = f"amendment {amendment_id}"
    return await signing.sign_once(request, user=user, pool=pool, key=key, what=what, decision=decision, work=work)


def _view(connection: db.Connection, found: amendments.Amendment) -> AmendmentView:
    before = lines.protocol(connection, found.protocol_id)
    values = {name: getattr(found, name) for name in found.__slots__}
    signed = amendments.signatures(connection, found.amendment_id)
    return AmendmentView.model_validate(
        {**values, "required": before.document["approvals"]["required"], "approvals": signed}
    )
