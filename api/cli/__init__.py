"""The `overread` command: starts the service, and speaks to it.

Thin by intent: it starts processes, talks HTTP, or calls the record. Every heavy import waits inside the command that
needs it, so that `overread --help` answers at once.

    overread --help
"""

from __future__ import annotations

import sys

import typer

from api.cli import (
    cases,
    datasets,
    erase,
    importing,
    keeping,
    people,
    proof,
    protocols,
    service,
    trails,
    work,
    worklist,
)
from api.cli.errors import CliError
from api.cli.output import complain

app = typer.Typer(
    name="overread",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A second reader for diagnostic images: learns from every confirmed diagnosis, changes only with evidence.",
    epilog="Start with `overread demo`, or `overread up` and `overread doctor`. Not a medical device.",
)

HERE, DAILY, PEOPLE = "The service on this machine", "The loop", "People"
KEEPING = "Keeping the record"
app.command(rich_help_panel=HERE)(service.up)
app.command(rich_help_panel=HERE)(service.status)
app.command(rich_help_panel=HERE)(service.down)
app.command(rich_help_panel=HERE)(service.doctor)
app.command(rich_help_panel=HERE)(service.demo)
app.add_typer(work.lines, name="line", rich_help_panel=DAILY)
app.add_typer(protocols.protocols, name="protocol", rich_help_panel=DAILY)
app.add_typer(cases.cases, name="case", rich_help_panel=DAILY)
app.command(rich_help_panel=DAILY)(worklist.worklist)
app.command("import", rich_help_panel=DAILY)(importing.import_rows)
app.command(rich_help_panel=DAILY)(work.predict)
app.add_typer(datasets.datasets, name="dataset", rich_help_panel=DAILY)
app.add_typer(work.runs, name="run", rich_help_panel=DAILY)
app.add_typer(work.candidates, name="candidate", rich_help_panel=DAILY)
app.command(rich_help_panel=DAILY)(work.promote)
app.command("roll-back", rich_help_panel=DAILY)(work.roll_back)
app.command(rich_help_panel=DAILY)(trails.audit)
app.command(rich_help_panel=DAILY)(trails.reads)
app.add_typer(people.users, name="user", rich_help_panel=PEOPLE)
app.add_typer(people.keys, name="key", rich_help_panel=PEOPLE)
app.command(rich_help_panel=KEEPING)(keeping.backup)
app.command(rich_help_panel=KEEPING)(keeping.restore)
app.command(rich_help_panel=KEEPING)(keeping.drill)
app.command(rich_help_panel=KEEPING)(erase.erase)
app.command(rich_help_panel=KEEPING)(proof.verify)
app.command(rich_help_panel=KEEPING)(proof.export)


def main() -> None:
    """Run the command; expected failures end with a message, its fix and an exit code, never with a stack trace."""
    try:
        app()
    except CliError as error:
        complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)  # the reader of our answer left, as `head` does
