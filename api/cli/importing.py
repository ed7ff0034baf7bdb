"""`overread import`: an archive of images and diagnoses into a line, row by row, as often as it takes.

A client of the HTTP API like any other: no second path into the record. It keeps nothing on this machine; what is
there already is what the service says is there. `docs/importing.md` is its manual.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from api.cli.client import Client
from api.cli.errors import SetupError
from api.cli.formats import open_source
from api.cli.options import JsonFlag, LineOption
from api.cli.output import answer, say, screen
from api.cli.rules import Ready, Rules
from api.cli.sending import AGAIN, Sender, Sent, chunks
from api.cli.sources import FIELDS, Row, Source, Wrong
from registry.findings import JOIN, NONE, are_several

REASONS_SHOWN = 10
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Tally:
    """What has become of the rows so far; the wrong ones go to the list of errors as they come."""

    rows: int
    dry: bool
    errors: Any = None  # a csv writer
    done: int = 0
    created: int = 0
    already_there: int = 0
    confirmed: int = 0
    already_confirmed: int = 0
    unconfirmed: int = 0
    rejected: int = 0
    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def add(self, outcome: Sent | Wrong | Ready) -> None:
        """Count one row; one that is ready was only judged, in a dry run."""
        self.done += 1
        if isinstance(outcome, Wrong):
            self._reject(outcome)
        if not isinstance(outcome, Sent):
            return
        self.created += outcome.case_made
        self.already_there += not outcome.case_made
        self.confirmed += outcome.confirmed is True
        self.already_confirmed += outcome.confirmed is False
        self.unconfirmed += outcome.confirmed is None

    def _reject(self, wrong: Wrong) -> None:
        self.rejected += 1
        first = {"type": wrong.kind, "rows": 0, "first_row": wrong.number, "source_id": wrong.name}
        reason = self.reasons.setdefault(wrong.kind, first | {"detail": wrong.detail})
        reason["rows"] += 1
        if self.errors is not None:
            self.errors.writerow([wrong.number, wrong.name, wrong.kind, wrong.detail])

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.done / max(time.monotonic() - self.begun, 1e-6)

    def summary(self) -> dict[str, Any]:
        """The answer of the command."""
        sent = ("created", "already_there", "confirmed", "already_confirmed", "unconfirmed")
        counts = {name: getattr(self, name) for name in (() if self.dry else sent)}
        right = {"right": self.done - self.rejected} if self.dry else {}
        return {
            "rows": self.done,
            **right,
            **counts,
            "rejected": self.rejected,
            "rows_per_second": round(self.rate, 1) if self.rate < 100 else round(self.rate),
        }


def import_rows(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", exists=True, help="A folder with index.csv, or a CSV, NPZ, NDJSON, Parquet"),
    ],
    *,
    line: LineOption = None,
    kind: Annotated[
        str | None, typer.Option("--format", help="csv, npz, ndjson, parquet [default: by its name]")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=FIELD", help=f"What a column is: {', '.join(FIELDS)}")
    ] = None,
    findings: Annotated[
        list[str] | None,
        typer.Option("--finding", metavar="LABEL=FINDING", help="What a label of the source is called in the protocol"),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site of rows that do not name one")] = None,
    scanner: Annotated[str | None, typer.Option(help="Scanner of rows that do not name one")] = None,
    evidence: Annotated[
        str | None, typer.Option(help="Evidence of rows that do not name theirs: report_text … pathology")
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help="Reader of rows that do not name one, as a stable pseudonym")
    ] = None,
    ai_exposure: Annotated[
        str, typer.Option(help="Of rows that do not say: blind, aided, or that it is not known")
    ] = "unknown",
    unconfirmed: Annotated[
        bool, typer.Option("--unconfirmed", help="Send rows without a finding too, as cases that wait for one")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Read images outside the source's folder too")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and judge every row, send none")] = False,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="CSV", help="Write a line for each rejected row here")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="How many chunks are sent at once")] = 4,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to go on asking a service that does not answer")
    ] = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Import an archive: images become cases, their findings confirmations. Run it again: what is there stays as it is.

    Ends with 0 if every row is in the record, 1 if some were rejected, 2 or 3 if it could not run.

    Example: overread import archive/ --line cxr-pneumonia --site north --evidence report_text --map diagnosis=finding
    """
    found = open_source(source, kind=kind, columns=_pairs(columns, "--map", known=FIELDS), follow=follow)
    defaults = {"site": site, "scanner": scanner, "evidence": evidence, "reader": reader, "ai_exposure": ai_exposure}
    with Client() as client, ExitStack() as stack:
        name = client.line(line)
        document = client.get(f"/v1/lines/{name}")["protocol"]["document"]
        classes, several = document["classes"], are_several(document)
        named = _pairs(findings, "--finding", known=[*classes, NONE] if several else classes, several=several)
        rules = Rules(classes=classes, several=several, findings=named, defaults=defaults, unconfirmed=unconfirmed)
        _introduce(found)
        writer = csv.writer(stack.enter_context(_new_file(errors))) if errors else None
        if writer:
            writer.writerow(["row", "source_id", "type", "detail"])
        tally = Tally(rows=found.count(), dry=dry_run, errors=writer)
        sender = Sender(client, line=name, patience_seconds=patience)
        try:
            with _shown(tally) as show:
                ready = _judged(found, rules, tally=tally, show=show)
                if dry_run:
                    for row in ready:
                        tally.add(row)
                        show()
                else:
                    _send(ready, sender=sender, workers=workers, tally=tally, show=show)
        except BaseException:
            say(f"! stopped after {tally.done} of {tally.rows} rows; {AGAIN}")
            raise
        finally:
            _tell(tally, errors=errors, as_json=as_json)
    if tally.rejected:
        raise typer.Exit(1)


