"""The commands of cases: send images, confirm what they show, and settle what readers disagree about.

Each is one or two HTTP requests as the person whose OVERREAD_API_KEY it is; the service decides what is allowed.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated

import typer

from api.cli.client import Client
from api.cli.errors import Refused, SetupError
from api.cli.options import JsonFlag, LineOption, ReasonOption
from api.cli.output import answer

cases = typer.Typer(no_args_is_help=True, help="Send images, confirm their diagnoses, settle disagreement.")

MEDIA_TYPES = {".png": "image/png", ".npy": "application/x-npy", ".dcm": "application/dicom"}

CaseArgument = Annotated[int, typer.Argument(metavar="CASE_ID")]
KeyOption = Annotated[str | None, typer.Option("--idempotency-key", help="Give the same again to repeat safely")]
ExposureOption = Annotated[
    str, typer.Option("--ai-exposure", help="Had the reader seen the prediction? blind, aided or unknown")
]


@cases.command("submit")
def submit_cases(
    *,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False, readable=True)],
    site: Annotated[str, typer.Option(help="Where it was taken, in your own short name, e.g. north")],
    patient: Annotated[str | None, typer.Option(help="Identifier of the patient; only its keyed hash is kept")] = None,
    line: LineOption = None,
    scanner: Annotated[str | None, typer.Option(help="Short name of the device")] = None,
    sex: Annotated[str | None, typer.Option(help="female, male or other")] = None,
    age_band: Annotated[str | None, typer.Option(help="A range of years: 1-5, 90+")] = None,
    external_id: Annotated[
        str | None, typer.Option(help="Your own id of the image; makes sending it again safe (one file only)")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Send images (PNG, NPY, single-frame DICOM) of one patient as cases. Pixels are kept, the files are not.

    Example: overread case submit chest.png --site north --patient MRN-0012345
    """
    if external_id and len(files) > 1:
        raise SetupError("--external-id names one image, but several files are given", fix="send them one by one")
    made = []
    with Client() as client:
        form = {"line": client.line(line), "site": site, "patient": patient, "scanner": scanner}
        form |= {"sex": sex, "age_band": age_band, "external_id": external_id}
        data = {name: value for name, value in form.items() if value is not None}
        for number, file in enumerate(files, start=1):
            image = ("image", file.read_bytes(), MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream"))
            try:
                made.append(client.post("/v1/cases", data=data, files={"image": image}))
            except Refused as refusal:
                raise Refused(
                    f"{file}: {refusal.message} ({number - 1} of {len(files)} sent)", fix=refusal.fix
                ) from None
    columns = ("case_id", "line", "site", "scanner", "external_id", "image_digest")
    answer(made, as_json=as_json, columns=columns)


@cases.command("list")
def list_cases(
    line: LineOption = None,
    after: Annotated[int, typer.Option(help="Only cases with a greater id")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many")] = 50,
    confirmed: Annotated[bool | None, typer.Option(help="Only those with, or without, a confirmation")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List cases in the order they came.

    Example: overread case list --no-confirmed
    """
    with Client() as client:
        rows = client.get("/v1/cases", line=client.line(line), after=after, limit=limit, confirmed=confirmed)
    answer(rows, as_json=as_json, columns=("case_id", "site", "scanner", "external_id", "created_at"))


@cases.command("show")
def show_case(case_id: CaseArgument, as_json: JsonFlag = False) -> None:
    """Show a case and every confirmation of it.

    Example: overread case show 4711
    """
    with Client() as client:
        answer(client.get(f"/v1/cases/{case_id}"), as_json=as_json)


@cases.command("confirm")
def confirm_case(
    *,
    case_id: CaseArgument,
    finding: Annotated[
        str, typer.Option(help="A class of the line; of several findings those present: effusion+pneumonia")
    ],
    evidence: Annotated[str, typer.Option(help="report_text, single_read, consensus, follow_up or pathology")],
    reader: Annotated[str, typer.Option(help="Who decided, as a stable pseudonym, e.g. radiologist-17")],
    ai_exposure: ExposureOption = "unknown",
    confirmed_at: Annotated[str | None, typer.Option(help="When, with offset: 2026-03-02T09:30:00+01:00")] = None,
    supersedes: Annotated[int | None, typer.Option(help="The confirmation that this one corrects")] = None,
    idempotency_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Record the confirmed diagnosis of a case. It is never edited; a correction names what it supersedes.

    Example: overread case confirm 4711 --finding pneumonia --evidence consensus --reader radiologist-17
    """
    said = {"finding": finding, "evidence": evidence, "ai_exposure": ai_exposure, "reader": reader}
    said |= {"confirmed_at": confirmed_at, "supersedes": supersedes}  # type: ignore[dict-item] # None or int
    with Client() as client:
        body = {name: value for name, value in said.items() if value is not None}
        made = client.post(f"/v1/cases/{case_id}/confirmations", json=body, headers=_once(idempotency_key))
    answer(made, as_json=as_json)


@cases.command("discordant")
def list_discordant(
    line: LineOption = None,
    after: Annotated[int, typer.Option(help="Only those that began after this confirmation (`since`)")] = 0,
    limit: Annotated[int, typer.Option(help="At most so many")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List the cases about which readers disagree, the longest waiting first, with who said what.

    Example: overread case discordant
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/discordances", after=after, limit=limit)
    if as_json:
        answer(rows, as_json=True)
        return
    told = [{**row, "said": [f"{item['finding']} ({_who(item)})" for item in row["standing"]]} for row in rows]
    columns = ("case_id", "since", "since_at", "said", "last_confirmation")
    answer(told, as_json=False, columns=columns, empty="No readers disagree.")


@cases.command("adjudicate")
def adjudicate(
    *,
    case_id: CaseArgument,
    finding: Annotated[
        str | None, typer.Option(help="A class of the line; of several findings those present: effusion+pneumonia")
    ] = None,
    no_answer: Annotated[bool, typer.Option("--no-answer", help="The case cannot be answered")] = False,
    last_seen: Annotated[
        int, typer.Option(help="The newest confirmation you looked at; `overread case discordant` shows it")
    ],
    reason: ReasonOption,
    ai_exposure: ExposureOption = "unknown",
    idempotency_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Decide over all that was said about a case, in your own name. What others said stays.

    Example: overread case adjudicate 4711 --finding pneumonia --last-seen 9002 --reason "The lateral view shows it"
    """
    if (finding is None) != no_answer:
        raise SetupError("an adjudication is a finding or none", fix="give --finding or --no-answer, one of them")
    wish = {"finding": finding, "ai_exposure": ai_exposure, "reason": reason, "last_seen": last_seen}
    with Client() as client:
        made = client.post(f"/v1/cases/{case_id}/adjudications", json=wish, headers=_once(idempotency_key))
    answer(made, as_json=as_json)


@cases.command("retract")
def retract(
    confirmation_id: Annotated[int, typer.Argument(metavar="CONFIRMATION_ID", help="As `overread case show` lists it")],
    reason: ReasonOption,
    idempotency_key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Take a confirmation back that should never have been made. To say something else, confirm with --supersedes.

    Example: overread case retract 9001 --reason "Read from the images of another patient"
    """
    with Client() as client:
        path = f"/v1/confirmations/{confirmation_id}/retraction"
        made = client.post(path, json={"reason": reason}, headers=_once(idempotency_key))
    answer(made, as_json=as_json)


def _once(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def _who(row: dict[str, str]) -> str:
    return ", ".join(row[name] for name in ("kind", "evidence", "reader", "ai_exposure") if row[name] != "confirmation")
