"""Passwords as the command line takes them: typed unseen, or from standard input; never an argument.

What stands on a command line is seen by every user of the machine, and kept in the shell's history.
"""

from __future__ import annotations

import sys

import typer

from api.cli.errors import SetupError


def password(prompt: str, *, stdin: bool) -> str:
    """Ask for a password, or read it from standard input up to the end of the line.

    Raises:
        SetupError: there is nobody to ask, or nothing was given.
    """
    if stdin:
        given = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        given = str(typer.prompt(prompt, hide_input=True, err=True))
    else:
        raise SetupError(
            "a password is needed, and there is no terminal to ask at", fix="give it with --password-stdin"
        )
    if not given:
        raise SetupError("no password was given")
    return given


def new_password(name: str, *, stdin: bool) -> str:
    """Ask for a new password twice, or read it from standard input once.

    Raises:
        SetupError: the two differ, or there is none.
    """
    given = password(f"New password of {name}", stdin=stdin)
    if not stdin and password("Once more", stdin=False) != given:
        raise SetupError("the two passwords differ", fix="try again; nothing was changed")
    return given
