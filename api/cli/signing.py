"""`approve` and `reject`, one pair of commands for all that people sign: candidates and amendments.

The password is asked for each time, after what is signed was shown; an API key alone does not sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from api.cli.client import Client
from api.cli.options import JsonFlag, PasswordStdinFlag, ReasonOption
from api.cli.output import answer
from api.cli.secrets import password

Numbered = Annotated[int, typer.Argument(metavar="ID", help="As the list shows it")]


def add_commands(
    group: typer.Typer,
    *,
    what: Literal["candidates", "amendments"],
    told: Callable[[dict[str, Any]], None],
    first: Callable[[Client, int], None] = lambda _client, _number: None,
    approve: str,
    reject: str,
) -> None:
    """Add both commands to a group; `first` shows what is to be signed, `told` what came of it, to people."""

    def sign(number: int, *, decision: str, reason: str, stdin: bool, as_json: bool) -> None:
        with Client() as client:
            name = client.get("/v1/session")["name"]
            if not as_json:
                first(client, number)
            wish = {"decision": decision, "reason": reason, "password": password(f"Password of {name}", stdin=stdin)}
            made = client.post(f"/v1/{what}/{number}/approvals", json=wish)
        if as_json:
            answer(made, as_json=True)
        else:
            told(made)

    @group.command("approve", help=approve)
    def _approve(
        number: Numbered, reason: ReasonOption, password_stdin: PasswordStdinFlag = False, as_json: JsonFlag = False
    ) -> None:
        sign(number, decision="approve", reason=reason, stdin=password_stdin, as_json=as_json)

    @group.command("reject", help=reject)
    def _reject(
        number: Numbered, reason: ReasonOption, password_stdin: PasswordStdinFlag = False, as_json: JsonFlag = False
    ) -> None:
        sign(number, decision="reject", reason=reason, stdin=password_stdin, as_json=as_json)
