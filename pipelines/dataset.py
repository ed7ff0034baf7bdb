"""Dataset versions: freeze one, check one out, open one.

A version is a directory: `shards/` (Arrow IPC files of pixels, named by their own SHA-256, shared by all later
versions), `labels.parquet` (one Example a row), `confirmations.parquet` (all that was said about these cases),
`waiting.ndjson`, and `manifest.json`, which names the others by digest. The version's digest is the digest of the
manifest. Invariant: what has been frozen never changes; a second freeze of the same number returns the first.

    python -m pipelines.dataset JOB_DIR        # config.json in; result.json and progress.jsonl out
"""

from __future__ import annotations

import fcntl
import json
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import job, manifest, shards
from pipelines.data_repository import (
    DataRepository,
    DatasetError,
    FreezeRefused,
    VersionDamaged,
    VersionErased,
    tag_of,
    writing,
)
from pipelines.images import Pixels, to_network_input
from pipelines.protocol import InputSpec, Protocol, from_document
from pipelines.types import (
    SPLITS,
    CaseId,
    Confirmation,
    ConfirmedCase,
    Digest,
    Example,
    Split,
    Waiting,
    canonical_json,
    digest_of,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DatasetVersion:
    """An opened dataset version. Rows are in order of case id; all columns have N rows.

    `labels` are indices into `classes`; `label_since == number` marks the labels new in this version.
    """

    path: Path
    line: str
    number: int
    digest: Digest
    manifest: Mapping[str, Any]
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_]
    sites: NDArray[np.str_]
    added_in: NDArray[np.int64]
    label_since: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.examples)

    def indices(self, split: Split | None = None, *, new_only: bool = False) -> NDArray[np.int64]:
        """Rows of a split (all without one), of those with a label new in this version if `new_only`. Ascending."""
        chosen = np.ones(len(self), dtype=np.bool_) if split is None else self.splits == split
        if new_only:
            chosen = chosen & (self.label_since == self.number)
        return np.flatnonzero(chosen).astype(np.int64)

    def images(self, indices: Iterable[int]) -> list[Pixels]:
        """Pixels of some rows, as stored: (H, W) or (H, W, 3), uint8 or uint16. Raises VersionDamaged."""
        digests = [self.examples[int(index)].image_digest for index in indices]
        return list(shards.read_images(self.path / "shards", self.manifest["shards"], digests))

    def prepared(self, spec: InputSpec) -> NDArray[np.float32]:
        """All images as the network sees them: (N, C, rows, columns) float32 in [0, 1], read-only, memory-mapped.

        Made at first use and kept beside the version. Raises VersionDamaged.
        """
        file = self.path / f"prepared-{spec.channels}x{spec.rows}x{spec.columns}.npy"
        if not file.exists():
            with shards.replacing(file) as temporary:
                shape = (len(self), spec.channels, spec.rows, spec.columns)
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                digests = [example.image_digest for example in self.examples]
                stored = shards.read_images(self.path / "shards", self.manifest["shards"], digests)
                for index, pixels in enumerate(stored):
                    array[index] = to_network_input([pixels], spec)[0]
                array.flush()
        mapped: NDArray[np.float32] = np.load(file, mmap_mode="r", allow_pickle=False)
        return mapped

    def confirmations(self) -> dict[CaseId, tuple[Confirmation, ...]]:
        """All standing confirmations at the time of the freeze, by case; cases that wait are among them."""
        return shards.read_confirmations(self.path / "confirmations.parquet")

    def waiting(self) -> list[Waiting]:
        """Cases that were confirmed but did not enter, and why."""
        lines = (self.path / "waiting.ndjson").read_text(encoding="utf-8").splitlines()
        return [Waiting(**json.loads(line)) for line in lines]


def open_version(path: Path) -> DatasetVersion:
    """Open a checked-out version's directory; tables are checked against the manifest, images as they are read.

    Raises VersionDamaged where bytes do not match their digest.
    """
    document = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    shards.verify(path, document, shards=False)
    examples = shards.read_labels(path / "labels.parquet")
    index = {name: position for position, name in enumerate(document["classes"])}
    return DatasetVersion(
        path=path,
        line=document["line"],
        number=document["number"],
        digest=digest_of(document),
        manifest=document,
        classes=tuple(document["classes"]),
        examples=examples,
        labels=np.array([index[example.finding] for example in examples], dtype=np.int64),
        splits=np.array([example.split for example in examples], dtype=np.str_),
        groups=np.array([example.group for example in examples], dtype=np.str_),
        sites=np.array([example.site for example in examples], dtype=np.str_),
        added_in=np.array([example.added_in for example in examples], dtype=np.int64),
        label_since=np.array([example.label_since for example in examples], dtype=np.int64),
    )


