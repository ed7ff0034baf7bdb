"""Lines: the questions the service answers, each under a protocol stated in advance."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import Response
from pydantic import BaseModel, Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import Body, CurrentUser, Inference, OptionalKey, Pool
from api.once import PROBLEMS, once
from api.v1 import candidates as candidate_views
from api.v1 import examples
from api.v1.candidates import CandidateView
from api.v1.views import Digest, View, shown_as
from registry import cases, confirmations, datasets, db, disclosure, lines, promotions, runs, sealed_tests, watches
from registry.users import User

router = guarded_router(tag="Lines")


class ProtocolView(View):
    """A version of a line's protocol: all that is said in advance about how its model may change."""

    model_config = shown_as(examples.PROTOCOL)

    protocol_id: int
    version: int
    digest: Digest
    document: dict[str, Any] = Field(description="The protocol, every default filled in")
    created_at: datetime


class Counts(BaseModel):
    """How much a line has seen."""

    cases: int
    confirmed_cases: int
    confirmations: int = Field(description="Superseded ones included")
    dataset_versions: int


class NextTrigger(BaseModel):
    """What is still missing until the line starts to learn by itself."""

    new_confirmations: int = Field(description="Came in since the line last learnt")
    needed: int
    every_hours: float | None = Field(description="Or this long after the last run, with at least one new confirmation")


class WatchView(View):
    """A look at a champion in use: how often it was wrong on mature cases that were read before it was seen."""

    model_config = shown_as(examples.WATCH)

    watch_id: int
    candidate_id: int
    protocol_id: int
    sample: int = Field(description="Mature cases that the protocol watches by, none of which it learned from")
    n: int = Field(description="Of these, confirmed before anybody saw what it says")
    errors: int
    risk: float | None = Field(description="How often it was wrong; null: no case is confirmed")
    lower_bound: float | None = Field(description="What the risk is shown to be above, whenever one looks")
    risk_limit: float | None = Field(
        description="Highest risk that is in order: the sealed test's upper bound and the tolerance"
    )
    raised_at: int | None = Field(description="After how many cases the risk was shown to be above the limit")
    verified_share: float | None = Field(description="Share of the sample that was confirmed")
    weighted_risk: dict[str, Any] = Field(
        description="The risk with confirmed cases standing for those like them that nobody read; or `missing`: why"
    )
    mature_after_days: float | None = Field(description="At this age 95 % of the labels of every class had come")
    verdict: Literal["in_order", "alarm", "insufficient"]
    reason: str
    cases_to_see: list[int] = Field(description="The newest cases of which it was wrong")
    what_to_do: str | None = Field(description="What an alarm asks for")
    shadow: dict[str, Any] | None = Field(
        description="What was seen of the challenger on the same cases; for those who decide on it"
    )
    created_at: datetime


class LineView(BaseModel):
    """A line as it stands now."""

    model_config = shown_as(examples.LINE)

    line_id: int
    name: str
    created_at: datetime
    protocol: ProtocolView
    champion: CandidateView | None = Field(description="The model that answers; null until the first promotion")
    counts: Counts
    next_trigger: NextTrigger
    monitoring: WatchView | None = Field(description="The newest look at the champion; null: nobody has looked")


class SealedTestUseView(View):
    """A use of a line's sealed test: which candidate met which question, what it cost, and whether it passed."""

    model_config = shown_as(examples.SEALED_TEST_USE)

    sealed_test_use_id: int
    epoch: int = Field(description="A new one looks at cases that no candidate was judged by")
    after_version: int = Field(description="Sealed cases of this dataset version and before are not looked at")
    wallet: Literal["recipe", "adaptive", "unlimited"] = Field(
        description="`recipe`: made by the declared strategy; `unlimited`: the protocol says nothing of wear"
    )
    place: int = Field(description="First, second, ... use of its wallet in this epoch")
    candidate_id: int
    champion_candidate_id: int | None = Field(description="Null: held against the floors alone")
    protocol_id: int
    wallet_before: float | None
    level: float = Field(description="One-sided level at which the candidate was judged")
    wallet_after: float | None = Field(description="What is left if it fails; if it passes, its level is handed on")
    passed: bool | None = Field(description="Null: no report has answered it (yet); it then counts as failed")
    created_at: datetime


