"""Which large files were found right before: their digest holds as long as size, time and inode stay the same.

A version's files never change, and there may be terabytes of them: reading all at each freeze would make a version cost
what is there and not what is new. A seal is a note of one look and not a proof; `overread verify` reads every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipelines import job
from pipelines.types import Digest


def sha256_of(file: Path) -> Digest:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return Digest(hashlib.file_digest(stream, "sha256").hexdigest())


class Seals:
    """The seals kept in one file; a missing or unreadable one costs a look at every byte and nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._marks: dict[str, list[int]] = found if isinstance(found, dict) else {}

    def hold(self, file: Path, digest: str) -> bool:
        """Say whether a file has this digest; its bytes are read only where it changed since it was sealed."""
        if not file.is_file():
            return False
        if self._marks.get(digest) == _mark(file):
            return True
        if sha256_of(file) != digest:
            self._marks.pop(digest, None)
            return False
        self._marks[digest] = _mark(file)
        return True

    def keep(self, files: Mapping[str, Path]) -> None:
        """Seal these files, digest -> path, which the caller has read or written, and forget all others."""
        self._marks = {digest: _mark(path) for digest, path in files.items()}
        job.write_atomically(self._file, json.dumps(self._marks).encode())


def _mark(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]