def checkout(repository: Path, *, line: str, number: int, into: Path, digest: str | None = None) -> Path:
    """Bring a version's files to `into/<line>/v0001`, read-only, digests verified; returns that directory.

    A version already there is left as it is. `digest` is the version's digest where the caller knows it.
    Raises VersionUnknown, VersionErased, VersionDamaged, ToolFailed.
    """
    source = DataRepository(path=repository)
    tag = tag_of(line, number)
    target = into / tag
    if source.commit_of(tag) in source.erased():
        raise VersionErased(f"{tag} held a patient who has been erased; start a new run, which learns without them")
    if not target.exists():
        source.show(tag, f"{line}/manifest.json")
        with _checking_out(target.parent) as temporary:
            if not target.exists():  # nobody was faster
                got = temporary / "version"
                source.dvc(["get", "-q", str(repository.resolve()), line, "--rev", tag, "-o", str(got)], cwd=temporary)
                shards.verify(got, json.loads((got / "manifest.json").read_text(encoding="utf-8")), shards=True)
                for file in got.rglob("*"):
                    if file.is_file():
                        file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
                sys.audit("overread.fault", "checkout.rename.before")
                got.rename(target)
    document = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    if digest is not None and digest_of(document) != digest:
        raise VersionDamaged(f"{tag} has the digest {digest_of(document)}, not {digest}; it is not the version meant")
    return target