_YAML = {
    "requestBody": {
        "required": True,
        "content": {
            "application/yaml": {
                "schema": {"type": "string"},
                "example": examples.PROTOCOL_YAML,
            }
        },
    }
}


@router.post(
    "/lines",
    status_code=201,
    response_model=LineView,
    summary="Create a line",
    response_description="The line was made under its protocol",
    **allow(
        "operator", problems=(*PROBLEMS, "protocol-invalid", "already-exists", "inference-unavailable"), extra=_YAML
    ),
)
def create_line(user: CurrentUser, pool: Pool, inference: Inference, key: OptionalKey, body: Body) -> Response:
    """Create a line from its protocol, sent as YAML. Each field that is wrong is named in the refusal.

    The protocol says what counts as confirmed, how patients are split, what is trained and when, which gates a
    candidate has to pass and who has to sign. It is kept under its digest; every candidate and signature names it.
    """
    document, digest = inference.check_protocol(body.file.read())

    def work(connection: db.Connection) -> LineView:
        line = lines.create_line(connection, name=document["line"], document=document, digest=digest, actor=user)
        return _view(connection, line, reader=user)

    return once(pool, user=user, key=key, request=f"line {digest}", work=work)


@router.get("/lines", summary="List lines", **allow(*ANYONE))
def list_lines(user: CurrentUser, pool: Pool) -> list[LineView]:
    """List all lines with their champions."""
    with db.transaction(pool) as connection:
        return [_view(connection, line, reader=user) for line in lines.list_lines(connection)]


@router.get("/lines/{line}", summary="Read a line", **allow(*ANYONE, problems=("not-found",)))
def read_line(user: CurrentUser, pool: Pool, line: str) -> LineView:
    """Read a line: its protocol, its champion, how much it has seen, and what is missing until it learns again."""
    with db.transaction(pool) as connection:
        return _view(connection, lines.get_line(connection, line), reader=user)


@router.get(
    "/lines/{line}/sealed-test", summary="Read the ledger of the sealed test", **allow(*ANYONE, problems=("not-found",))
)
def list_sealed_test_uses(pool: Pool, line: str) -> list[SealedTestUseView]:
    """List every use of a line's sealed test, oldest first: each wears it out, and says what it cost."""
    with db.transaction(pool) as connection:
        found = sealed_tests.list_uses(connection, lines.get_line(connection, line).line_id)
    return [SealedTestUseView.model_validate(use) for use in found]


@router.get(
    "/lines/{line}/monitoring", summary="List the looks at champions", **allow(*ANYONE, problems=("not-found",))
)
def list_watches(user: CurrentUser, pool: Pool, line: str) -> list[WatchView]:
    """List what was seen of a line's champions in use, newest first, at most a hundred looks.

    What was seen of a challenger is for reviewers, approvers and auditors who did not ask for it to be made.
    """
    with db.transaction(pool) as connection:
        found = watches.list_for_line(connection, lines.get_line(connection, line).line_id)
        return [_watch_view(connection, watch, line=line, reader=user) for watch in found]


def _watch_view(connection: db.Connection, watch: watches.Watch, *, line: str, reader: User) -> WatchView:
    watch = disclosure.watch_for(connection, watch, reader=reader)
    values = {name: getattr(watch, name) for name in watch.__slots__}
    return WatchView.model_validate({**values, "what_to_do": watches.what_to_do(watch, line=line)})


def _view(connection: db.Connection, line: lines.Line, *, reader: User) -> LineView:
    protocol = lines.current_protocol(connection, line.line_id)
    champion = promotions.champion(connection, line.line_id)
    latest = datasets.latest(connection, line.line_id)
    watch = champion and watches.latest(connection, line_id=line.line_id, candidate_id=champion.candidate_id)
    seen, confirmed = cases.count_cases(connection, line.line_id)
    return LineView(
        line_id=line.line_id,
        name=line.name,
        created_at=line.created_at,
        protocol=ProtocolView.model_validate(protocol),
        champion=candidate_views.view(connection, champion) if champion else None,
        counts=Counts(
            cases=seen,
            confirmed_cases=confirmed,
            confirmations=confirmations.count_new(connection, line_id=line.line_id, after_confirmation_id=0),
            dataset_versions=latest.number if latest else 0,
        ),
        next_trigger=NextTrigger.model_validate(runs.next_trigger(connection, line.line_id)),
        monitoring=_watch_view(connection, watch, line=line.name, reader=reader) if watch else None,
    )
