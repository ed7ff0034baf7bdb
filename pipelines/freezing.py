"""Freeze a dataset version: settle what is new, store what is new, publish the whole.

Invariant: what has been frozen never changes; a second freeze of the same number returns the first. A version costs
what has changed, in time and memory: new images go into a new shard, and only the parts of the case table in which
something changed are written. `python -m pipelines.freeze` is the way in from outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import case_table, job, perceptual, shards
from pipelines.apart import keep_apart
from pipelines.case_table import CaseRow
from pipelines.contents import Contents
from pipelines.data_repository import (
    DataRepository,
    DatasetError,
    Early,
    FreezeRefused,
    Publisher,
    VersionDamaged,
    tag_of,
    writing,
)
from pipelines.protocol import Protocol
from pipelines.seals import Seals
from pipelines.settling import UNREADABLE, Change, PartChange, settle_changes
from pipelines.shards import Shard, ShardWriter
from pipelines.summary import summary
from pipelines.types import SPLITS, Example, Waiting, digest_of


def freeze(
    repository: Path,
    *,
    remote: str,
    line: str,
    number: int,
    protocol: Protocol,
    split_key: bytes,
    change: Change,
    blobs: Path,
    previous: int | None = None,
    tell: Callable[[str], None] = lambda _stage: None,
    keep_going: Callable[[], None] = lambda: None,
    early: Early | None = None,
) -> dict[str, Any]:
    """Freeze version `number` of a line and publish it; returns the result's JSON values.

    A version that exists already is returned as it is. `tell` hears of each stage; `keep_going` is called often and
    raises to stop; `early` is what publishes, if it was started before. Raises FreezeRefused where there is nothing to
    freeze yet, ToolFailed, VersionDamaged.
    """
    tag = tag_of(line, number)
    tell("waiting for the data repository")
    with writing(repository, remote=remote, keep_going=keep_going, early=early) as held:
        if held.commit_of(tag) is not None:
            return _result(held, line=line, number=number, protocol=protocol)
        tell("reading the version before")
        seals = seals_of(held)
        before = previous_version(held, line=line, number=previous, seals=seals)
        with held.publishing() as publisher:
            tell("settling confirmations and writing images")
            changes = settle_changes(before, change, protocol=protocol, split_key=split_key, number=number)
            contents, every = _write(before, changes, blobs=blobs, keep_going=keep_going)
            rules = protocol.data_quality
            if rules is not None and rules.near_duplicates.action == "wait":
                tell("looking for copies in other splits")
                contents = keep_apart(contents, every, before=before, rule=rules.near_duplicates)
            contents = tidy(contents, every)
            described = summary(contents, classes=protocol.classes, several=protocol.several, number=number)
            edited = "edition" in before.document  # then there is something new to learn: what to forget
            _refuse_if_useless(described, protocol=protocol, differs=edited or _differ(before, contents))
            document = {
                "schema_version": 2,
                "line": line,
                "number": number,
                "previous": {"number": previous, "digest": digest_of(before.document)} if before.document else None,
                "protocol_digest": protocol.digest,
                "classes": list(protocol.classes),
                **({"task": protocol.task} if protocol.several else {}),
                "last_confirmation_id": change.last_confirmation_id,
                **contents.listing(),
                **described,
            }
            tell("publishing")
            message = f"{tag}\n\ndigest {digest_of(document)}"
            publish(publisher, tag, replace(contents, document=document), seals=seals, message=message)
        return _result(held, line=line, number=number, protocol=protocol)


def publish(publisher: Publisher, tag: str, contents: Contents, *, seals: Seals, message: str) -> None:
    """Publish a version from a line's directory, swept of all that its manifest does not list."""
    contents.sweep()
    data = json.dumps(contents.document, indent=1, sort_keys=True).encode() + b"\n"
    job.write_atomically(contents.directory / "manifest.json", data)
    publisher.publish(tag, contents.document["line"], message=message)
    seals.keep(contents.files())


def seals_of(held: DataRepository) -> Seals:
    """The seals of a data repository's working directory."""
    return Seals(held.path / ".git" / "overread-seals.json")


def previous_version(held: DataRepository, *, line: str, number: int | None, seals: Seals) -> Contents:
    """A version, or its newest edition without erased cases, in the working directory; empty contents for None.

    The working directory is brought to it where it does not match.
    """
    directory = held.path / line
    if number is None:
        return Contents(directory=directory)
    tag = held.newest_edition(tag_of(line, number))
    contents = Contents.listed(directory, json.loads(held.show(tag, f"{line}/manifest.json")))
    for attempt in range(3):
        try:
            contents.verify(seals)
            break
        except VersionDamaged:  # most often by a killed freeze; else the cache is, and only the remote is whole
            if attempt == 2:
                raise
            held.restore(tag, line, distrust_cache=attempt == 1)
    return contents


