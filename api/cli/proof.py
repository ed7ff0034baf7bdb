"""`overread verify` and `overread export`: the record proves itself, here or to somebody who trusts nobody here.

Exit codes of `verify`: 0 all is as it was recorded, 2 something is not and is named, 1 it could not be checked.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.errors import CliError, NotRunning, SetupError
from api.cli.home import Home, home_at, read_stack_file
from api.cli.options import HomeOption, JsonFlag
from api.cli.output import answer, say, screen
from api.cli.people import record_url

if TYPE_CHECKING:
    from psycopg import Connection

    from registry.bundle import Contents
    from registry.notes import Verifier
    from registry.verify import Finding, Tell

DAMAGED = 2
TOLD_TO_WORKERS = ("OVERREAD_MLFLOW_URL", "OVERREAD_DVC_REMOTE")
MARK = {"fine": "✓", "damaged": "✗", "skipped": "!"}


class NotChecked(CliError):
    """It could not be checked, so nothing is known: neither that it is whole nor that it is not."""


def verify(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A file of `overread export`, checked without the service")
    ] = None,
    home: HomeOption = None,
    checkpoint_folder: Annotated[
        Path | None,
        typer.Option("--checkpoints", metavar="DIR", help="Your own copy of the checkpoints [default: the home's]"),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Verifier key, or a file that holds it [default: the home's]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Work out the whole record again: audit trail, checkpoints, rows, files, datasets, champions, MLflow.

    Exit code 0: all is as it was recorded. 2: something is not, and is named. 1: it could not be checked. The service
    may go on working meanwhile; its database must run. An auditor gives a copy of the checkpoints and the verifier key
    that were kept elsewhere: what lies on this machine could have been replaced with the rest.

    Example: overread verify --checkpoints /mnt/worm/checkpoints --key overread/5f0c2a81b7d94e36+1a2b3c4d+AZ...
    """
    places = home_at(home)
    verifier = _verifier(places, key)
    with screen().status("reading ...") as status:

        def tell(what: str, done: int) -> None:
            status.update(f"checking {what}: {done:,}")

        if bundle is not None:
            findings = _of_bundle(bundle, verifier)
        else:
            folder = checkpoint_folder or _place(places, "OVERREAD_CHECKPOINTS", "checkpoints")
            findings = [
                *_of_record(places, home, folder=folder, verifier=verifier, tell=tell),
                *_of_workers(places, home, tell=lambda said: status.update(f"checking {said}")),
            ]
    damaged = [finding for finding in findings if finding.state == "damaged"]
    if as_json:
        answer([asdict(finding) for finding in findings], as_json=True)
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            say(f"{MARK[finding.state]} {finding.check:<{width}}  {finding.detail}")
        say(f"\n{len(damaged)} of {len(findings)} checks found damage." if damaged else "\nAll is as it was recorded.")
    if damaged:
        raise typer.Exit(DAMAGED)


def export(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it, e.g. case-7.tar")],
    case: Annotated[int | None, typer.Option(metavar="CASE_ID", help="A case: its row, confirmations, events")] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="LINE/NUMBER", help="A candidate: its evidence, signatures, events")
    ] = None,
    with_files: Annotated[
        bool, typer.Option("--with-files", help="With the image, or the weights, not only their digests")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", help="For whom and why; it goes into the audit trail")] = "",
    home: HomeOption = None,
) -> None:
    """Write what the record knows of one case or candidate, with proofs that hold without the service.

    Whoever gets the file checks it with `overread verify FILE --key VERIFIER`. It names no patient beyond the keyed
    pseudonym. That it was made is an audit event, which is in it.

    Example: overread export --candidate cxr-pneumonia/2 --reason "asked for by the notified body" -o candidate-2.tar
    """
    from registry import audit, bundle, checkpoints, notes  # noqa: PLC0415 - `overread --help` must be quick

    if (case is None) == (candidate is None):
        raise SetupError("say what to export", fix="either --case ID or --candidate LINE/NUMBER")
    places = home_at(home)
    folder = _place(places, "OVERREAD_CHECKPOINTS", "checkpoints")
    with _opened(home) as connection, screen().status("collecting ..."):
        found = _found(connection, case=case, candidate=candidate, up_to=0)
        audit.record(
            connection,
            actor=audit.SYSTEM,
            action="export:case" if case is not None else "export:candidate",
            subject=found.subject,
            details={"by": getpass.getuser(), "reason": reason, "files": with_files},
        )
        connection.commit()
        signer = notes.signer_at(_place(places, "OVERREAD_CHECKPOINT_KEY", "checkpoint.key"))
        checkpoints.take(connection, folder, signer=signer)
        note = checkpoints.files(folder)[-1].read_text(encoding="utf-8")
        size = signer.verifier.opened(note).size
        contents = _found(connection, case=case, candidate=candidate, up_to=size)
        blob_root = _place(places, "OVERREAD_BLOB_ROOT", "blobs") if with_files else None
        events = bundle.write(
            connection, output, contents=contents, note=note, verifier=signer.verifier, files=blob_root
        )
    say(f"✓ {output}: {events} events and {len(contents.rows)} rows, under the checkpoint of now")
    say(f"  check it anywhere with: overread verify {output} --key {signer.verifier}")


