"""`overread protocol`: check a protocol, read it in words, and see clause by clause what is another.

What a valid protocol is belongs to the science, in a process of its own; nothing here needs a service.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

protocols = typer.Typer(no_args_is_help=True, help="Protocols: what is said in advance about how a model may change.")

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)]


@protocols.command("check")
def check(file: File) -> None:
    """Check a protocol (YAML) and print its digest, or each field that is at fault.

    Example: overread protocol check pipelines/protocols/cxr-pneumonia.yaml
    """
    _ask("check", str(file))


@protocols.command("explain")
def explain(file: File) -> None:
    """Say in words what a protocol asks for, and what each use of its sealed test is worth.

    Example: overread protocol explain pipelines/protocols/cxr-pneumonia.yaml
    """
    _ask("explain", str(file))


@protocols.command("diff")
def diff(
    before: File, after: Annotated[Path, typer.Argument(metavar="AFTER", exists=True, dir_okay=False, readable=True)]
) -> None:
    """Name every clause that is another in AFTER, and which of them ask for less evidence. Exit code 1: they differ.

    Example: overread protocol diff protocol-v1.yaml protocol-v2.yaml
    """
    _ask("diff", str(before), str(after))


@protocols.command("schema")
def schema() -> None:
    """Print the JSON Schema of a protocol, for an editor that completes and checks as you type.

    Example: overread protocol schema > protocol.schema.json
    """
    _ask("schema")


def _ask(*arguments: str) -> None:
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "pipelines.wording", *arguments], check=False)
    raise typer.Exit(done.returncode)
