"""Take erased cases out of the dataset versions that hold them.

What was frozen is not rewritten: the versions that hold an erased case lose the files that hold its pixels and its
patient's group, and from then on cannot be checked out; git keeps their manifests. So that the next version can follow,
the newest one gets an edition without these cases (tag `<line>/v0003.e1`), for which only the shards concerned are
written anew. `erased.json` in the data repository names the commits whose files are gone.

Invariant: run again after any crash it ends the same; what another version or edition still needs stays.

    python -m pipelines.erase JOB_DIR        # config.json in; result.json out
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pipelines import case_table, job, shards
from pipelines.contents import Contents
from pipelines.data_repository import ERASED, TRACKED_LARGE, DataRepository, tag_of, writing
from pipelines.freezing import previous_version, publish, seals_of
from pipelines.shards import Shard
from pipelines.summary import summary
from pipelines.types import digest_of

# DVC's own code knows where each kind of remote keeps an object, and how to remove it there.
_FORGET = """
import json, sys
from dvc.repo import Repo
keep, drop = json.loads(sys.argv[1])
repo = Repo()
stores = [repo.cache.local, repo.cloud.get_remote_odb()]
def files(oid):
    for store in stores if oid.endswith(".dir") else ():
        path = store.oid_to_path(oid)
        if store.fs.exists(path):
            with store.fs.open(path) as stream:
                return [entry["md5"] for entry in json.load(stream)] + [oid]
    return [oid]
kept = {one for oid in keep for one in files(oid)}
for oid in drop:
    for one in files(oid):  # a directory's list of its files comes last: after a crash it is still needed
        for store in stores if one not in kept else ():
            path = store.oid_to_path(one)
            if store.fs.exists(path):
                store.fs.rm(path)
"""


def erase(
    repository: Path,
    *,
    remote: str,
    line: str,
    cases: Collection[int],
    recorded: Collection[int],
    keep_going: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Take `cases` out of a line's dataset versions; `recorded` are the numbers of those that the record knows.

    Returns `versions`, the tags that lost their files, and `edition`, the tag that the next version follows (None:
    the newest version held none of them). Raises DatasetError.
    """
    if not (repository / ".git" / "HEAD").exists():
        return {"versions": [], "edition": None}
    with writing(repository, remote=remote, keep_going=keep_going) as held:
        ledger = held.erased()
        tags = held.git("tag", "--list", f"{line}/v*").split()
        live = {tag: commit for tag in tags if (commit := held.commit_of(tag)) and commit not in ledger}
        gone = {tag: live[tag] for tag in _holding(held, list(live), line=line, cases=cases)}
        edition = None
        if recorded and any(tag.startswith(tag_of(line, max(recorded))) for tag in gone):
            edition = _publish_edition(held, line=line, number=max(recorded), cases=cases)
        if gone:
            ledger |= {commit: tag for tag, commit in gone.items()}
            job.write_atomically(held.path / ERASED, json.dumps(ledger, indent=1, sort_keys=True).encode() + b"\n")
            held.git("add", ERASED)
            held.git("commit", "-q", "--no-verify", "-m", f"Erase {len(cases)} cases of {line}")
        _forget(held, line=line, ledger=ledger)
        for tag in gone:
            # Published by a freeze whose result never reached the record: its number is still free.
            if "." not in tag and int(tag.rpartition("/v")[2]) not in recorded:
                held.git("tag", "--delete", tag)
    return {"versions": sorted(gone), "edition": edition}


def main(arguments: list[str]) -> int:
    """Erase what a job directory names."""
    job.hide_pandas()
    return job.run(arguments, work=_work)


def _work(_directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    return erase(
        Path(config["repository"]),
        remote=config["remote"],
        line=config["line"],
        cases=set(config["cases"]),
        recorded=config["recorded"],
        keep_going=job.orphan_watch(),
    )


def _holding(held: DataRepository, tags: Sequence[str], *, line: str, cases: Collection[int]) -> list[str]:
    """Name the versions in whose case table any of these cases is. A part that many versions share is read once."""
    parts = {case_table.part_of(case_id) for case_id in cases}
    named: dict[str, list[str]] = {}
    for tag in tags:
        document = json.loads(held.show(tag, f"{line}/manifest.json"))
        for part in Contents.listed(held.path / line, document).parts:
            if part.part in parts:
                named.setdefault(part.name, []).append(tag)
    found = set()
    for name, sharing in named.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            held.fetch(sharing[0], {f"{line}/cases/{name}": str(file)})
            if pc.any(case_table.has_id(case_table.read_part(file, ["case_id"]), cases)).as_py():
                found |= set(sharing)
    return [tag for tag in tags if tag in found]


def _publish_edition(held: DataRepository, *, line: str, number: int, cases: Collection[int]) -> str:
    """Publish what remains of a version, and return its tag."""
    tag, seals = tag_of(line, number), seals_of(held)
    before = previous_version(held, line=line, number=number, seals=seals)
    parts = []
    for part in before.parts:
        table = before.table(part.part)
        kept = case_table.merged(table, None, without=cases)
        if kept.num_rows == table.num_rows:
            parts.append(part)
        elif kept.num_rows:
            parts.append(case_table.write_part(before.directory / "cases", part=part.part, table=kept))
    remaining = replace(before, parts=tuple(parts))
    contents = replace(remaining, shards=tuple(_redacted(remaining, held.keep_going)))
    edition = before.document.get("edition", 0) + 1
    classes, several = before.document["classes"], before.document.get("task") == "multilabel"
    document = {
        **before.document,
        **contents.listing(),
        **summary(contents, classes=classes, several=several, number=number),
        "edition": edition,
        "edition_of": digest_of(before.document),
    }
    left_out = before.document["examples"] - document["examples"]
    message = f"{tag} without {left_out} erased cases"
    with held.publishing() as publisher:
        publish(publisher, f"{tag}.e{edition}", replace(contents, document=document), seals=seals, message=message)
    return f"{tag}.e{edition}"


def _redacted(contents: Contents, keep_going: Callable[[], None]) -> Iterator[Shard]:
    """The shards, without the images that no case of the version has any more."""
    used = contents.used_rows()
    for shard in contents.shards:
        keep_going()
        rows = used.get(shard.id)
        if rows is None:
            continue
        unused = set(range(shard.images)) - set(rows.tolist())
        yield shards.redact(contents.directory / "shards", shard, rows=unused) if unused else shard


def _forget(held: DataRepository, *, line: str, ledger: Mapping[str, str]) -> None:
    """Remove what only erased versions name, here and in the remote. Removes nothing the second time."""
    erased = [commit for commit, tag in ledger.items() if tag.startswith(f"{line}/")]
    if not erased:
        return
    tags = held.git("tag", "--list", f"{line}/v*").split()
    live = [commit for tag in tags if (commit := held.commit_of(tag)) and commit not in ledger]
    keep = [oid for commit in live for oid in _oids(held, commit, line=line)]
    drop = [oid for commit in erased for oid in _oids(held, commit, line=line)]
    # What lies in the working directory may be a link to the same bytes; the next freeze brings back what it needs.
    for name in TRACKED_LARGE:
        target = held.path / line / name
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
    held.python(_FORGET, json.dumps([sorted(set(keep)), sorted(set(drop) - set(keep))]))


def _oids(held: DataRepository, commit: str, *, line: str) -> list[str]:
    """Names under which DVC keeps the large files of a version."""
    texts = [held.git("show", f"{commit}:{line}/{name}.dvc") for name in TRACKED_LARGE]
    return [found for text in texts for found in re.findall(r"md5: ([0-9a-f]{32}(?:\.dir)?)", text)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