def _found(connection: Connection[Any], *, case: int | None, candidate: str | None, up_to: int) -> Contents:
    from registry import bundle  # noqa: PLC0415 - `overread --help` must be quick

    if case is not None:
        return bundle.of_case(connection, case, up_to=up_to)
    line, _, number = (candidate or "").rpartition("/")
    if not line or not number.isdecimal():
        raise SetupError(f"{candidate} names no candidate", fix="write its line and number, e.g. cxr-pneumonia/2")
    return bundle.of_candidate(connection, line=line, number=int(number), up_to=up_to)


def _of_record(places: Home, home: str | None, *, folder: Path, verifier: Verifier, tell: Tell) -> Iterator[Finding]:
    import psycopg  # noqa: PLC0415 - `overread --help` must be quick

    from registry import verify as checks  # noqa: PLC0415

    with _opened(home) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # one look, which no writer moves
        connection.read_only = True
        yield from checks.check_trail(connection, folder=folder, verifier=verifier, tell=tell)
        yield from checks.check_rows(connection, tell=tell)
        yield checks.check_reads(connection)
        yield checks.check_protocols(connection)
        yield checks.check_champions(connection)
        yield checks.check_sealed_tests(connection)
        yield checks.check_blobs(connection, root=_place(places, "OVERREAD_BLOB_ROOT", "blobs"), tell=tell)


def _of_workers(places: Home, home: str | None, *, tell: Any) -> Iterator[Finding]:
    """What only the workers' side can read, in a process of its own: the doors import neither science nor MLflow."""
    from registry.verify import Finding  # noqa: PLC0415 - `overread --help` must be quick

    stack = read_stack_file(places)
    told = {"OVERREAD_MLFLOW_URL": stack.mlflow_url} if stack is not None else {}
    told |= {name: os.environ[name] for name in TOLD_TO_WORKERS if os.environ.get(name)}
    told |= {"OVERREAD_HOME": str(places.root), "OVERREAD_DATABASE_URL": record_url(home)}
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    environment = surroundings | told
    command = [sys.executable, "-m", "workers.verify"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for text in child.stdout:
            row = json.loads(text)
            if "done" in row:
                tell(row["done"])
            else:
                yield Finding(**row)
        complaint = child.stderr.read().strip()
    if child.returncode != 0:
        raise NotChecked(f"datasets and MLflow could not be checked: {complaint[-1500:]}")


def _of_bundle(bundle: Path, verifier: Verifier) -> list[Finding]:
    from registry import bundle as bundles  # noqa: PLC0415 - `overread --help` must be quick

    try:
        return bundles.check(bundle, verifier)
    except OSError as error:
        raise NotChecked(f"{bundle} cannot be read: {error.strerror}") from error


def _verifier(places: Home, given: str | None) -> Verifier:
    from registry.errors import NoteRefused  # noqa: PLC0415 - `overread --help` must be quick
    from registry.notes import Verifier, verifier_path  # noqa: PLC0415

    kept = verifier_path(_place(places, "OVERREAD_CHECKPOINT_KEY", "checkpoint.key"))
    try:
        if given is not None and "+" in given and not Path(given).exists():
            return Verifier.parse(given)
        return Verifier.parse(Path(given or kept).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotChecked(
            f"there is no verifier key at {given or kept}: {error.strerror}",
            fix="give the one that `overread up` printed: --key overread/…+…+…, or a file that holds it",
        ) from error
    except NoteRefused as refusal:
        raise NotChecked(f"{given or kept}: {refusal}") from refusal


@contextlib.contextmanager
def _opened(home: str | None) -> Iterator[Connection[Any]]:
    """A connection to the record. Raises NotChecked."""
    import psycopg  # noqa: PLC0415 - `overread --help` must be quick

    from registry import db  # noqa: PLC0415
    from registry.errors import RegistryError  # noqa: PLC0415

    try:
        with db.connect(record_url(home)) as connection:
            yield connection
    except RegistryError as error:
        raise NotChecked(str(error)) from error
    except psycopg.OperationalError as error:
        raise NotChecked(
            f"the database does not answer: {str(error).strip().splitlines()[-1]}", fix="see `overread doctor`"
        ) from error
    except NotRunning as error:  # for `verify` that is exit code 1, like all it cannot look at
        raise NotChecked(error.message, fix=error.fix) from error


def _place(places: Home, setting: str, name: str) -> Path:
    return Path(os.environ.get(setting) or places.root / name).expanduser()
