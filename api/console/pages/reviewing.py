"""A candidate as a reviewer and an approver see it: the verdict, every check, who has signed, and what may be done now.

A button that is blocked says why, in the words of the record: the page asks the same check that the action would fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Form, Query, Request, Response

from api.auth import ANYONE
from api.console import forms
from api.console import report as gate_page
from api.console.frame import page
from api.console.pages.flips import Flips, of_report
from api.console.route import pages_router, people
from api.dependencies import CurrentUser, Id, Pool
from api.v1 import candidates as candidates_api
from api.v1 import promotions as promotions_api
from registry import approvals, candidates, comments, datasets, db, disclosure, lines, promotions, runs, signing, users
from registry.approvals import Approval
from registry.candidates import Candidate, GateReport
from registry.comments import Comment
from registry.datasets import DatasetVersion
from registry.errors import RegistryError, WrongLine
from registry.lines import StoredProtocol
from registry.promotions import Promotion
from registry.runs import Run
from registry.users import User

router = pages_router()

_NOBODY = -1
"""What the form sends where the line had no champion; no candidate has this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A candidate and all that a decision about it rests on; `*_blocked` say why a button is, None where it is not.

    `report` is what this person may read of the gate report; `withheld` says that it is only whether it passed. Then
    `comments` are None, for what people said is not open to them either.
    """

    line: str
    candidate: Candidate
    run: Run
    asked_by: str | None
    version: DatasetVersion
    before: DatasetVersion | None
    protocol: StoredProtocol
    report: GateReport | None
    withheld: bool
    champion: Candidate | None
    compared_with: Candidate | None
    signed: list[Approval]
    standing: frozenset[int]
    required: int
    comments: list[Comment] | None
    signers: list[User]
    flips: Flips
    sign_blocked: str | None
    promote_blocked: str | None

    @property
    def for_it(self) -> int:
        """How many people have signed for it, as it is now."""
        return len({one.approver_id for one in self.signed if one.approval_id in self.standing})

    @property
    def results(self) -> list[dict[str, Any]]:
        """The rows of the gate report; those that did not pass first."""
        rows = list(self.report.document.get("results", ())) if self.report else []
        return sorted(rows, key=lambda row: row["verdict"] == "pass")


@router.get("/candidates/{candidate_id}", **people(*ANYONE))
def show_candidate(request: Request, pool: Pool, user: CurrentUser, candidate_id: Id) -> Response:
    """Show a candidate."""
    return show_review(request, pool, user, candidate_id)


@router.post("/candidates/{candidate_id}/signature", **people("approver"))
async def sign(
    *, request: Request, pool: Pool, user: CurrentUser, candidate_id: Id, form: Annotated[forms.Signature, Form()]
) -> Response:
    """Sign for or against a candidate, with the password once more."""
    return await forms.signed(
        form,
        partial(candidates_api.sign, request=request, user=user, pool=pool, candidate_id=candidate_id),
        to=f"/candidates/{candidate_id}#signatures",
        again=lambda refused: show_review(request, pool, user, candidate_id, refused=refused, typed=form),
    )


@router.post("/candidates/{candidate_id}/promotion", **people("approver"))
def promote(
    *,
    request: Request,
    pool: Pool,
    user: CurrentUser,
    candidate_id: Id,
    key: forms.Key,
    expected: Annotated[int, Form()],
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Make a candidate the champion in place of the one that the page showed."""

    def work() -> str:
        seen = None if expected == _NOBODY else expected
        wish = forms.asked(promotions_api.Promote, expected_champion=seen, reason=reason)
        promotions_api.promote(user, pool, key, candidate_id, wish)
        return f"/candidates/{candidate_id}"

    return forms.done(
        work, again=lambda refused: show_review(request, pool, user, candidate_id, refused=refused, reason=reason)
    )


@router.get("/lines/{line}/champions", **people(*ANYONE))
def show_champions(request: Request, pool: Pool, line: str) -> Response:
    """Show who was champion of a line, from when to when."""
    return _show_champions(request, pool, line)


@router.post("/lines/{line}/roll-back", **people("approver", "operator"))
def roll_back(
    *,
    request: Request,
    pool: Pool,
    user: CurrentUser,
    line: str,
    key: forms.Key,
    expected: Annotated[int, Form()],
    reason: Annotated[str, Form()] = "",
) -> Response:
    """Bring back the champion before the one that the page showed."""

    def work() -> str:
        wish = forms.asked(promotions_api.RollBack, expected_champion=expected, reason=reason)
        promotions_api.roll_back(user, pool, key, line, wish)
        return f"/lines/{line}/champions"

    return forms.done(work, again=lambda refused: _show_champions(request, pool, line, refused=refused, reason=reason))


