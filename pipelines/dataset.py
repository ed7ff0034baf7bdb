"""Dataset versions: check one out, open one.

A version is a directory with `manifest.json`, which names by SHA-256 the parts of the case table in `cases/` and the
shards of images in `shards/`; the version's digest is the digest of its manifest. Later versions share the files that
have not changed, and so do checkouts side by side.

    version = open_version(checkout(repository, line="cxr-pneumonia", number=7, into=Path("checkouts")))
    images = version.prepared(protocol.input)[version.indices("train")]     # (n, C, rows, columns)
"""

from __future__ import annotations

import fcntl
import json
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import case_table, prepared
from pipelines.contents import Contents
from pipelines.data_repository import DataRepository, VersionDamaged, VersionErased, tag_of
from pipelines.findings import matrix
from pipelines.images import Pixels
from pipelines.prepared import Prepared
from pipelines.protocol import InputSpec
from pipelines.seals import Seals, sha256_of
from pipelines.shards import Images, Place
from pipelines.types import CaseId, Confirmation, Digest, Example, Split, Waiting, digest_of


class DatasetVersion:
    """An opened dataset version. Rows are its examples in order of case id; each column is read when it is asked for.

    `labels` are indices into `classes`, or which of them are present where they do not exclude each other (`several`);
    `label_since == number` marks the labels new in this version.
    """

    def __init__(self, contents: Contents) -> None:
        document = contents.document
        self.contents = contents
        self.path: Path = contents.directory
        self.manifest: Mapping[str, Any] = document
        self.line: str = document["line"]
        self.number: int = document["number"]
        self.digest: Digest = digest_of(document)
        self.classes: tuple[str, ...] = tuple(document["classes"])
        self.several: bool = document.get("task") == "multilabel"

    def __len__(self) -> int:
        return len(self.case_ids)

    @cached_property
    def case_ids(self) -> NDArray[np.int64]:
        """(N,) ascending."""
        return self._numbers("case_id")

    @cached_property
    def labels(self) -> NDArray[Any]:
        """(N,) int64 index into `classes`; of several findings (N, K) bool, which are present."""
        if self.several:
            return matrix(self._column("finding").to_pylist(), self.classes)
        found = pc.index_in(self._column("finding"), pa.array(self.classes, pa.string()))
        return np.asarray(found.to_numpy(), dtype=np.int64)

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """(N,) `train`, `tune` or `sealed_test`."""
        return self._text("split").astype(np.str_)

    @cached_property
    def sites(self) -> NDArray[np.str_]:
        """(N,) text."""
        return self._text("site").astype(np.str_)

    @cached_property
    def evidences(self) -> NDArray[Any]:
        """(N,) text: the evidence that each answer rests on."""
        return self._text("evidence")

    @cached_property
    def ai_exposures(self) -> NDArray[Any]:
        """(N,) text: `blind`, `aided` or `unknown`, of the reads that each answer rests on."""
        return self._text("ai_exposure")

    @cached_property
    def added_in(self) -> NDArray[np.int64]:
        """(N,) number of the version in which the case was first."""
        return self._numbers("added_in")

    @cached_property
    def label_since(self) -> NDArray[np.int64]:
        """(N,) number of the version since which the case has had its label."""
        return self._numbers("label_since")

    @cached_property
    def groups(self) -> NDArray[Any]:
        """(N,) text: the patient, or the image where the patient is unknown."""
        return self._text("group")

    @cached_property
    def image_digests(self) -> NDArray[np.object_]:
        """(N,) SHA-256 of each image, in hexadecimal."""
        return np.array([Digest(value.hex()) for value in self._column("image_digest").to_pylist()], dtype=object)

    @cached_property
    def phashes(self) -> NDArray[np.uint64]:
        """(N,) perceptual hash of each image, 64 bits."""
        found: NDArray[np.uint64] = self._column("phash").to_numpy()
        return found

    @cached_property
    def scanners(self) -> NDArray[Any]:
        """(N,) text or None."""
        return self._text("scanner")

    @cached_property
    def sexes(self) -> NDArray[Any]:
        """(N,) text or None."""
        return self._text("sex")

    @cached_property
    def age_bands(self) -> NDArray[Any]:
        """(N,) text or None."""
        return self._text("age_band")

    @property
    def waiting_counts(self) -> dict[str, int]:
        """Cases that wait, by the first words of the reason."""
        return dict(self.manifest["waiting"])

    def columns(self, *names: str) -> Any:
        """Columns of the case table as an Arrow table of N rows, the examples'."""
        tables = self.contents.tables(*names, "waiting")
        inside = [table.filter(pc.is_null(table.column("waiting"))).select(names) for table in tables]
        return pa.concat_tables(inside).combine_chunks()

    def examples(self, rows: Iterable[int] | None = None) -> list[Example]:
        """All that is known of some rows, or of every one."""
        wanted = self.case_ids if rows is None else self.case_ids[list(rows)]
        found = {row.case.case_id: row.outcome for row in self._rows(wanted)}
        examples = [found[CaseId(case_id)] for case_id in wanted.tolist()]
        return [example for example in examples if isinstance(example, Example)]

    def indices(self, split: Split | None = None, *, new_only: bool = False) -> NDArray[np.int64]:
        """Rows of a split (all without one), of those with a label new in this version if `new_only`. Ascending."""
        chosen = np.ones(len(self), dtype=np.bool_) if split is None else self.splits == split
        if new_only:
            chosen = chosen & (self.label_since == self.number)
        return np.flatnonzero(chosen).astype(np.int64)

    def images(self, indices: Iterable[int]) -> list[Pixels]:
        """Pixels of some rows, as stored: (H, W), (H, W, 3) or (D, H, W); uint8 or uint16. Raises VersionDamaged."""
        stored = Images(self.path / "shards", self.contents.shards)
        rows = self._places.take(np.fromiter(indices, dtype=np.int64)).to_pylist()
        return [stored.read(Place(row["shard"], row["row"]), row["image_digest"].hex()) for row in rows]

    def prepared(self, spec: InputSpec) -> Prepared:
        """All images as the network sees them, (N, C, rows, columns) float32 in [0, 1], memory-mapped.

        What was not prepared before is prepared now, and kept beside the version. Raises VersionDamaged.
        """
        return prepared.prepare(
            self.path / "prepared",
            spec=spec,
            directory=self.path / "shards",
            held=self.contents.shards,
            shard_of=self._numbers("shard"),
            row_of=self._numbers("row"),
        )

    def said(self, case_ids: Iterable[int]) -> dict[CaseId, tuple[Confirmation, ...]]:
        """What stood about some cases at the time of the freeze, cases that wait among them."""
        wanted = np.fromiter(case_ids, dtype=np.int64)
        tables = self.contents.tables("case_id", "confirmations")
        return case_table.said_in(case_table.with_ids(table, wanted) for table in tables)

    def waiting(self) -> list[Waiting]:
        """Cases that were confirmed but are not in, and why."""
        columns = ("case_id", "waiting", "split", "added_in")
        return [
            Waiting(case_id=CaseId(row["case_id"]), reason=row["waiting"], split=row["split"], added_in=row["added_in"])
            for table in self.contents.tables(*columns)
            for row in table.filter(pc.is_valid(table.column("waiting"))).to_pylist()
        ]

    @cached_property
    def _places(self) -> Any:
        return self.columns("shard", "row", "image_digest")

    def _column(self, name: str) -> Any:
        return self.columns(name).column(name)

    def _numbers(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self._column(name).to_numpy(), dtype=np.int64)

    def _text(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self._column(name).to_numpy(zero_copy_only=False)
        return found

    def _rows(self, case_ids: NDArray[np.int64]) -> Iterator[case_table.CaseRow]:
        parts = {case_table.part_of(case_id) for case_id in case_ids.tolist()}
        for part in sorted(parts):
            yield from case_table.rows_of(case_table.with_ids(self.contents.table(part), case_ids))


def open_version(path: Path) -> DatasetVersion:
    """Open a checked-out version's directory; tables are checked against the manifest, images as they are read.

    Raises VersionDamaged where bytes do not match their digest.
    """
    contents = Contents.listed(path, json.loads((path / "manifest.json").read_text(encoding="utf-8")))
    for part in contents.parts:
        file = path / "cases" / part.name
        if not file.is_file() or sha256_of(file) != part.digest:
            raise VersionDamaged(f"{file} is missing or does not match its digest; check the version out anew")
    return DatasetVersion(contents)


def checkout(repository: Path, *, line: str, number: int, into: Path, digest: str | None = None) -> Path:
    """Bring a version's files to `into/<line>/v0001`, read-only, digests verified; returns that directory.

    A version already there is left as it is. Files that another version beside it has are linked and not copied.
    `digest` is the version's digest where the caller knows it.
    Raises VersionUnknown, VersionErased, VersionDamaged, ToolFailed.
    """
    source = DataRepository(path=repository)
    tag = tag_of(line, number)
    target = into / tag
    if source.commit_of(tag) in source.erased():
        raise VersionErased(f"{tag} held a patient who has been erased; start a new run, which learns without them")
    if not target.exists():
        document = json.loads(source.show(tag, f"{line}/manifest.json"))
        with _checking_out(target.parent) as temporary:
            if not target.exists():  # nobody was faster
                _bring(source, tag, Contents.listed(temporary / "version", document), beside=target.parent)
                sys.audit("overread.fault", "checkout.rename.before")
                (temporary / "version").rename(target)
    document = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    if digest is not None and digest_of(document) != digest:
        raise VersionDamaged(f"{tag} has the digest {digest_of(document)}, not {digest}; it is not the version meant")
    return target


def _bring(source: DataRepository, tag: str, contents: Contents, *, beside: Path) -> None:
    seals = Seals(beside / ".seals.json")
    line = contents.document["line"]
    missing = {}
    for folder in ("cases", "shards"):
        (contents.directory / folder).mkdir(parents=True)
    for digest, file in contents.files().items():
        twins = beside.glob(f"v*/{file.parent.name}/{file.name}")
        twin = next((twin for twin in twins if seals.hold(twin, digest)), None)
        if twin is None:
            missing[f"{line}/{file.parent.name}/{file.name}"] = str(file)
        else:
            file.hardlink_to(twin)
    source.fetch(tag, missing)
    contents.verify(seals)
    (contents.directory / "manifest.json").write_bytes(source.show(tag, f"{line}/manifest.json"))
    for file in contents.directory.rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    (contents.directory / "prepared").symlink_to("../prepared")  # shared by all versions of the line
    (beside / "prepared").mkdir(exist_ok=True)
    seals.keep(contents.files())


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
