"""Dataset versions from the command line, on the service's machine or in a clone of its data repository.

    python -m pipelines.versions REPOSITORY checkout LINE NUMBER --into DIR
    python -m pipelines.versions REPOSITORY diff LINE OLD NEW
    python -m pipelines.versions REPOSITORY verify LINE NUMBER --remote DIR
    python -m pipelines.versions REPOSITORY gc --remote DIR

Prints one JSON object. Exit code 2: a version is damaged, and named; 1: it cannot be done, with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipelines import stored
from pipelines.data_repository import DataRepository, DatasetError, VersionDamaged, VersionUnknown, tag_of, writing
from pipelines.dataset import checkout
from pipelines.difference import difference
from pipelines.types import digest_of


def main(arguments: list[str]) -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, numbers in (("checkout", ["number"]), ("diff", ["old", "new"]), ("verify", ["number"]), ("gc", [])):
        command = commands.add_parser(name)
        if numbers:
            command.add_argument("line")
        for number in numbers:
            command.add_argument(number, type=int)
        if name == "checkout":
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
    if asked.command == "verify":
        return _verified(asked.repository, remote=asked.remote, line=asked.line, number=asked.number)
    with writing(asked.repository, remote=asked.remote) as held:
        return {"freed_bytes": held.collect_garbage()}


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
