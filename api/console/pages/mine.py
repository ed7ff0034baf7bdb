"""A reader's own answers: what they said, what became of it, and a way to correct it."""

from __future__ import annotations

from fastapi import Request, Response

from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import CurrentReader, Pool
from registry import contributions, db, lines

router = pages_router()

PER_PAGE = 50


@router.get("/mine", **people("submitter", "reviewer"))
def mine(request: Request, reader: CurrentReader, pool: Pool, before: int | None = None) -> Response:
    """List what this person said, newest first, and the models that learned from it."""
    user = reader.user
    with db.transaction(pool) as connection:
        said = contributions.of_person(connection, user_id=user.user_id, before=before, limit=PER_PAGE)
        names = {line.line_id: line.name for line in lines.list_lines(connection)}
        reached = {
            names[line_id]: contributions.reached(connection, user_id=user.user_id, name=user.name, line_id=line_id)
            for line_id in contributions.lines_of_person(connection, user.user_id)
        }
        if said:
            span = {"first": said[-1].case_id, "last": said[0].case_id, "cases": len(said)}
            reader.sees(connection, "confirmation:list", **span)
    return page(request, "mine.html", said=said, names=names, reached=reached, full=len(said) == PER_PAGE)
