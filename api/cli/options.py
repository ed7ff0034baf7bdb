"""Options that many commands share, worded once."""

from __future__ import annotations

from typing import Annotated

import typer

HomeOption = Annotated[
    str | None,
    typer.Option("--home", metavar="DIR", help="Home folder of the service [default: OVERREAD_HOME or ~/.overread]"),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the answer as JSON")]
LineOption = Annotated[str | None, typer.Option("--line", help="Name of the line [default: the only one there is]")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in a sentence that an auditor will understand")]
PasswordStdinFlag = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking for it")
]
