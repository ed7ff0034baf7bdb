"""What the data repository holds, compared with its digests: every version, every file, nothing taken on trust.

A version is sound when its tag names the commit on record, its manifest has the digest on record, and every file that
the manifest names has its digest where DVC's remote keeps it. A file that many versions share is read once. Where the
remote is no folder of this machine, each version is fetched anew.

Reference: DVC 3, "files/md5" of a remote: a file by the MD5 of its bytes, a folder as a list of them in JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.data_repository import TRACKED_LARGE, DataRepository, VersionDamaged, VersionUnknown, tag_of
from pipelines.dataset import checkout
from pipelines.seals import sha256_of
from pipelines.types import digest_of


class Shelf:
    """The versions in one data repository; `files` counts those that were read and found right."""

    def __init__(self, repository: Path, *, remote: str) -> None:
        self._repository = DataRepository(path=repository)
        self._remote = remote
        self._digests: dict[Path, str] = {}

    @property
    def files(self) -> int:
        """Number of files read so far."""
        return len(self._digests)

    def check(self, *, line: str, number: int, digest: str, commit: str, erased: bool = False) -> None:
        """Check one version against its digest and commit on record. Raises VersionDamaged, VersionUnknown.

        `erased`: the record says that a patient in it was, so its large files may be gone; its manifest may not.
        """
        tag = tag_of(line, number)
        found = self._repository.commit_of(tag)
        if found is None:
            raise VersionUnknown(f"it is not in the data repository {self._repository.path}")
        if found != commit:
            raise VersionDamaged(f"its tag names commit {found[:12]}, not {commit[:12]} as recorded")
        document = json.loads(self._repository.show(tag, f"{line}/manifest.json"))
        if digest_of(document) != digest:
            raise VersionDamaged("its manifest does not have the digest on record")
        if erased and commit in self._repository.erased():
            return
        if "://" in self._remote:
            with tempfile.TemporaryDirectory() as folder:
                checkout(self._repository.path, line=line, number=number, into=Path(folder), digest=digest)
            return
        for name, path, expected in self._large(tag, line, document):
            if self._digest(name, path) != expected:
                raise VersionDamaged(f"{name}, kept as {path}, was altered: its bytes have another digest")

    def _large(self, tag: str, line: str, document: dict[str, Any]) -> Iterator[tuple[str, Path, str]]:
        """Name, place and digest of each file that DVC keeps of a version."""
        for folder in TRACKED_LARGE:
            listing = self._place(self._md5(tag, f"{line}/{folder}.dvc"))
            try:
                held = {item["relpath"]: item["md5"] for item in json.loads(listing.read_bytes())}
            except (OSError, ValueError, KeyError, TypeError):
                raise VersionDamaged(
                    f"the list of its {folder}, kept as {listing}, is missing or was altered"
                ) from None
            for entry in document[folder]:
                if entry["name"] not in held:
                    raise VersionDamaged(f"{folder}/{entry['name']} is not in the list kept as {listing}")
                yield f"{folder}/{entry['name']}", self._place(held[entry["name"]]), entry["digest"]

    def _md5(self, tag: str, name: str) -> str:
        return str(yaml.safe_load(self._repository.show(tag, name))["outs"][0]["md5"])

    def _place(self, md5: str) -> Path:
        return Path(self._remote) / "files" / "md5" / md5[:2] / md5[2:]

    def _digest(self, name: str, path: Path) -> str:
        if path not in self._digests:
            try:
                self._digests[path] = sha256_of(path)
            except OSError as error:
                raise VersionDamaged(f"{name}, kept as {path}, cannot be read: {error.strerror}") from None
        return self._digests[path]
