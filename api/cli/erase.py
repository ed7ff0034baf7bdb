"""`overread erase`: take what the service holds away from a patient who asks for it (GDPR Art. 17)."""

from __future__ import annotations

import getpass
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.errors import Refused, SetupError
from api.cli.home import home_at, read_secrets
from api.cli.options import HomeOption, JsonFlag, ReasonOption
from api.cli.output import answer, say, screen

if TYPE_CHECKING:
    from registry.erasures import Concerned

BYTES_SECONDS = 120.0  # patience with the worker; the job goes on after it
KINDS = ("dataset_version", "run", "candidate")


def erase(
    *,
    reason: ReasonOption,
    patient: Annotated[
        str | None, typer.Option(help="Identifier as the submitter sent it; - reads it from standard input")
    ] = None,
    pseudonym: Annotated[str | None, typer.Option(help="The case's `patient`, where the identifier is lost")] = None,
    line: Annotated[str | None, typer.Option(help="Only on this line [default: on every line]")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again")] = False,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Erase a patient: pixels, pseudonym and attributes go for good; what happened stays on record, of nobody.

    Names every dataset version, run and candidate that has learned from them. Runs that still do are stopped; a line
    whose champion did gets a new run. The bytes are removed by the worker. Backups cannot be reached from here.
    Needs the database as its owner: the service itself may not erase.

    Example: echo 4711 | overread erase --patient - --reason "request of 3 May, file 12"
    """
    from api.cli.backup import owner_url  # noqa: PLC0415 - `overread --help` must be quick
    from registry import db, erasures  # noqa: PLC0415
    from registry.errors import Forbidden, RegistryError  # noqa: PLC0415

    digest = erasures.digest_of_patient(_pseudonym(patient, pseudonym, home=home))
    url = owner_url(home_at(home))
    with db.connect(url) as connection:
        found = erasures.find(connection, patient_digest=digest, line=line)
    if not found:
        raise Refused("there is no case of this patient" + (f" on {line}" if line else ""), fix="check the identifier")
    if not yes:
        counted = ", ".join(f"{count} cases of {name}" for name, count in found.items())
        typer.confirm(f"{counted} will be erased. This cannot be undone. Go on?", abort=True, err=True)
    try:
        with db.connect(url) as connection:
            actor = f"{getpass.getuser()} (command line)"
            made = erasures.erase(connection, patient_digest=digest, line=line, reason=reason, actor=actor)
            concerned = erasures.concerned(connection, made.erasure_id)
    except Forbidden as error:
        raise Refused(str(error), fix="set OVERREAD_OWNER_DATABASE_URL for this one command") from error
    except RegistryError as error:
        raise Refused(str(error)) from error
    if as_json:
        answer({**asdict(made), "concerned": [asdict(item) for item in concerned]}, as_json=True)
    _tell(made.erasure_id, concerned)
    _wait_for_bytes(url, made.erasure_id)
    say("Backups still hold the images. Take a new one into each folder of backups, so that the folder knows of this")
    say("erasure: `overread backup DIR --keep 1` drops the older ones too; `overread restore` erases again by itself.")


def _pseudonym(patient: str | None, pseudonym: str | None, *, home: str | None) -> str:
    if (patient is None) == (pseudonym is None):
        raise SetupError("give either --patient or --pseudonym", fix="overread erase --help")
    if pseudonym is not None:
        return pseudonym.strip()
    assert patient is not None
    from api.v1.cases import pseudonym as hashed  # noqa: PLC0415 - only for this

    identifier = sys.stdin.readline() if patient == "-" else patient
    if not identifier.strip():
        raise SetupError("the identifier is empty", fix="echo IDENTIFIER | overread erase --patient -")
    key = os.environ.get("OVERREAD_PATIENT_KEY") or read_secrets(home_at(home)).get("OVERREAD_PATIENT_KEY")
    if not key:
        raise SetupError("OVERREAD_PATIENT_KEY is not known here", fix="set it, or give --pseudonym")
    return hashed(identifier, key=bytes.fromhex(key))


def _tell(erasure_id: int, concerned: list[Concerned]) -> None:
    cases = [item for item in concerned if item.subject == "case"]
    say(f"✓ erasure {erasure_id}: {len(cases)} cases are nobody's any more")
    for item in concerned:
        if item.subject in KINDS:
            state = f", {item.state}" if item.state else ""
            say(f"  {item.line}: {item.name}{state}, learned from this patient")


def _wait_for_bytes(url: str, erasure_id: int) -> None:
    from registry import audit, db  # noqa: PLC0415

    until = time.monotonic() + BYTES_SECONDS
    with db.connect(url) as connection, screen().status("the worker removes the bytes ..."):
        while time.monotonic() < until:
            waiting = connection.execute(
                "SELECT count(*) FROM jobs WHERE kind = 'erase_bytes' AND (payload ->> 'erasure_id')::bigint = %s"
                " AND state <> 'succeeded'",
                (erasure_id,),
            ).fetchone()
            connection.rollback()
            if waiting == (0,):
                break
            time.sleep(0.2)
        else:
            say("! the bytes are not gone yet: the worker is busy or away; the job waits for it, and is not given up")
            return
        events = audit.list_events(connection, subject=f"erasure/{erasure_id}")
    for event in events:
        if event.action == "patient:erase_bytes":
            versions = ", ".join(event.details["dataset_versions"]) or "no dataset version"
            say(f"✓ {event.details['images']} images removed; {versions} can no longer be had")
            say(f"  next: {event.details['next']}")