def _judged(source: Source, rules: Rules, *, tally: Tally, show: Callable[[], None]) -> Iterator[Ready]:
    """Give the rows that may be sent; count the others."""
    for row in source.rows():
        judged = rules.judge(row) if isinstance(row, Row) else row
        if isinstance(judged, Wrong):
            tally.add(judged)
            show()
        else:
            yield judged


def _send(ready: Iterable[Ready], *, sender: Sender, workers: int, tally: Tally, show: Callable[[], None]) -> None:
    pending: set[Future[list[Sent | Wrong]]] = set()

    def gather() -> None:
        nonlocal pending
        ended, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in ended:
            for outcome in future.result():
                tally.add(outcome)
        show()

    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk in chunks(ready):
                pending.add(pool.submit(sender.send, chunk))
                while len(pending) >= 2 * workers:  # no more than that is held in memory
                    gather()
            while pending:
                gather()
        except BaseException:
            sender.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _shown(tally: Tally) -> Iterator[Callable[[], None]]:
    """Show progress on a terminal as a bar, elsewhere as a line now and then; gives what is called after each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = screen()
    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=tally.rows, rate="")
            yield lambda: progress.update(task, completed=tally.done, rate=f"{tally.rate:.0f} rows/s")
        return
    told = time.monotonic()

    def tell() -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            left = (tally.rows - tally.done) / tally.rate
            say(f"{tally.done} of {tally.rows} rows, {tally.rate:.0f} rows/s, about {left:.0f} s left")

    yield tell


def _introduce(source: Source) -> None:
    used = source.field_of()
    say(f"  read: {', '.join(name if name == field else f'{name} as {field}' for name, field in used.items())}")
    if unused := [name for name in source.columns() if name not in used and name not in FIELDS]:
        say(f"  not used, and not sent: {', '.join(unused)}")


def _tell(tally: Tally, *, errors: Path | None, as_json: bool) -> None:
    reasons = sorted(tally.reasons.values(), key=lambda reason: -reason["rows"])
    if as_json:
        answer(tally.summary() | {"reasons": reasons}, as_json=True)
        return
    answer(tally.summary(), as_json=False)
    for reason in reasons[:REASONS_SHOWN]:
        say(f"✗ {reason['rows']} × {reason['type']}, first row {reason['first_row']} ({reason['source_id']})")
        say(f"    {reason['detail']}")
    if tally.rejected and errors:
        say(f"  every rejected row is in {errors}; mend them in the source and run the same command again")
    elif tally.rejected:
        say("  for a list of every rejected row add --errors FILE.csv")


def _new_file(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from None


def _pairs(given: list[str] | None, option: str, *, known: Collection[str], several: bool = False) -> dict[str, str]:
    """Read NAME=VALUE options; a VALUE may be `several` joined. Raises SetupError where it is unknown, or no pair."""
    pairs = {}
    for text in given or ():
        name, equals, value = text.rpartition("=")
        values = value.split(JOIN) if several else [value]
        if not equals or not name or not set(values) <= {*known}:
            raise SetupError(
                f"{option} {text} says nothing", fix=f"write {option} NAME=…, with one of {', '.join(known)}"
            )
        pairs[name] = value
    return pairs
