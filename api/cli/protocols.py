"""`overread protocol`: check a protocol, read it in words, see clause by clause what is another, and amend it.

What a valid protocol is belongs to the science, in a process of its own. Only amendments need a service: a line's
protocol changes once enough people other than its proposer have signed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli import signing
from api.cli.client import Client
from api.cli.options import JsonFlag, LineOption, ReasonOption
from api.cli.output import answer, say

protocols = typer.Typer(no_args_is_help=True, help="Protocols: what is said in advance about how a model may change.")

AMENDMENT_COLUMNS = ("amendment_id", "state", "proposer", "reason", "changes", "required", "signed", "created_at")

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


@protocols.command("amend")
def amend(file: File, reason: ReasonOption, line: LineOption = None, as_json: JsonFlag = False) -> None:
    """Propose the protocol in FILE in the place of the one in force. It changes nothing until others have signed it.

    Example: overread protocol amend cxr-pneumonia.yaml --reason "900 sealed cases can show a smaller margin"
    """
    with Client() as client:
        wish = {"protocol": file.read_text(encoding="utf-8"), "reason": reason}
        made = client.post(f"/v1/lines/{client.line(line)}/amendments", json=wish)
    if as_json:
        answer(made, as_json=True)
    else:
        _print_changes(made)
    number, required = made["amendment_id"], made["required"]
    say(f"! amendment {number} is proposed, and nothing has changed: {required} others have to sign it")
    say(f"  each with: overread protocol approve {number} --reason ...")


@protocols.command("amendments")
def list_amendments(line: LineOption = None, as_json: JsonFlag = False) -> None:
    """List what was ever proposed to change in a line's protocol, what became of it, and who signed.

    Example: overread protocol amendments --line cxr-pneumonia
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/amendments")
    shown = rows if as_json else [{**row, "signed": _signed(row)} for row in rows]
    answer(shown, as_json=as_json, columns=AMENDMENT_COLUMNS, empty="Nobody has proposed an amendment.")


def _tell(made: dict[str, Any]) -> None:
    number, given, required = made["amendment_id"], len(made["approvals"]), made["required"]
    done = {
        "adopted": f"✓ amendment {number} is in force; what comes now is judged by it",
        "rejected": f"✓ amendment {number} is rejected; the protocol stays as it is",
    }
    say(done.get(made["state"], f"✓ signed; {required - given} more people have to sign"))


def _show_changes(client: Client, amendment_id: int) -> None:
    _print_changes(client.get(f"/v1/amendments/{amendment_id}"))


def _print_changes(amendment: dict[str, Any]) -> None:
    for change in amendment["changes"]:
        typer.echo(change)


signing.add_commands(
    protocols,
    what="amendments",
    first=_show_changes,
    told=_tell,
    approve="""Sign an amendment, with your password. The last signature that is needed puts the protocol in force.

    Example: overread protocol approve 2 --reason "It asks for more evidence, and we have the cases"
    """,
    reject="""Reject an amendment, with your password; one rejection ends it.

    Example: overread protocol reject 2 --reason "The margin is wider than a clinician would accept"
    """,
)


def _signed(amendment: dict[str, Any]) -> list[str]:
    return [f"{one['printed_name']} ({one['decision']})" for one in amendment["approvals"]]


def _ask(*arguments: str) -> None:
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "pipelines.wording", *arguments], check=False)
    raise typer.Exit(done.returncode)