@router.get("/lines/{line}/compare", **people(*ANYONE))
def compare(
    *,
    request: Request,
    pool: Pool,
    user: CurrentUser,
    line: str,
    left: Annotated[int, Query(ge=1, le=2**63 - 1)],
    right: Annotated[int, Query(ge=1, le=2**63 - 1)],
) -> Response:
    """Set what was measured of any two models of a line side by side."""
    with db.transaction(pool) as connection:
        row = lines.get_line(connection, line)
        known = candidates.list_candidates(connection, row.line_id)
        sides = [candidates.get(connection, candidate_id) for candidate_id in (left, right)]
        if any(side.line_id != row.line_id for side in sides):
            raise WrongLine(f"not both of these are models of {line}")
        shown = [disclosure.latest_report(connection, side.candidate_id, reader=user) for side in sides]
        versions = [datasets.get(connection, side.dataset_version_id) for side in sides]
        made_by = [runs.get(connection, side.run_id) for side in sides]
        protocols = [lines.protocol(connection, side.protocol_id) for side in sides]
    reports = [one.report if one else None for one in shown]
    names = list(dict.fromkeys(name for report in reports for name in _measured(report)))
    rows = [(name, [_measured(report).get(name) for report in reports]) for name in names]
    plots = [
        gate_page.plots_of(report.document if report else {}, name=f"model {side.number}", drawn_as=drawn_as)
        for side, report, drawn_as in zip(sides, reports, ("candidate", "champion"), strict=True)
    ]
    return page(
        request,
        "compare.html",
        line=line,
        known=known,
        sides=sides,
        reports=reports,
        versions=versions,
        runs=made_by,
        protocols=protocols,
        rows=rows,
        plots=plots,
    )


def _measured(report: GateReport | None) -> dict[str, dict[str, Any]]:
    rows = report.document.get("results", ()) if report else ()
    return {row["name"]: row for row in rows}


def show_review(
    request: Request,
    pool: db.Pool,
    user: User,
    candidate_id: int,
    *,
    refused: dict[str, Any] | None = None,
    typed: forms.Signature | None = None,
    reason: str = "",
    said: str = "",
) -> Response:
    """Show a candidate with all that a decision about it rests on; again, where a form on it was refused."""
    with db.transaction(pool) as connection:
        review = _review(connection, candidate_id, user=user)
    return page(
        request,
        "candidate.html",
        line=review.line,
        review=review,
        shown=_drawn(review),
        meaning=approvals.MEANING,
        nobody=_NOBODY,
        refused=refused,
        typed=typed or forms.UNSIGNED,
        reason=reason,
        said=said,
    )


def _drawn(review: Review) -> gate_page.View | None:
    if review.report is None or review.withheld:
        return None
    return gate_page.view(review.report.document, digest=review.report.digest)


def _review(connection: db.Connection, candidate_id: int, *, user: User) -> Review:
    candidate = candidates.get(connection, candidate_id)
    shown = disclosure.latest_report(connection, candidate_id, reader=user)
    report = shown.report if shown else None
    champion = promotions.champion(connection, candidate.line_id)
    protocol = lines.current_protocol(connection, candidate.line_id)
    run = runs.get(connection, candidate.run_id)
    version = datasets.get(connection, candidate.dataset_version_id)
    compared = report.champion_candidate_id if report else None
    standing = approvals.standing(connection, candidate_id)
    withheld = shown is not None and shown.withheld
    return Review(
        line=lines.line_by_id(connection, candidate.line_id).name,
        candidate=candidate,
        run=run,
        asked_by=users.get_user(connection, run.requested_by).printed_name if run.requested_by else None,
        version=version,
        before=datasets.before(connection, version),
        protocol=lines.protocol(connection, candidate.protocol_id),
        report=report,
        withheld=withheld,
        champion=champion,
        compared_with=candidates.get(connection, compared) if compared else None,
        signed=approvals.list_for_candidate(connection, candidate_id),
        standing=frozenset(one.approval_id for one in standing),
        required=protocol.document["approvals"]["required"],
        comments=None if withheld else comments.list_for_candidate(connection, candidate_id),
        signers=comments.may_still_sign(connection, candidate),
        flips=of_report(connection, report.document if report else {}, user=user),
        sign_blocked=signing.why_not(partial(approvals.check_signable, connection, candidate), user),
        promote_blocked=_why_not_promote(connection, candidate, champion=champion),
    )


def _why_not_promote(connection: db.Connection, candidate: Candidate, *, champion: Candidate | None) -> str | None:
    try:
        promotions.check_promotable(connection, candidate, champion_id=champion.candidate_id if champion else None)
    except RegistryError as refused:
        return str(refused)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reign:
    """A promotion with the names of what it tells of."""

    promotion: Promotion
    number: int
    by: str
    signed: list[Approval]


def _show_champions(
    request: Request, pool: db.Pool, name: str, *, refused: dict[str, Any] | None = None, reason: str = ""
) -> Response:
    with db.transaction(pool) as connection:
        line = lines.get_line(connection, name)
        reigns = [
            Reign(
                promotion=one,
                number=candidates.get(connection, one.candidate_id).number,
                by=users.get_user(connection, one.promoted_by).printed_name,
                signed=[
                    given
                    for given in approvals.list_for_candidate(connection, one.candidate_id)
                    if given.bound_digest == one.bound_digest and given.decision == "approve"
                ],
            )
            for one in promotions.history(connection, line.line_id)
        ]
        champion = promotions.champion(connection, line.line_id)
        previous = promotions.previous(connection, line.line_id)
    return page(
        request,
        "champions.html",
        line=name,
        reigns=reigns,
        champion=champion,
        previous=previous,
        refused=refused,
        reason=reason,
    )
