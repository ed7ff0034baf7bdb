"""The protocol of a line, and the amendments that would put another in its place: read, and signed by others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Form, Request, Response

from api.auth import ANYONE
from api.console import clauses, forms
from api.console.clauses import Change
from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Id, Pool
from api.v1 import amendments as amendments_api
from registry import amendments, db, lines, signing
from registry.amendments import Amendment, Signature
from registry.lines import StoredProtocol
from registry.users import User

router = pages_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An amendment and all that a decision about it rests on; `blocked` says why it cannot be signed, None if it can.

    `before` is the protocol that it was proposed against, which also says how many have to sign.
    """

    amendment: Amendment
    before: StoredProtocol
    changes: list[Change]
    signed: list[Signature]
    signers: list[User]
    blocked: str | None

    @property
    def required(self) -> int:
        """How many people have to sign."""
        return int(self.before.document["approvals"]["required"])

    @property
    def for_it(self) -> int:
        """How many have signed for it."""
        return sum(one.decision == "approve" for one in self.signed)

    @property
    def looser(self) -> int:
        """How many of its changes ask for less evidence."""
        return sum(change.looser for change in self.changes)


@router.get("/lines/{line}/amendments", **people(*ANYONE))
def show_protocol(request: Request, pool: Pool, user: CurrentUser, line: str) -> Response:
    """Show the protocol in force, and every amendment that was ever proposed to it."""
    with db.transaction(pool) as connection:
        line_id = lines.get_line(connection, line).line_id
        protocol = lines.current_protocol(connection, line_id)
        found = [_proposal(connection, one, user=user) for one in amendments.list_for_line(connection, line_id)]
    return page(request, "protocol.html", line=line, protocol=protocol, proposals=found)


@router.get("/amendments/{amendment_id}", **people(*ANYONE))
def show_amendment(request: Request, pool: Pool, user: CurrentUser, amendment_id: Id) -> Response:
    """Show what an amendment changes, why, and who has signed it."""
    return _show(request, pool, user, amendment_id)


@router.post("/amendments/{amendment_id}/signature", **people("approver"))
async def sign(
    *, request: Request, pool: Pool, user: CurrentUser, amendment_id: Id, form: Annotated[forms.Signature, Form()]
) -> Response:
    """Sign for or against an amendment, with the password once more."""
    return await forms.signed(
        form,
        partial(amendments_api.sign_amendment, request=request, user=user, pool=pool, amendment_id=amendment_id),
        to=f"/amendments/{amendment_id}#signatures",
        again=lambda refused: _show(request, pool, user, amendment_id, refused=refused, typed=form),
    )


def _show(
    request: Request,
    pool: db.Pool,
    user: User,
    amendment_id: int,
    *,
    refused: dict[str, Any] | None = None,
    typed: forms.Signature | None = None,
) -> Response:
    with db.transaction(pool) as connection:
        proposal = _proposal(connection, amendments.get(connection, amendment_id), user=user)
        line = lines.line_by_id(connection, proposal.amendment.line_id).name
    return page(
        request,
        "amendment.html",
        line=line,
        proposal=proposal,
        meaning=amendments.MEANING,
        refused=refused,
        typed=typed or forms.UNSIGNED,
    )


def _proposal(connection: db.Connection, amendment: Amendment, *, user: User) -> Proposal:
    check = partial(amendments.check_signable, connection, amendment)
    return Proposal(
        amendment=amendment,
        before=lines.protocol(connection, amendment.protocol_id),
        changes=clauses.read(amendment.changes),
        signed=amendments.signatures(connection, amendment.amendment_id),
        signers=signing.who_may(connection, check) if amendment.state == "proposed" else [],
        blocked=signing.why_not(check, user),
    )
