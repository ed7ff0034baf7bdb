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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import job, shards
from pipelines.data_repository import ERASED, TRACKED_LARGE, DataRepository, VersionDamaged, tag_of, writing
from pipelines.dataset import describe, previous_version
from pipelines.types import Example, Waiting, digest_of

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
    blobs: Path,
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
            edition = _publish_edition(held, line=line, number=max(recorded), cases=cases, blobs=blobs)
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
    return job.run(arguments, work=_work)


def _work(_directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    return erase(
        Path(config["repository"]),
        remote=config["remote"],
        line=config["line"],
        cases=set(config["cases"]),
        recorded=config["recorded"],
        blobs=Path(config["blobs"]),
        keep_going=job.orphan_watch(),
    )


def _holding(held: DataRepository, tags: Sequence[str], *, line: str, cases: Collection[int]) -> list[str]:
    """Name the versions whose examples are of any of these cases."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {tag: Path(folder) / str(number) for number, tag in enumerate(tags)}
        source = [str(held.path), f"{line}/labels.parquet"]
        held.dvc(
            *(["get", "-q", *source, "--rev", tag, "-o", str(table)] for tag, table in tables.items()),
            cwd=Path(folder),
        )
        return [
            tag
            for tag, table in tables.items()
            if any(example.case_id in cases for example in shards.read_labels(table))
        ]


def _publish_edition(held: DataRepository, *, line: str, number: int, cases: Collection[int], blobs: Path) -> str:
    """Publish what remains of a version, and return its tag."""
    directory, tag = held.path / line, tag_of(line, number)
    examples, document = previous_version(held, line=line, number=number)
    assert document is not None
    stored = shards.index_shards(directory / "shards", document["shards"])
    remaining = [example for example in examples if example.case_id not in cases]
    images = {example.image_digest for example in remaining}
    opened = {name for digest, name in stored.items() if digest not in images}  # shards that must be written anew
    stored = {digest: name for digest, name in stored.items() if name not in opened}
    remaining = [example for example in remaining if example.image_digest in stored or _readable(example, blobs)]
    said = shards.read_confirmations(directory / "confirmations.parquet")
    rows = (directory / "waiting.ndjson").read_text(encoding="utf-8").splitlines()
    waiting = [Waiting(**json.loads(row)) for row in rows]
    kept = shards.write_shards(
        directory / "shards",
        [example.image_digest for example in remaining],
        stored=stored,
        blobs=blobs,
        keep_going=held.keep_going,
    )
    edition = document.get("edition", 0) + 1
    describe(
        directory,
        {**document, "shards": kept, "edition": edition, "edition_of": digest_of(document)},
        examples=remaining,
        said={case: items for case, items in said.items() if case not in cases},
        waiting=[row for row in waiting if row.case_id not in cases],
    )
    left_out = len(examples) - len(remaining)
    held.publish(f"{tag}.e{edition}", line, message=f"{tag} without {left_out} erased cases")
    return f"{tag}.e{edition}"


def _readable(example: Example, blobs: Path) -> bool:
    """Say whether an image can be written anew; one that is damaged at rest must not keep others from being erased."""
    try:
        shards.read_blob(blobs, example.image_digest)
    except VersionDamaged:
        return False
    return True


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
