"""For whoever reads images: the worklist, a case with its image, an answer, and what the model says of it.

A reader answers before they are shown what others said. What a model says is shown when they ask for it, which is
written down; an answer given after that is `aided`. Cases of the blind audit show nothing before they are answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Form, Query, Request, Response

from api.console import forms, words
from api.console.frame import live, page
from api.console.pictures import place, png, slices
from api.console.route import pages_router, people, see
from api.console.trail import OnTrail, Trail
from api.dependencies import CurrentReader, Id, Inference, Pool, Reader, Settings
from api.inference import kind_of
from api.v1 import adjudications, predictions, worklist
from api.v1 import rejections as rejections_api
from api.v1.confirmations import NewConfirmation, confirm
from registry import adjudications as discordances
from registry import blobs, cases, confirmations, db, lines, rejections, worklists
from registry import predictions as said
from registry.confirmations import AiExposure, Confirmation
from registry.errors import Invalid, NotFound
from registry.findings import JOIN, NONE, are_several
from registry.predictions import Prediction
from registry.rejections import Rejection
from registry.users import Role, User

router = pages_router()

READERS: tuple[Role, ...] = ("submitter", "reviewer")
LOOKERS: tuple[Role, ...] = ("submitter", "reviewer", "approver")
PER_PAGE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A case as one reader may see it: `shown` is the model's answer that they asked for, None before.

    `rejected` is their own rejection of it; `rejections` are everybody's.
    """

    case: cases.Case
    line: lines.Line
    classes: tuple[str, ...]
    several: bool
    """Whether these are findings that are each present or absent by themselves."""
    answers: list[Confirmation]
    mine: Confirmation | None
    shown: Prediction | None
    rejections: list[Rejection]
    rejected: Rejection | None
    blind: bool
    discordant: bool
    volume: bool
    """Whether the line reads volumes, of which one slice is shown at a time."""

    @property
    def exposure(self) -> AiExposure:
        """What an answer given now is."""
        return "blind" if self.shown is None else "aided"

    @property
    def others(self) -> list[Confirmation]:
        """What others said; not before this reader has answered."""
        return self.answers if self.mine is not None else []


Ticked = Annotated[list[str], Form(alias="finding")]


@router.get("/lines/{line}/worklist", **people(*READERS))
def show_worklist(
    *, request: Request, reader: CurrentReader, pool: Pool, line: str, trail: OnTrail, after: int = 0
) -> Response:
    """List what to read next, most wanted first."""
    with db.transaction(pool) as connection:
        waiting = _waiting(connection, line, trail)
    shown = worklist.read_worklist(
        reader=reader,
        pool=pool,
        line=line,
        site=trail.site or None,
        reason=trail.reason or None,  # type: ignore[arg-type]  # the record names those there are
        after=max(0, after),
        limit=PER_PAGE,
    )
    return page(
        request,
        "worklist.html",
        line=line,
        worklist=shown,
        trail=trail,
        after=after,
        full=len(shown.cases) == PER_PAGE,
        **waiting,
    )


@router.get("/lines/{line}/worklist/count", **people(*READERS))
def count_worklist(request: Request, pool: Pool, line: str, trail: OnTrail) -> Response:
    """Say how many cases wait: the part of the worklist that follows what goes on. It names no case."""
    with db.transaction(pool) as connection:
        waiting = _waiting(connection, line, trail)
    return page(request, "waiting.html", **waiting)


@router.get("/lines/{line}/worklist/next", **people(*READERS))
def next_case(pool: Pool, line: str, trail: OnTrail) -> Response:
    """Go to the next case that nobody has answered."""
    with db.transaction(pool) as connection:
        line_id = lines.get_line(connection, line).line_id
        found = worklists.entries(
            connection,
            line_id=line_id,
            after=trail.place,
            limit=1,
            site=trail.site or None,
            arm=trail.reason or None,
        )
    if not found:
        return see(f"/lines/{line}/worklist?{trail.at(0)}")
    return see(f"/cases/{found[0].case_id}?{trail.at(found[0].place)}")


