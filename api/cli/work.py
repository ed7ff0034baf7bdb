"""The daily commands: lines, predictions, runs, candidates, promotions.

Each is one or two HTTP requests as the person whose OVERREAD_API_KEY it is; the service decides what is allowed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli import signing
from api.cli.cases import MEDIA_TYPES
from api.cli.client import Client
from api.cli.errors import Refused
from api.cli.options import JsonFlag, LineOption, ReasonOption
from api.cli.output import answer, say, screen
from registry.findings import are_several

lines = typer.Typer(no_args_is_help=True, help="Model lines: a diagnostic question and its protocol.")
runs = typer.Typer(no_args_is_help=True, help="Training runs: freeze, train, gate.")
candidates = typer.Typer(no_args_is_help=True, help="Candidates, their gate reports and signatures.")

FINISHED = {"finished", "refused", "failed", "cancelled"}
LINE_COLUMNS = (
    *("name", "protocol.document.title", "protocol.version", "protocol.digest", "protocol.document.classes"),
    *("champion.number", "champion.candidate_id", "champion.weights_digest", "champion.erasures"),
    *("counts", "next_trigger", "monitoring.verdict", "monitoring.reason", "monitoring.what_to_do", "created_at"),
)
RUN_COLUMNS = ("run_id", "state", "strategy", "reason", "progress", "outcome", "created_at", "finished_at")
CANDIDATE_COLUMNS = ("candidate_id", "number", "state", "dataset_version", "weights_digest", "erasures", "created_at")
USE_COLUMNS = (
    *("epoch", "wallet", "place", "candidate_id", "champion_candidate_id"),
    *("wallet_before", "level", "passed", "wallet_after", "created_at"),
)
WATCH_COLUMNS = (
    *("created_at", "candidate_id", "verdict", "n", "errors", "risk", "lower_bound", "risk_limit"),
    *("verified_share", "reason", "shadow"),
)
SIGNATURE_COLUMNS = ("printed_name", "decision", "meaning", "reason", "created_at")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)]
CandidateArgument = Annotated[int, typer.Argument(metavar="CANDIDATE_ID", help="As `overread candidate list` shows it")]


@lines.command("create")
def create_line(file: FileArgument, as_json: JsonFlag = False) -> None:
    """Register a line from its protocol (YAML). Faults are named field by field.

    Example: overread line create pipelines/protocols/cxr-pneumonia.yaml
    """
    with Client() as client:
        made = client.post("/v1/lines", content=file.read_bytes(), headers={"Content-Type": "application/yaml"})
    answer(made, as_json=as_json, columns=LINE_COLUMNS)


@lines.command("list")
def list_lines(as_json: JsonFlag = False) -> None:
    """List the lines and their champions.

    Example: overread line list
    """
    with Client() as client:
        rows = client.get("/v1/lines")
    empty = "No line yet: overread line create PROTOCOL.yaml"
    answer(
        rows,
        as_json=as_json,
        columns=("name", "champion.number", "champion.weights_digest", "counts", "created_at"),
        empty=empty,
    )


@lines.command("show")
def show_line(
    line: Annotated[str | None, typer.Argument(help="Name of the line [default: the only one]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a line: protocol, champion, counts, and when it learns next.

    Example: overread line show cxr-pneumonia
    """
    with Client() as client:
        answer(client.get(f"/v1/lines/{client.line(line)}"), as_json=as_json, columns=LINE_COLUMNS)