def freeze(
    repository: Path,
    *,
    remote: str,
    line: str,
    number: int,
    protocol: Protocol,
    split_key: bytes,
    cases: Sequence[ConfirmedCase],
    blobs: Path,
    previous: int | None = None,
    tell: Callable[[str], None] = lambda _stage: None,
    keep_going: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Freeze the confirmed cases as version `number` of a line and publish it; returns the result's JSON values.

    A version that exists already is returned as it is. `tell` hears of each stage; `keep_going` is called often and
    raises to stop. Raises FreezeRefused where there is nothing to freeze yet, ToolFailed, VersionDamaged.
    """
    tag = tag_of(line, number)
    tell("waiting for the data repository")
    with writing(repository, remote=remote, keep_going=keep_going) as held:
        if held.commit_of(tag) is not None:
            return _result(held, line=line, number=number, protocol=protocol)
        directory = held.path / line
        directory.mkdir(exist_ok=True)
        tell("reading the version before")
        before, document_before = previous_version(held, line=line, number=previous)
        stored = shards.index_shards(directory / "shards", document_before["shards"]) if document_before else {}
        tell("settling confirmations")
        readable, unreadable = _readable(cases, blobs=blobs, stored=stored, keep_going=keep_going)
        examples, waiting = manifest.assemble(
            readable, protocol=protocol, split_key=split_key, number=number, previous=before
        )
        waiting = sorted([*waiting, *unreadable], key=lambda row: row.case_id)
        edited = bool(document_before and "edition" in document_before)  # something new to learn: what to forget
        _refuse_if_useless(examples, before=() if edited else before, waiting=waiting, protocol=protocol)
        tell("writing images")
        wanted = [example.image_digest for example in examples]
        kept = shards.write_shards(directory / "shards", wanted, stored=stored, blobs=blobs, keep_going=keep_going)
        document = describe(
            directory,
            {
                "schema_version": 1,
                "line": line,
                "number": number,
                "previous": document_before and {"number": previous, "digest": digest_of(document_before)},
                "protocol_digest": protocol.digest,
                "classes": list(protocol.classes),
                "shards": kept,
                # The newest confirmation always stands, so this names all that were considered.
                "last_confirmation_id": max(item.confirmation_id for case in cases for item in case.confirmations),
            },
            examples=examples,
            said={case.case_id: case.confirmations for case in cases},
            waiting=waiting,
        )
        tell("publishing")
        held.publish(tag, line, message=f"{tag}\n\ndigest {digest_of(document)}")
        return _result(held, line=line, number=number, protocol=protocol)


def describe(
    directory: Path,
    document: Mapping[str, Any],
    *,
    examples: Sequence[Example],
    said: Mapping[CaseId, Sequence[Confirmation]],
    waiting: Sequence[Waiting],
) -> dict[str, Any]:
    """Write a version's tables beside its shards, and its manifest: `document` and all that follows from the tables."""
    shards.write_labels(directory / "labels.parquet", examples)
    shards.write_confirmations(directory / "confirmations.parquet", said)
    text = "".join(canonical_json(asdict(row)) + "\n" for row in waiting)
    job.write_atomically(directory / "waiting.ndjson", text.encode())
    by_submitter, new = manifest.new_cases(examples, number=document["number"])
    whole = {
        **document,
        "examples": len(examples),
        "new_examples": new,
        "labels_digest": shards.sha256_of(directory / "labels.parquet"),
        "confirmations_digest": shards.sha256_of(directory / "confirmations.parquet"),
        "waiting_digest": shards.sha256_of(directory / "waiting.ndjson"),
        "counts": manifest.counts(examples, document["classes"]),
        "new_cases": by_submitter,
        "waiting": dict(sorted(Counter(row.reason.partition(":")[0] for row in waiting).items())),
    }
    job.write_atomically(directory / "manifest.json", json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")
    return whole


def previous_version(
    repository: DataRepository, *, line: str, number: int | None
) -> tuple[tuple[Example, ...], dict[str, Any] | None]:
    """Examples and manifest of a version, or of its newest edition without erased cases; none for None.

    The working directory is brought to it where it does not match.
    """
    if number is None:
        return (), None
    tag, directory = repository.newest_edition(tag_of(line, number)), repository.path / line
    document = json.loads(repository.show(tag, f"{line}/manifest.json"))
    for attempt in range(3):
        try:
            shards.verify(directory, document, shards=True)
            break
        except VersionDamaged:  # most often by a killed freeze; else the cache is, and only the remote is whole
            if attempt == 2:
                raise
            repository.restore(tag, line, distrust_cache=attempt == 1)
    return shards.read_labels(directory / "labels.parquet"), document


def main(arguments: list[str]) -> int:
    """Run the freeze that a job directory describes."""
    return job.run(arguments, work=_work)


def confirmed_case(row: Mapping[str, Any]) -> ConfirmedCase:
    """Make a confirmed case from plain JSON values, as `cases.ndjson` has them. Raises TypeError on other fields."""
    said = tuple(Confirmation(**item) for item in row["confirmations"])
    return ConfirmedCase(**{**row, "confirmations": said})


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    keep_going = job.orphan_watch()
    rows = Path(config["cases"]).read_text(encoding="utf-8").splitlines()
    try:
        return freeze(
            Path(config["repository"]),
            remote=config["remote"],
            line=config["line"],
            number=config["number"],
            protocol=from_document(config["protocol"]),
            split_key=bytes.fromhex(config["split_key"]),
            cases=[confirmed_case(json.loads(row)) for row in rows if row.strip()],
            blobs=Path(config["blobs"]),
            previous=config["previous"],
            tell=lambda stage: job.append_progress(directory, {"stage": stage}),
            keep_going=keep_going,
        )
    except FreezeRefused as refusal:
        raise job.Refused(str(refusal)) from refusal


@contextmanager
def _checking_out(directory: Path) -> Iterator[Path]:
    """One checkout at a time in a directory; what a killed one left is swept. Gives a place to work in."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in directory.glob(".checkout-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".checkout-") as temporary:
            yield Path(temporary)


def _result(repository: DataRepository, *, line: str, number: int, protocol: Protocol) -> dict[str, Any]:
    """Tell of a published version, from what is published and nothing else."""
    tag = tag_of(line, number)
    document = json.loads(repository.show(tag, f"{line}/manifest.json"))
    if document["protocol_digest"] != protocol.digest:
        raise DatasetError(f"{tag} has been frozen under another protocol; give this version another number")
    waiting = repository.show(tag, f"{line}/waiting.ndjson").decode().splitlines()
    total = max(document["new_examples"], 1)
    return {
        "digest": digest_of(document),
        "git_tag": tag,
        "git_commit": repository.commit_of(tag),
        "number": number,
        "counts": document["counts"],
        "examples": document["examples"],
        "new_examples": document["new_examples"],
        "submitter_shares": {name: count / total for name, count in document["new_cases"].items()},
        "waiting": [json.loads(row) for row in waiting],
        "manifest": document,
    }


def _refuse_if_useless(
    examples: Sequence[Example], *, before: Sequence[Example], waiting: Sequence[Waiting], protocol: Protocol
) -> None:
    if not examples:
        raise FreezeRefused(f"no case has a settled diagnosis yet; {len(waiting)} wait")
    if tuple(examples) == tuple(before):
        raise FreezeRefused("nothing is new since the version before; confirm more cases first")
    table = manifest.counts(examples, protocol.classes)
    empty = [f"{name} in {split}" for split in SPLITS for name in protocol.classes if table[split][name] == 0]
    if empty:
        raise FreezeRefused(
            f"{len(examples)} cases are settled, but there is none yet for: {', '.join(empty)}; confirm more cases"
        )


def _readable(
    cases: Iterable[ConfirmedCase],
    *,
    blobs: Path,
    stored: Mapping[str, str],
    keep_going: Callable[[], None],
) -> tuple[list[ConfirmedCase], list[Waiting]]:
    """Part cases whose image is in hand from those whose image is missing or damaged at rest."""
    readable, unreadable = [], []
    for case in cases:
        keep_going()
        if case.image_digest not in stored:
            try:
                shards.read_blob(blobs, case.image_digest)
            except VersionDamaged as error:
                unreadable.append(Waiting(case_id=case.case_id, reason=f"image unreadable: {error}"))
                continue
        readable.append(case)
    return readable, unreadable


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