@router.get("/cases/{case_id}", **people(*LOOKERS))
def show_case(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    case_id: Id,
    trail: OnTrail,
    heat: str = "",
    ticked: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Show a case: its image, what this reader said, and what they asked the model; `ticked` are ticks not yet sent."""
    typed = {"finding": JOIN.join(ticked), "evidence": trail.evidence, "note": ""}
    return _show(request, reader, pool, case_id, trail, heat=heat, typed=typed)


@router.post("/cases/{case_id}/answer", **people(*READERS))
def answer(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    case_id: Id,
    trail: OnTrail,
    key: forms.Key,
    ticked: Ticked = [],  # noqa: B006 - FastAPI copies it
    accept: Annotated[str, Form()] = "",
    evidence: Annotated[str, Form()] = "",
    note: Annotated[str, Form()] = "",
    supersedes: Annotated[int | None, Form()] = None,
) -> Response:
    """Confirm a finding in the reader's own name, or correct what they said before.

    Of several findings all that are ticked; `accept` is the model's answer, where nothing else is ticked.
    """
    chosen = JOIN.join(ticked)

    def work() -> str:
        if accept and chosen not in {"", accept}:
            raise Invalid(f"you ticked {chosen}, the model says {accept}: confirm what is ticked, or untick it first")
        if not (accept or chosen):
            raise Invalid(f"tick what you see, or choose {NONE}")
        with db.transaction(pool) as connection:
            exposure = _exposure(connection, case_id, reader.user)
        wish = forms.asked(
            NewConfirmation,
            finding=accept or chosen,
            evidence=evidence,
            ai_exposure=exposure,
            reader=reader.user.name,
            reason=note.strip() or None,
            supersedes=supersedes,
        )
        confirm(reader.user, pool, key, case_id, wish)
        return f"/cases/{case_id}?{replace(trail, evidence=evidence)}"

    typed = {"finding": chosen, "evidence": evidence, "note": note}
    return forms.done(
        work, again=lambda refused: _show(request, reader, pool, case_id, trail, refused=refused, typed=typed)
    )


@router.post("/cases/{case_id}/undo", **people(*READERS))
def undo(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    case_id: Id,
    trail: OnTrail,
    confirmation_id: Annotated[int, Form(ge=1, le=2**63 - 1)],
    key: forms.Key,
) -> Response:
    """Take an answer back: it stays in the record, retracted."""

    def work() -> str:
        wish = forms.asked(adjudications.NewRetraction, reason="taken back by the reader")
        adjudications.retract(reader.user, pool, key, confirmation_id, wish)
        return f"/cases/{case_id}?{trail}"

    return forms.done(work, again=lambda refused: _show(request, reader, pool, case_id, trail, refused=refused))


@router.post("/cases/{case_id}/model", **people(*READERS))
def ask_model(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    inference: Inference,
    settings: Settings,
    case_id: Id,
    trail: OnTrail,
    ticked: Ticked = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Show the reader what the champion says; from then on what they answer is `aided`. Ticks stay as they are."""

    def work() -> str:
        predictions.predict_case(
            reader=reader, pool=pool, inference=inference, settings=settings, case_id=case_id, shown=True
        )
        return f"/cases/{case_id}?{trail.keeping(ticked)}"

    typed = {"finding": JOIN.join(ticked), "evidence": trail.evidence, "note": ""}
    return forms.done(
        work, again=lambda refused: _show(request, reader, pool, case_id, trail, refused=refused, typed=typed)
    )


@router.post("/cases/{case_id}/reject", **people(*READERS))
def reject(
    *,
    request: Request,
    reader: CurrentReader,
    pool: Pool,
    case_id: Id,
    trail: OnTrail,
    key: forms.Key,
    ticked: Ticked = [],  # noqa: B006 - FastAPI copies it
    note: Annotated[str, Form()] = "",
) -> Response:
    """Reject what the model says without saying what it is; the case stays on the worklist, and ticks as they are."""

    def work() -> str:
        with db.transaction(pool) as connection:
            shown = _shown_to(connection, case_id, reader.user)
        if shown is None:
            raise Invalid("ask the model first: there is nothing to reject")
        wish = forms.asked(rejections_api.NewRejection, reason=note.strip() or None)
        rejections_api.reject(reader.user, pool, key, shown.prediction_id, wish)
        return f"/cases/{case_id}?{trail.keeping(ticked)}"

    typed = {"finding": JOIN.join(ticked), "evidence": trail.evidence, "note": note}
    return forms.done(
        work, again=lambda refused: _show(request, reader, pool, case_id, trail, refused=refused, typed=typed)
    )


@router.get("/cases/{case_id}/image.png", **people(*LOOKERS))
def image(
    *, reader: CurrentReader, pool: Pool, settings: Settings, case_id: Id, at: predictions.Slice = None
) -> Response:
    """Give the stored pixels, all bits of them; of a volume those of one slice, and which of how many it is."""
    with db.transaction(pool) as connection:
        case = cases.get_case(connection, case_id)
        if case.erasure_id is not None:
            raise NotFound(f"the image of case {case_id} has been erased at its patient's request")
        reader.sees(connection, "image:read", case_id=case_id, line_id=case.line_id)
    stored = blobs.read(settings.blob_root, case.image_digest)
    headers = {"Cache-Control": "no-store"}
    if count := slices(stored):
        headers["X-Overread-Slice"] = f"{place(stored, at=at)}/{count}"
    return Response(png(stored, at=at), media_type="image/png", headers=headers)


@router.get("/cases/{case_id}/heat-map.png", **people(*READERS))
def heat_map(
    *,
    reader: CurrentReader,
    pool: Pool,
    inference: Inference,
    settings: Settings,
    case_id: Id,
    finding: Annotated[str, Query(max_length=60)],
    at: predictions.Slice = None,
) -> Response:
    """Draw what the champion's score rests on, for whoever has been shown the score; of a volume over one slice."""
    with db.transaction(pool) as connection:
        if _exposure(connection, case_id, reader.user) == "blind":
            raise Invalid("ask the model first: a heat map shows what it says")
    drawn = predictions.heat_map(
        reader=reader, pool=pool, inference=inference, settings=settings, case_id=case_id, finding=finding, at=at
    )
    drawn.headers["Cache-Control"] = "no-store"
    return drawn


def look(connection: db.Connection, case_id: int, *, reader: User) -> Seen:
    """Read a case as one reader may see it. Raises NotFound."""
    case = cases.get_case(connection, case_id)
    line = lines.line_by_id(connection, case.line_id)
    answers = confirmations.list_for_case(connection, case_id)
    shown = _shown_to(connection, case_id, reader)
    protocol = lines.current_protocol(connection, line.line_id)
    rejected = rejections.of_case(connection, case_id)
    mine = [row for row in answers if row.submitted_by == reader.user_id and _stands(row)]
    return Seen(
        case=case,
        line=line,
        classes=protocol.classes,
        several=are_several(protocol.document),
        answers=answers,
        mine=mine[-1] if mine else None,
        shown=shown,
        rejections=rejected,
        rejected=next((one for one in rejected if shown and _is_of(one, shown, reader)), None),
        blind=worklists.is_blind(connection, line=line, image_digest=case.image_digest),
        discordant=discordances.is_discordant(connection, case_id),
        volume=kind_of(protocol.document) == "volume",
    )


def _show(
    request: Request,
    reader: Reader,
    pool: db.Pool,
    case_id: int,
    trail: Trail,
    *,
    heat: str = "",
    refused: dict[str, Any] | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    with db.transaction(pool) as connection:
        seen = look(connection, case_id, reader=reader.user)
        reader.sees(connection, "case:read", case_id=case_id, line_id=seen.line.line_id)
    return page(
        request,
        "case.html",
        seen=seen,
        line=seen.line.name,
        trail=trail,
        heat=heat if heat in seen.classes and seen.shown is not None else "",
        refused=refused,
        typed=typed or {"finding": "", "evidence": trail.evidence, "note": ""},
    )


def _waiting(connection: db.Connection, line: str, trail: Trail) -> dict[str, Any]:
    """How many cases wait, and how that is followed."""
    line_id = lines.get_line(connection, line).line_id
    kept = urlencode({"site": trail.site, "reason": trail.reason})
    return {
        "live": live(connection, f"worklist/{line_id}", address=f"/console/lines/{line}/worklist/count?{kept}"),
        "waiting": worklists.count(
            connection, line_id=line_id, site=trail.site or None, arm=trail.reason or None, most=words.MOST_COUNTED
        ),
    }


def _stands(row: Confirmation) -> bool:
    return row.superseded_by is None and row.kind == "confirmation"


def _is_of(one: Rejection, shown: Prediction, reader: User) -> bool:
    return (one.prediction_id, one.user_id) == (shown.prediction_id, reader.user_id)


def _shown_to(connection: db.Connection, case_id: int, reader: User) -> Prediction | None:
    rows = said.list_for_case(connection, case_id)
    return next((row for row in reversed(rows) if row.shown and row.requested_by == reader.user_id), None)


def _exposure(connection: db.Connection, case_id: int, reader: User) -> AiExposure:
    return "blind" if _shown_to(connection, case_id, reader) is None else "aided"
