"""`overread dataset …`: the frozen versions of a line, what changed between two, and their files.

`list` and `show` ask the service. `diff`, `checkout`, `verify` and `gc` read the data repository, on the service's own
machine or wherever a clone of it lies; they need no key and no database.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.client import Client
from api.cli.errors import Refused
from api.cli.home import home_at
from api.cli.options import HomeOption, JsonFlag, LineOption
from api.cli.output import answer, say, screen

datasets = typer.Typer(no_args_is_help=True, help="Frozen dataset versions.")

DAMAGED = 2
NumberArgument = Annotated[int, typer.Argument(metavar="NUMBER", help="As `overread dataset list` shows it")]
LineArgument = Annotated[str, typer.Argument(metavar="LINE")]
RepositoryOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The data repository or a clone of it [default: the home's]")
]
RemoteOption = Annotated[str | None, typer.Option(metavar="URL", help="DVC's remote [default: the home's]")]


@datasets.command("list")
def list_datasets(line: LineOption = None, as_json: JsonFlag = False) -> None:
    """List a line's dataset versions; `dvc get` reproduces each from its git tag.

    Example: overread dataset list
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/dataset-versions")
    columns = (
        *("dataset_version_id", "number", "git_tag", "digest"),
        *("submitter_shares", "waiting", "erasures", "created_at"),
    )
    answer(rows, as_json=as_json, columns=columns)


@datasets.command("show")
def show_dataset(number: NumberArgument, line: LineOption = None, as_json: JsonFlag = False) -> None:
    """Show a version: cases by split and class, by site, by month; who waits, and why.

    Example: overread dataset show 7
    """
    with Client() as client:
        rows = client.get(f"/v1/lines/{client.line(line)}/dataset-versions")
    found = next((row for row in rows if row["number"] == number), None)
    if found is None:
        raise Refused(f"there is no dataset version {number}", fix="see `overread dataset list`")
    if as_json:
        answer(found, as_json=True)
        return
    manifest = found["manifest"]
    head = ("number", "git_tag", "digest", "erasures", "created_at")
    answer(
        {**found, "cases": manifest["examples"], "new": manifest["new_examples"]},
        as_json=False,
        columns=(*head, "cases", "new"),
    )
    for name, title in (("counts", "split"), ("sites", "site"), ("months", "month")):
        _show_counts(manifest[name], title=title)
    _show_counts({"cases": manifest["waiting"]}, title="waiting") if manifest["waiting"] else say("Nobody waits.")


