"""Dataset versions from the command line, on the service's machine or in a clone of its data repository.

    python -m pipelines.versions REPOSITORY checkout LINE NUMBER --into DIR
    python -m pipelines.versions REPOSITORY diff LINE OLD NEW
    python -m pipelines.versions REPOSITORY verify LINE NUMBER --remote DIR
    python -m pipelines.versions REPOSITORY quality LINE NUMBER --into DIR
    python -m pipelines.versions REPOSITORY agreement LINE NUMBER --into DIR
    python -m pipelines.versions REPOSITORY gc --remote DIR

`quality` and `agreement` check the version out first (and the one before it), and print their report.

Prints one JSON object. Exit code 2: a version is damaged, and named; 1: it cannot be done, with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import stored
from pipelines.agreement import agreement_report
from pipelines.case_table import rows_of
from pipelines.data_repository import (
    DataRepository,
    DatasetError,
    VersionDamaged,
    VersionErased,
    VersionUnknown,
    tag_of,
    writing,
)
from pipelines.dataset import checkout, open_version
from pipelines.difference import difference
from pipelines.findings import about
from pipelines.types import ConfirmedCase, digest_of


def main(arguments: list[str]) -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("checkout", "diff", "verify", "quality", "agreement", "gc"):
        command = commands.add_parser(name)
        numbers = {"diff": ["old", "new"], "gc": []}.get(name, ["number"])
        if numbers:
            command.add_argument("line")
        for number in numbers:
            command.add_argument(number, type=int)
        if name in {"checkout", "quality", "agreement"}:
            command.add_argument("--into", type=Path, required=True)
        if name in {"verify", "gc"}:
            command.add_argument("--remote", required=True)
    asked = parser.parse_args(arguments)
    try:
        found = _do(asked)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, VersionDamaged) else 1
    print(json.dumps(found, indent=1))
    return 0


def _do(asked: argparse.Namespace) -> dict[str, Any]:
    if asked.command == "diff":
        return difference(asked.repository, line=asked.line, old=asked.old, new=asked.new)
    if asked.command == "checkout":
        path = checkout(asked.repository, line=asked.line, number=asked.number, into=asked.into)
        document = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return {"path": str(path), "digest": digest_of(document), "examples": document["examples"]}
    if asked.command == "quality":
        return _quality(asked.repository, line=asked.line, number=asked.number, into=asked.into)
    if asked.command == "agreement":
        return _agreement(asked.repository, line=asked.line, number=asked.number, into=asked.into)
    if asked.command == "verify":
        return _verified(asked.repository, remote=asked.remote, line=asked.line, number=asked.number)
    with writing(asked.repository, remote=asked.remote) as held:
        return {"freed_bytes": held.collect_garbage()}


def _agreement(repository: Path, *, line: str, number: int, into: Path) -> dict[str, Any]:
    """How far readers agree on whole answers, and of several `findings` on each, who seldom all agree on all."""
    version = open_version(checkout(repository, line=line, number=number, into=into))

    def cases() -> Iterator[ConfirmedCase]:
        return (row.case for table in version.contents.tables() for row in rows_of(table))

    report = agreement_report(cases())
    if version.several:
        report["findings"] = {name: agreement_report(about(name, cases=cases())) for name in version.classes}
    return report


def _quality(repository: Path, *, line: str, number: int, into: Path) -> dict[str, Any]:
    """The report of a version against the one before it, by the defaults: the protocol's own is in the gate report."""
    from pipelines import quality, quality_report  # noqa: PLC0415 - statistics take a second, and only this needs them

    version = open_version(checkout(repository, line=line, number=number, into=into))
    before = version.manifest["previous"]
    try:
        previous = before and open_version(checkout(repository, line=line, number=before["number"], into=into))
    except VersionErased:
        previous = None
    report = quality.report_of(version, previous=previous)
    return {**report.document(), "text": quality_report.render_text(report)}


def _verified(repository: Path, *, remote: str, line: str, number: int) -> dict[str, Any]:
    source, tag = DataRepository(path=repository), tag_of(line, number)
    commit = source.commit_of(tag)
    if commit is None:
        raise VersionUnknown(f"{tag} is not in the data repository {repository}")
    digest = digest_of(json.loads(source.show(tag, f"{line}/manifest.json")))
    shelf = stored.Shelf(repository, remote=remote)
    shelf.check(line=line, number=number, digest=digest, commit=commit)
    return {"tag": tag, "digest": digest, "files": shelf.files}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
