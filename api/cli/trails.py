"""The auditor's commands: what was changed, and who looked at what. One HTTP request each."""

from __future__ import annotations

from typing import Annotated

import typer

from api.cli.client import Client
from api.cli.options import JsonFlag
from api.cli.output import answer

AfterOption = Annotated[int, typer.Option(help="Only those with a greater id")]
LimitOption = Annotated[int, typer.Option(help="At most so many")]


def audit(after: AfterOption = 0, limit: LimitOption = 50, as_json: JsonFlag = False) -> None:
    """Read the audit trail: who did what, each event chained to the one before.

    Example: overread audit --after 100
    """
    with Client() as client:
        rows = client.get("/v1/audit", after=after, limit=limit)
    answer(rows, as_json=as_json, columns=("audit_event_id", "at", "actor", "action", "subject", "details"))


def reads(
    case_id: Annotated[int | None, typer.Option("--case", help="Only looks at this case")] = None,
    after: AfterOption = 0,
    limit: LimitOption = 50,
    as_json: JsonFlag = False,
) -> None:
    """Read who looked at cases, heat maps and predictions, when, and what for (OVERREAD_PURPOSE).

    Example: overread reads --case 4711
    """
    with Client() as client:
        rows = client.get("/v1/reads", after=after, limit=limit, case_id=case_id)
    columns = ("read_id", "at", "reader", "action", "case_id", "purpose", "details")
    answer(rows, as_json=as_json, columns=columns, empty="Nobody has looked.")