@datasets.command("diff")
def diff_datasets(
    *,
    line: LineArgument,
    old: NumberArgument,
    new: NumberArgument,
    repository: RepositoryOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what changed between two versions: who came, who left and why, whose answer became another.

    Example: overread dataset diff cxr-pneumonia 6 7
    """
    found = _ask(_repository(repository, home), "diff", line, str(old), str(new))
    if as_json:
        answer(found, as_json=True)
        return
    say(f"{line}: version {old} ({found['old']['examples']} cases) → {new} ({found['new']['examples']} cases)")
    if not found["same_protocol"]:
        say("the protocol is another")
    if not found["changes"]:
        say("no case differs")
    for kind, count in found["changes"].items():
        say(f"\n{kind}: {count}")
        answer(found["cases"][kind], as_json=False, columns=("case_id", "was", "is"))
        if count > len(found["cases"][kind]):
            say(f"… and {count - len(found['cases'][kind])} more")


@datasets.command("checkout")
def checkout_dataset(
    *,
    line: LineArgument,
    number: NumberArgument,
    into: Annotated[Path, typer.Option(metavar="DIR", help="Where to; versions side by side share their files")],
    repository: RepositoryOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring a version's files to a folder, every digest checked, read-only.

    Example: overread dataset checkout cxr-pneumonia 7 --into datasets
    """
    with screen().status("fetching and checking ..."):
        found = _ask(_repository(repository, home), "checkout", line, str(number), "--into", str(into))
    answer(found, as_json=as_json)


@datasets.command("quality")
def assess_dataset(
    *,
    line: LineArgument,
    number: NumberArgument,
    repository: RepositoryOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Look for copies, shifts, gaps and unreadable images in a version, against the one before it.

    Example: overread dataset quality cxr-pneumonia 7
    """
    with tempfile.TemporaryDirectory() as folder, screen().status("looking at every image that is new ..."):
        found = _ask(_repository(repository, home), "quality", line, str(number), "--into", folder)
    if as_json:
        answer(found, as_json=True)
    else:
        typer.echo(found["text"])


@datasets.command("agreement")
def show_agreement(
    *,
    line: LineArgument,
    number: NumberArgument,
    repository: RepositoryOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say how far readers agree beyond chance: all, blind and aided reads apart, and each pair of readers.

    Example: overread dataset agreement cxr-pneumonia 7
    """
    with tempfile.TemporaryDirectory() as folder, screen().status("comparing readers ..."):
        found = _ask(_repository(repository, home), "agreement", line, str(number), "--into", folder)
    if as_json:
        answer(found, as_json=True)
        return
    each = found.get("findings", {})
    for what, report in {"whole answers, ": found, **{f"{name}, ": one for name, one in each.items()}}.items():
        _show_readers(report, what=what if each else "")
    if found["pairs_with_too_few_cases"]:
        say(f"{found['pairs_with_too_few_cases']} pairs of readers have too few cases in common")
    say(found["note"])


@datasets.command("verify")
def verify_dataset(
    *,
    line: LineArgument,
    number: NumberArgument,
    repository: RepositoryOption = None,
    remote: RemoteOption = None,
    home: HomeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Read every file of a version in DVC's remote and compare it with its digest. Exit code 2: one does not match.

    Example: overread dataset verify cxr-pneumonia 7
    """
    place = _remote(remote, home)
    with screen().status("reading every file ..."):
        found = _ask(_repository(repository, home), "verify", line, str(number), "--remote", place)
    answer(found, as_json=as_json)


@datasets.command("gc")
def collect_garbage(
    repository: RepositoryOption = None, remote: RemoteOption = None, home: HomeOption = None, as_json: JsonFlag = False
) -> None:
    """Remove from cache and remote what no version needs, such as a killed freeze leaves.

    Example: overread dataset gc
    """
    answer(_ask(_repository(repository, home), "gc", "--remote", _remote(remote, home)), as_json=as_json)


def _repository(given: Path | None, home: str | None) -> Path:
    place = given or home_at(home).root / "data-repository"
    if not (place / ".git").exists():
        raise Refused(f"{place} is no data repository", fix="name it with --repository, or the service's --home")
    return place


def _remote(given: str | None, home: str | None) -> str:
    return given or os.environ.get("OVERREAD_DVC_REMOTE") or str(home_at(home).root / "dvc-remote")


def _ask(repository: Path, *arguments: str) -> dict[str, Any]:
    """Run the science in a process of its own: the doors do not import it."""
    command = [sys.executable, "-m", "pipelines.versions", str(repository), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        if done.returncode == DAMAGED:
            say(f"✗ {done.stderr.strip()}")
            raise typer.Exit(DAMAGED)
        raise Refused(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it failed without a word")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show_readers(found: dict[str, Any], *, what: str) -> None:
    for reads in ("all", "blind", "aided"):
        _show_agreement(f"{what}{reads} reads", found[reads], statistic="alpha")
    for pair in found["pairs"]:
        _show_agreement(what + " and ".join(pair["readers"]), pair, statistic="kappa")


def _show_agreement(who: str, found: dict[str, Any] | None, *, statistic: str) -> None:
    if found is None:
        say(f"{who}: no case has two")
        return
    value, agreed = found[statistic], found["agreement"]
    beyond = "–" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    say(f"{who}: {statistic} {beyond}, {agreed['value']:.1%} agree, {agreed['n']} cases")


def _show_counts(table: dict[str, dict[str, int]], *, title: str) -> None:
    say("")
    rows = [{title: name, **row} for name, row in table.items()]
    answer(rows, as_json=False, columns=tuple(rows[0]) if rows else (title,))
