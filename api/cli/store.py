"""A folder of backups: every file once, by its SHA-256, and for each backup a list of what it is made of.

    DIR/files/ab/<sha256>                 bytes, shared by all backups, never changed
    DIR/<time>/files.ndjson               one file a row: where it belongs, its digest, its size
    DIR/<time>/manifest.json              what the record held, and the digest of files.ndjson
    DIR/streams/<time>/                   a copy that goes on growing (`api.cli.streaming`)
    DIR/erasures.ndjson                   who was erased since, by digest: no backup brings them back

Invariants: the manifest is written last and in one step, after everything it names is on disk: a backup without a
manifest is not a backup. Only one command writes at a time. Nobody but the owner can read any of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.cli.errors import CliError, SetupError

FORMAT = 1
_NAME = re.compile(r"\d{8}T\d{6}Z(-\d+)?")
_CHUNK = 1 << 20


class Busy(SetupError):
    """Another command writes to this folder just now."""


class BackupDamaged(CliError):
    """What the folder holds is not what a backup's manifest says."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a backup: `place` is its path below the home, in POSIX form."""

    place: str
    sha256: str
    size: int


class Store:
    """The folder of backups at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.new_files = self.new_bytes = 0  # what this object added that was not here before
        self._pool = root / "files"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for writing, made if absent. Raises SetupError; Busy while another command writes."""
        try:
            self._pool.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
            lock = (self.root / "lock").open("a")
        except OSError as error:
            raise SetupError(f"{self.root} cannot be written: {error.strerror}", fix="name another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(f"another backup is being written to {self.root}", fix="wait for it to end") from error
            for left in self._pool.glob(".new-*"):
                left.unlink()
            for left in self.root.iterdir():
                if _NAME.fullmatch(left.name) and not (left / "manifest.json").exists():
                    shutil.rmtree(left)
            yield

    def names(self) -> list[str]:
        """Names of the backups, the oldest first; what was cut off before its manifest is none."""
        folders = self.root.iterdir() if self.root.is_dir() else iter(())
        return sorted(path.name for path in folders if _NAME.fullmatch(path.name) and (path / "manifest.json").exists())

    def choose(self, name: str | None) -> str:
        """Return `name` or the newest backup. Raises SetupError where there is no such backup."""
        known = self.names()
        if not known:
            raise SetupError(f"{self.root} holds no backup", fix="make one: overread backup DIR")
        if name is not None and name not in known:
            raise SetupError(f"{self.root} holds no backup {name}", fix=f"one of: {', '.join(known)}")
        return name or known[-1]

    def manifest(self, name: str) -> dict[str, Any]:
        """Read a backup's manifest. Raises BackupDamaged."""
        try:
            document: dict[str, Any] = json.loads((self.root / name / "manifest.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise BackupDamaged(f"the manifest of backup {name} cannot be read", fix="use another backup") from error
        if document.get("format") != FORMAT:
            raise BackupDamaged(
                f"backup {name} has format {document.get('format')}, this version reads {FORMAT}",
                fix="use the version of Overread that made it",
            )
        return document

    def entries(self, name: str) -> list[Entry]:
        """Read what a backup is made of, checked against its manifest. Raises BackupDamaged."""
        listing = self.root / name / "files.ndjson"
        digest = sha256_of(listing) if listing.exists() else None
        if digest != self.manifest(name)["files_sha256"]:
            raise BackupDamaged(f"the list of files of backup {name} is not the one made with it", fix="use another")
        return rows_of(listing)

    def holds(self, sha256: str, *, size: int) -> bool:
        """Say whether the bytes are here, going by their name and size."""
        try:
            return self._path(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def add(self, source: Path, *, place: str, expected: str | None = None) -> Entry:
        """Copy a file in, and say what it is made of. Raises FileNotFoundError, BackupDamaged if not as `expected`."""
        temporary = self._pool / f".new-{secrets.token_hex(8)}"
        digest, size = _copy(source, temporary)
        if expected is not None and digest != expected:
            temporary.unlink()
            raise BackupDamaged(f"{source} no longer has its digest {expected}")
        target = self._path(digest)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        if not target.exists():
            self.new_files += 1
            self.new_bytes += size
        temporary.replace(target)  # over an older copy: the same bytes, or damaged ones
        return Entry(place=place, sha256=digest, size=size)

    def new_name(self, at: datetime) -> str:
        """Name a backup after the moment whose state it holds."""
        name = again = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        number = 1
        while (self.root / again).exists():
            number += 1
            again = f"{name}-{number}"
        return again

    def remember_erasures(self, erasures: Iterable[dict[str, Any]]) -> None:
        """Keep whom the record has erased beside all backups, so that an older one cannot bring them back."""
        rows = {json.dumps(row, sort_keys=True) for row in [*self.erasures(), *erasures]}
        temporary = self.root / ".erasures.ndjson"
        temporary.write_text("".join(f"{row}\n" for row in sorted(rows)), encoding="utf-8")
        temporary.replace(self.root / "erasures.ndjson")

    def erasures(self) -> list[dict[str, Any]]:
        """Read whom no backup of this folder may bring back."""
        path = self.root / "erasures.ndjson"
        return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def finish(self, name: str, *, entries: Iterable[Entry], facts: dict[str, Any]) -> str:
        """Write the list and then the manifest; return the manifest's SHA-256."""
        folder = self.root / name
        folder.mkdir(mode=0o700)
        listing = folder / "files.ndjson"
        listing.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries), encoding="utf-8")
        text = json.dumps({"format": FORMAT, "files_sha256": sha256_of(listing), **facts}, indent=1, sort_keys=True)
        temporary = folder / ".manifest.json"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.sync()  # one wait for all that was copied, before the name that vouches for it appears
        temporary.replace(folder / "manifest.json")
        os.sync()
        return hashlib.sha256(f"{text}\n".encode()).hexdigest()

    def place(self, entry: Entry, target: Path) -> None:
        """Copy one file out, private to its owner. Raises BackupDamaged where its bytes are not what they were."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            digest, _size = _copy(self._path(entry.sha256), target)
        except FileNotFoundError:
            digest = None
        if digest != entry.sha256:
            target.unlink(missing_ok=True)
            raise BackupDamaged(
                f"{entry.place} is {'missing from' if digest is None else 'damaged in'} the backup "
                f"({self._path(entry.sha256)})",
                fix="use another backup, or another copy of this folder",
            )

    def wrong(self, name: str, *, tell: Callable[[int, int], None]) -> list[str]:
        """Read every file of a backup again; name those that are missing or changed. Raises BackupDamaged."""
        entries = self.entries(name)
        found = []
        for position, entry in enumerate(entries, start=1):
            path = self._path(entry.sha256)
            if not path.exists():
                found.append(f"{entry.place} is missing ({path})")
            elif sha256_of(path) != entry.sha256:
                found.append(f"{entry.place} is damaged ({path})")
            tell(position, len(entries))
        return found

    def keep_newest(self, count: int) -> int:
        """Remove all backups but the newest `count`, and the bytes nobody else names; return how many were removed."""
        with self.writing():
            surplus = self.names()[:-count]
            for name in surplus:
                (self.root / name / "manifest.json").unlink()  # first: half a backup must not look like one
                shutil.rmtree(self.root / name)
            self.sweep()
        return len(surplus)

    def sweep(self) -> None:
        """Remove the bytes that neither a backup nor a stream names; hold the folder for writing meanwhile."""
        named = {entry.sha256 for name in self.names() for entry in self.entries(name)}
        named |= {entry.sha256 for listing in self.root.glob("streams/*/*.ndjson") for entry in rows_of(listing)}
        for path in self._pool.glob("??/*"):
            if path.name not in named:
                path.unlink()

    def _path(self, sha256: str) -> Path:
        return self._pool / sha256[:2] / sha256


def rows_of(listing: Path) -> list[Entry]:
    """Read a list of files; a last row that was cut off in the middle is none, an absent list is empty."""
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    return [Entry(**json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def sha256_of(path: Path) -> str:
    """Work out the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy bytes to a file of mode 0600 and return their SHA-256 and number."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reading:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as writing:
            while chunk := reading.read(_CHUNK):
                digest.update(chunk)
                size += writing.write(chunk)
    return digest.hexdigest(), size
