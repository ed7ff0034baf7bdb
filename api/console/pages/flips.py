"""Cases on which a candidate and the champion differ, with small pictures, to be looked at before anybody signs.

Which cases these are is part of the gate report, and open only to whom that is; to see an image is written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from api.console.pictures import thumbnail
from api.console.route import pages_router, people
from api.dependencies import CurrentReader, Id, Pool, Settings
from registry import blobs, cases, db, disclosure, reads
from registry.errors import Forbidden, NotFound
from registry.users import Role, User

router = pages_router()

LOOKERS: tuple[Role, ...] = ("submitter", "reviewer", "approver")
LISTED = 25
"""Cases of each kind on the page; all of them are in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """What is known of the cases of a page: those that have an image, and those that this person has looked at."""

    pictured: frozenset[int]
    looked_at: frozenset[int]


def of_report(connection: db.Connection, document: Mapping[str, Any], *, user: User) -> Flips:
    """Find out what is known of the cases that a report lists."""
    listed = [number for kind in ("lost", "gained") for number in _cases(document, kind)[:LISTED]]
    return Flips(
        pictured=frozenset(cases.with_image(connection, listed)),
        looked_at=frozenset(reads.cases_seen(connection, user_id=user.user_id, case_ids=listed)),
    )


@router.get("/candidates/{candidate_id}/flips/{case_id}.png", **people(*LOOKERS))
def picture(reader: CurrentReader, pool: Pool, settings: Settings, candidate_id: Id, case_id: Id) -> Response:
    """Give a small picture of a case on which the two models differ."""
    with db.transaction(pool) as connection:
        shown = disclosure.latest_report(connection, candidate_id, reader=reader.user)
        if shown is None or shown.withheld:
            raise Forbidden("the report that lists this case is not open to you yet")
        if case_id not in set(_all_cases(shown.report.document)):
            raise NotFound(f"the report lists no case {case_id}")
        case = cases.get_case(connection, case_id)
        if case.erasure_id is not None:
            raise NotFound(f"the image of case {case_id} has been erased at its patient's request")
        reader.sees(connection, "image:read", case_id=case_id, line_id=case.line_id, candidate=candidate_id)
    small = thumbnail(blobs.read(settings.blob_root, case.image_digest))
    return Response(small, media_type="image/png", headers={"Cache-Control": "no-store"})


def _cases(document: Mapping[str, Any], kind: str) -> list[int]:
    flips = (document.get("evidence") or {}).get("flips") or {}
    return [int(one["case"]) for one in flips.get(kind, ())]


def _all_cases(document: Mapping[str, Any]) -> Iterator[int]:
    for kind in ("lost", "gained"):
        yield from _cases(document, kind)