@lines.command("sealed-test")
def show_sealed_test(
    line: Annotated[str | None, typer.Argument(help="Name of the line [default: the only one]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show every use of a line's sealed test, what it cost, and what is left of each wallet.

    Example: overread line sealed-test cxr-pneumonia
    """
    with Client() as client:
        uses = client.get(f"/v1/lines/{client.line(line)}/sealed-test")
    answer(uses, as_json=as_json, columns=USE_COLUMNS, empty="Nobody has used the sealed test yet.")


@lines.command("monitoring")
def show_monitoring(
    line: Annotated[str | None, typer.Argument(help="Name of the line [default: the only one]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how often the champion was wrong on cases that were read before it was seen, look by look, newest first.

    Example: overread line monitoring cxr-pneumonia
    """
    with Client() as client:
        name = client.line(line)
        looks = client.get(f"/v1/lines/{name}/monitoring")
        document = client.get(f"/v1/lines/{name}")["protocol"]["document"]
    nobody = "Nobody has looked yet; the first look comes within a day of a promotion."
    add = "add `monitoring` (overread protocol amend)"
    if are_several(document):
        add = "a champion of several findings cannot be watched yet"
    watched = document.get("monitoring") is not None
    empty = nobody if watched else f"The protocol has nobody watched: {add}."
    answer(looks, as_json=as_json, columns=WATCH_COLUMNS, empty=empty)
    if looks and looks[0]["what_to_do"]:
        say(f"✗ alarm: {looks[0]['what_to_do']}")


def predict(
    file: FileArgument,
    line: LineOption = None,
    heat_map: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Also write where the champion looked for what it decided")
    ] = None,
    finding: Annotated[
        str | None, typer.Option(help="For what the heat map is drawn; it has to be said where several may be there")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score an image with the line's champion. The image is not kept; the scores are logged.

    Example: overread predict chest.png --line cxr-pneumonia --heat-map where.png
    """
    with Client() as client:
        media_type = MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
        image = {"image": ("image", file.read_bytes(), media_type)}
        asked = {"line": client.line(line)}
        made = client.post("/v1/predictions", params=asked, files=image)
        columns = ("decision", "scores", "threshold", "number", "weights_digest", "latency_seconds", "prediction_id")
        answer(made, as_json=as_json, columns=() if as_json else columns)
        if heat_map is not None:
            asked["finding"] = finding or _looked_for(made)
            heat_map.write_bytes(client.send("POST", "/v1/predictions/heat-map", params=asked, files=image).content)


def _looked_for(made: dict[str, Any]) -> str:
    """What a heat map is drawn for where nobody said: what was decided, if that is one finding. Raises Refused."""
    decision: str = made["decision"]
    if decision not in made["scores"]:
        known = ", ".join(made["scores"])
        raise Refused(f"the champion says {decision}, and a heat map is of one", fix=f"add --finding, one of {known}")
    return decision


@runs.command("start")
def start_run(
    reason: ReasonOption,
    line: LineOption = None,
    strategy: Annotated[str | None, typer.Option(help="full, warm, replay, … [default: the protocol's]")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask for a new model from what is confirmed so far. Whoever asks cannot sign its candidate.

    Example: overread run start --reason "200 new confirmations from the north site" --watch
    """
    with Client() as client:
        run = client.post(f"/v1/lines/{client.line(line)}/runs", json={"reason": reason, "strategy": strategy})
        if watch:
            run = _watched(client, run)
    answer(run, as_json=as_json, columns=RUN_COLUMNS)


@runs.command("show")
def show_run(
    run_id: Annotated[int, typer.Argument(metavar="RUN_ID")],
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a run and how far it is.

    Example: overread run show 5 --watch
    """
    with Client() as client:
        run = client.get(f"/v1/runs/{run_id}")
        answer(_watched(client, run) if watch else run, as_json=as_json, columns=RUN_COLUMNS)


@runs.command("list")
def list_runs(line: LineOption = None, as_json: JsonFlag = False) -> None:
    """List a line's runs, oldest first.

    Example: overread run list
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/runs")
    columns = ("run_id", "state", "strategy", "reason", "outcome", "created_at", "finished_at")
    answer(rows, as_json=as_json, columns=columns)


@runs.command("cancel")
def cancel_run(run_id: Annotated[int, typer.Argument(metavar="RUN_ID")], as_json: JsonFlag = False) -> None:
    """Stop an unfinished run; its worker notices within seconds.

    Example: overread run cancel 5
    """
    with Client() as client:
        answer(client.post(f"/v1/runs/{run_id}/cancel"), as_json=as_json, columns=RUN_COLUMNS)


@candidates.command("list")
def list_candidates(line: LineOption = None, as_json: JsonFlag = False) -> None:
    """List a line's candidates, the champions past and present among them.

    Example: overread candidate list
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/candidates")
    answer(rows, as_json=as_json, columns=CANDIDATE_COLUMNS)


@candidates.command("show")
def show_candidate(candidate_id: CandidateArgument, as_json: JsonFlag = False) -> None:
    """Show a candidate and the signatures that stand.

    Example: overread candidate show 7
    """
    with Client() as client:
        candidate = client.get(f"/v1/candidates/{candidate_id}")
        signatures = client.get(f"/v1/candidates/{candidate_id}/approvals")
    if as_json:
        answer({**candidate, "approvals": signatures}, as_json=True)
        return
    answer(candidate, as_json=False)
    answer(signatures, as_json=False, columns=SIGNATURE_COLUMNS, empty="No signature stands.")


@candidates.command("report")
def show_report(
    candidate_id: CandidateArgument,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page of its own, with plots, to read or print")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a candidate's gate report, or write it as a page.

    Example: overread candidate report 7 --html report-7.html
    """
    with Client() as client:
        if html is not None:
            report = client.get(f"/v1/candidates/{candidate_id}/gate-report")
            number = client.get(f"/v1/candidates/{candidate_id}")["number"]
            write_page(html, report=report, number=number)
            say(f"✓ {html}: the gates of candidate {number}, {report['verdict'].replace('_', ' ')}")
        elif as_json:
            answer(client.get(f"/v1/candidates/{candidate_id}/gate-report"), as_json=True)
        else:
            typer.echo(client.text(f"/v1/candidates/{candidate_id}/gate-report"))


@candidates.command("facts")
def show_facts(candidate_id: CandidateArgument) -> None:
    """Write what a model is, as Markdown: facts, the change plan traced to its evidence, the CLAIM checklist.

    Example: overread candidate facts 7 > model-7.md
    """
    from api.console import facts  # noqa: PLC0415 - for this command alone

    with Client() as client:
        candidate = client.get(f"/v1/candidates/{candidate_id}")
        report = client.get(f"/v1/candidates/{candidate_id}/gate-report")
        line = client.get(f"/v1/lines/{report['document']['line']}")
        found = facts.Sources(
            line=line,
            protocol=client.get(f"/v1/protocols/{candidate['protocol_id']}"),
            candidate=candidate,
            report=report,
            version=client.get(f"/v1/dataset-versions/{candidate['dataset_version_id']}"),
            run=client.get(f"/v1/runs/{candidate['run_id']}"),
            approvals=client.get(f"/v1/candidates/{candidate_id}/approvals"),
        )
    typer.echo(facts.page(found))


signing.add_commands(
    candidates,
    what="candidates",
    told=lambda made: answer(made, as_json=False, columns=SIGNATURE_COLUMNS),
    approve="""Sign a candidate whose gates passed, with your password. Name, time and digests are bound together.

    Example: overread candidate approve 7 --reason "Gates passed; flips reviewed"
    """,
    reject="""Reject a candidate, with your password; one rejection ends it.

    Example: overread candidate reject 7 --reason "Worse on the north site's infants"
    """,
)


def write_page(path: Path, *, report: dict[str, Any], number: int) -> None:
    """Write a gate report, as the API gives it, as a page that needs nothing beside it."""
    from api.console import report as page  # noqa: PLC0415 - templates, and for this command alone

    made_at = report["created_at"].replace("T", " ").partition(".")[0] + " UTC"
    text = page.standalone(report["document"], digest=report["digest"], number=number, made_at=made_at)
    path.write_text(text, encoding="utf-8")


def promote(candidate_id: CandidateArgument, reason: ReasonOption, as_json: JsonFlag = False) -> None:
    """Make a signed candidate the champion, if the champion is still the one its gates compared it with.

    Example: overread promote 7 --reason "Two signatures; better at equal specificity"
    """
    with Client() as client:
        report = client.get(f"/v1/candidates/{candidate_id}/gate-report")
        wish = {"expected_champion": report["champion_candidate_id"], "reason": reason}
        made = client.post(f"/v1/candidates/{candidate_id}/promotion", json=wish)
    answer(made, as_json=as_json)
    say(f"✓ candidate {candidate_id} is champion; predictions follow within seconds")


def roll_back(reason: ReasonOption, line: LineOption = None, as_json: JsonFlag = False) -> None:
    """Return to the champion that the current one replaced. It needs no new signatures.

    Example: overread roll-back --line cxr-pneumonia --reason "Alarm: sensitivity fell since Monday"
    """
    with Client() as client:
        name = client.line(line)
        champion = client.get(f"/v1/lines/{name}").get("champion")
        if champion is None:
            raise Refused(f"{name} has no champion, so there is nothing to roll back")
        wish = {"expected_champion": champion["candidate_id"], "reason": reason}
        made = client.post(f"/v1/lines/{name}/roll-back", json=wish)
    answer(made, as_json=as_json)
    say(f"✓ candidate {made['candidate_id']} is champion again; predictions follow within seconds")


def _watched(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    with screen().status("...") as status:
        while run["state"] not in FINISHED:
            progress = run["progress"] or {}
            step = f", epoch {progress['epoch']} of {progress.get('epochs', '?')}" if "epoch" in progress else ""
            status.update(f"run {run['run_id']}: {run['state']}{step}")
            time.sleep(1)
            run = client.get(f"/v1/runs/{run['run_id']}")
    return run
