"""The command that says what to confirm next."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.client import Client
from api.cli.options import JsonFlag, LineOption
from api.cli.output import answer, say

COLUMNS = ("place", "case_id", "reason", "site", "scanner", "external_id", "created_at")


def worklist(
    *,
    line: LineOption = None,
    site: Annotated[str | None, typer.Option(help="Only cases of this site")] = None,
    reason: Annotated[
        str | None,
        typer.Option(help="Only blind, random, uncertain, diverse, unlike, coverage or disagreement"),
    ] = None,
    after: Annotated[int, typer.Option(help="Only places beyond this one")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many; 1 is the next case")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List the cases whose confirmation is worth most, most wanted first, each with its reason.

    Example: overread worklist --site north --limit 1
    """
    with Client() as client:
        path = f"/v1/lines/{client.line(line)}/worklist"
        found = client.get(path, site=site, reason=reason, after=after, limit=limit)
    if as_json:
        answer(found, as_json=True)
        return
    ranked_at = found["ranked_at"]
    empty = "Nothing waits to be confirmed." if ranked_at else "Nothing is ranked yet: the line needs some cases first."
    answer(found["cases"], as_json=False, columns=COLUMNS, empty=empty)
    if found["cases"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
        say(f"{found['ranked']} cases ranked at {ranked_at}: {shares}")