def _write(
    before: Contents, changes: Iterator[PartChange], *, blobs: Path, keep_going: Callable[[], None]
) -> tuple[Contents, list[Shard]]:
    """Write the images and parts that changed; returns the contents, and all shards that there are."""
    directory = before.directory
    directory.mkdir(exist_ok=True)
    writer = ShardWriter(directory / "shards", first_id=_next_id(before.shards))
    parts = {part.part: part for part in before.parts}
    for change in changes:
        stored = [
            case_table.table_of(_stored(rows, writer, blobs=blobs, keep_going=keep_going)) for rows in change.rows
        ]
        new = pa.concat_tables(stored)
        without = np.concatenate([np.array(sorted(change.removed), dtype=np.int64), new.column("case_id").to_numpy()])
        table = case_table.merged(change.before, new, without=without)
        if table.num_rows:
            parts[change.part] = case_table.write_part(directory / "cases", part=change.part, table=table)
        else:
            parts.pop(change.part, None)
    every = [*before.shards, *writer.close()]
    ordered = tuple(parts[part] for part in sorted(parts))
    return Contents(directory=directory, parts=ordered, counted=before.counted), every


def tidy(contents: Contents, every: Sequence[Shard]) -> Contents:
    """Leave out shards that hold no image of the version, and merge small ones; `every` is all that there are."""
    first_id = _next_id(every)
    while True:
        used = contents.used_shards()
        every = [shard for shard in every if shard.id in used]
        small = shards.mergeable(every)
        if not small:
            return replace(contents, shards=tuple(every))
        made, moves = shards.merge(contents.directory / "shards", small, used=contents.used_rows(), first_id=first_id)
        contents = contents.moved(moves)
        every = [*(shard for shard in every if shard not in small), *made]
        first_id = _next_id(every)


def _next_id(every: Sequence[Shard]) -> int:
    return max((shard.id for shard in every), default=0) + 1


def _stored(
    rows: Sequence[CaseRow], writer: ShardWriter, *, blobs: Path, keep_going: Callable[[], None]
) -> Iterator[CaseRow]:
    """Store the images of cases that come in; a case whose image is missing or damaged at rest waits."""
    hold: list[CaseRow] = []
    thumbnails = []
    for row in rows:
        keep_going()
        if not isinstance(row.outcome, Example) or row.place is not None:
            yield row
            continue
        try:
            pixels = shards.read_blob(blobs, row.case.image_digest)
        except VersionDamaged as error:
            reason = f"{UNREADABLE}: {error}"
            waiting = Waiting(case_id=row.case.case_id, reason=reason, split=row.outcome.split)
            yield replace(row, outcome=waiting)
            continue
        place = writer.add(row.case.image_digest, pixels, spacing_mm=row.case.spacing_mm)
        hold.append(replace(row, place=place))
        thumbnails.append(perceptual.thumbnail(pixels))
    if hold:
        hashes = perceptual.hash_thumbnails(np.stack(thumbnails)).tolist()
        yield from (replace(row, phash=phash) for row, phash in zip(hold, hashes, strict=True))


def _result(held: DataRepository, *, line: str, number: int, protocol: Protocol) -> dict[str, Any]:
    """Tell of a published version, from what is published and nothing else."""
    tag = tag_of(line, number)
    document = json.loads(held.show(tag, f"{line}/manifest.json"))
    if document["protocol_digest"] != protocol.digest:
        raise DatasetError(f"{tag} has been frozen under another protocol; give this version another number")
    total = max(document["new_examples"], 1)
    return {
        "digest": digest_of(document),
        "git_tag": tag,
        "git_commit": held.commit_of(tag),
        "number": number,
        "submitter_shares": {name: count / total for name, count in document["new_cases"].items()},
        "manifest": document,
    }


def _differ(before: Contents, after: Contents) -> bool:
    """Say whether an example came, went or became another; only parts that were written anew are read."""
    old, new = ({part.part: part for part in contents.parts} for contents in (before, after))
    written = [part for part in old.keys() | new.keys() if old.get(part) != new.get(part)]
    columns = case_table.EXAMPLE_COLUMNS
    return not all(
        case_table.same_examples(before.table(part, *columns), after.table(part, *columns)) for part in written
    )


def _refuse_if_useless(described: Mapping[str, Any], *, protocol: Protocol, differs: bool) -> None:
    if not described["examples"]:
        waiting = sum(described["waiting"].values())
        raise FreezeRefused(f"no case has a settled diagnosis yet; {waiting} wait")
    if not differs:
        raise FreezeRefused("nothing is new since the version before; confirm more cases first")
    counts = described["counts"]
    empty = [f"{name} in {split}" for split in SPLITS for name, n in counts[split].items() if n == 0]
    if empty:
        raise FreezeRefused(
            f"{described['examples']} cases are settled, but there is none yet for: {', '.join(empty)}; "
            "confirm more cases"
        )
