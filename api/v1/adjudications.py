"""What overrules confirmations: the queue of cases about which readers disagree, adjudications, retractions.

An adjudication names the newest confirmation that its maker has seen, and is refused if there is a newer one: nobody
decides over what they have not looked at.
"""

from __future__ import annotations

from datetime import datetime

from fastapi import Response
from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import After, CurrentReader, CurrentUser, Id, IdempotencyKey, Limit, Pool
from api.once import PROBLEMS, once
from api.v1 import examples
from api.v1.confirmations import AiExposure, ConfirmationView
from api.v1.views import Reason, Request, View, shown_as
from registry import adjudications, db, lines

router = guarded_router(tag="Confirmations")


class NewAdjudication(Request):
    """A reviewer's decision over all that was said about a case."""

    model_config = shown_as(examples.NEW_ADJUDICATION)

    finding: str | None = Field(
        max_length=2000, description="Written as in a confirmation; null: the case cannot be answered"
    )
    ai_exposure: AiExposure = Field(description="Had the adjudicator seen the prediction?")
    reason: Reason
    last_seen: int = Field(
        ge=1,
        description="The newest confirmation of the case that you looked at, retractions and adjudications too; the "
        "answer is 409 if there is a newer one",
    )


class NewRetraction(Request):
    """Why something should never have been said."""

    model_config = shown_as(examples.NEW_RETRACTION)

    reason: Reason


class DiscordanceView(View):
    """A case that waits for an adjudication, with who said what."""

    model_config = shown_as(examples.DISCORDANCE)

    case_id: int
    since: int = Field(description="The confirmation with which it began; page by sending the last one as `after`")
    since_at: datetime
    last_confirmation: int = Field(description="The newest about the case: an adjudication names it as `last_seen`")
    standing: list[ConfirmationView] = Field(description="What stands about the case, oldest first")


@router.get("/lines/{line}/discordances", summary="List discordant cases", **allow(*ANYONE, problems=("not-found",)))
def list_discordances(
    reader: CurrentReader, pool: Pool, line: str, after: After = 0, limit: Limit = 100
) -> list[DiscordanceView]:
    """List the cases that need an adjudication, the longest waiting first, with who said what.

    Those whose readers differ at the strongest evidence there is, also where a majority settles the case meanwhile, and
    those where stronger evidence came in after an adjudication and says something else.
    """
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        found = adjudications.discordances(connection, line_id=row.line_id, after=after, limit=limit)
        if found:
            span = {"first": found[0].case_id, "last": found[-1].case_id, "cases": len(found)}
            reader.sees(connection, "discordance:list", line_id=row.line_id, **span)
    return [DiscordanceView.model_validate(case) for case in found]


@router.post(
    "/cases/{case_id}/adjudications",
    status_code=201,
    response_model=ConfirmationView,
    summary="Adjudicate a case",
    response_description="Decided; it is safe on disk",
    **allow("reviewer", problems=(*PROBLEMS, "not-found", "wrong-line", "unknown-finding", "invalid", "record-moved")),
)
def adjudicate(user: CurrentUser, pool: Pool, key: IdempotencyKey, case_id: Id, decision: NewAdjudication) -> Response:
    """Decide over all that stands about a case, in your own name and with a reason. What others said stays.

    It holds until stronger evidence comes in that says otherwise, or until it is retracted; a later adjudication counts
    instead of it. It is a person's: a user without a password cannot adjudicate. No names of patients in the reason: it
    is kept for ever.
    """

    def work(connection: db.Connection) -> ConfirmationView:
        wish = adjudications.Decision(case_id=case_id, **dict(decision))
        return ConfirmationView.model_validate(adjudications.adjudicate(connection, wish, actor=user))

    asked = f"adjudicate {case_id} {decision.model_dump_json()}"
    return once(pool, user=user, key=key, request=asked, work=work, pipelined=True)


@router.post(
    "/confirmations/{confirmation_id}/retraction",
    status_code=201,
    response_model=ConfirmationView,
    summary="Retract a confirmation",
    response_description="Taken back; it is safe on disk",
    **allow("submitter", "reviewer", problems=(*PROBLEMS, "not-found", "already-superseded", "invalid")),
)
def retract(
    user: CurrentUser, pool: Pool, key: IdempotencyKey, confirmation_id: Id, retraction: NewRetraction
) -> Response:
    """Take back what should never have been said, such as a diagnosis of another patient: as if it had not been.

    Who sent it may do that, or a reviewer; an adjudication can be retracted too. The row stays in the record,
    superseded by the retraction. To say something else instead, correct it: confirm, and name it in `supersedes`.
    """

    def work(connection: db.Connection) -> ConfirmationView:
        row = adjudications.retract(connection, confirmation_id=confirmation_id, reason=retraction.reason, actor=user)
        return ConfirmationView.model_validate(row)

    asked = f"retract {confirmation_id} {retraction.model_dump_json()}"
    return once(pool, user=user, key=key, request=asked, work=work, pipelined=True)
