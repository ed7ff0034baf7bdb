"""Files known by their SHA-256: images, weights, metadata. `<root>/<first two digits>/<digest>`.

A row is written only after its bytes are safely on disk (temporary file, fsync, rename, fsync of the folder), so a
committed row always has its bytes; bytes without a row are harmless and may be swept. Temporary files lie in
`<root>/.partial`; one that a killed process left is swept by a later write. What is read is hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import time
from pathlib import Path

from psycopg import sql

from registry.db import Connection
from registry.errors import BlobCorrupt, Invalid, NotFound

ABANDONED_SECONDS = 3600.0
"""A temporary file this old has nobody who writes it: a write takes seconds."""
_PARTIAL = ".partial"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def put(conn: Connection, root: Path, data: bytes, *, media_type: str) -> str:
    """Store `data` and return its digest; storing the same bytes again changes nothing (and mends a damaged file)."""
    digest = hashlib.sha256(data).hexdigest()
    path = path_of(root, digest)
    lock(conn, digest)
    if not _holds(path, digest):
        _write(root, path, data)
    sys.audit("overread.fault", "blob.row.before")
    conn.execute(
        "INSERT INTO blobs (digest, size_bytes, media_type) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (digest, len(data), media_type),
    )
    return digest


def read(root: Path, digest: str) -> bytes:
    """Return the bytes with this digest. Raises NotFound, BlobCorrupt if the file no longer has its digest."""
    try:
        data = path_of(root, digest).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no stored file {digest}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise BlobCorrupt(f"the stored file {digest} is damaged; restore it from a backup", digest=digest)
    return data


def lock(conn: Connection, digest: str, *, alone: bool = False) -> None:
    """Until the transaction ends, keep this file from being removed; `alone`, to remove it, keeps it from being stored.

    Otherwise a row could be committed whose bytes an erasure removed after they had been looked for.
    """
    name = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    conn.execute(
        sql.SQL("SELECT {}(hashtextextended('stored file ' || %s, 0))").format(sql.Identifier(name)), (digest,)
    )


def remove(root: Path, digest: str) -> bool:
    """Remove the bytes with this digest; False where they were gone. Only under `lock(..., alone=True)`."""
    path = path_of(root, digest)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _flush(path.parent)
    return True


def path_of(root: Path, digest: str) -> Path:
    """Where the bytes with this digest lie, whether or not they do. Raises Invalid for what is not a digest."""
    if not _DIGEST.fullmatch(digest):
        raise Invalid("a digest is 64 lower-case hexadecimal digits")
    return root / digest[:2] / digest


def _holds(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def _write(root: Path, path: Path, data: bytes) -> None:
    partial = root / _PARTIAL  # on the same file system as where it goes
    partial.mkdir(parents=True, exist_ok=True)
    _sweep(partial)
    path.parent.mkdir(exist_ok=True)
    temporary = partial / f"{path.name[:16]}.{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            sys.audit("overread.fault", "blob.write.before")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sys.audit("overread.fault", "blob.rename.before")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk must not fill up with halves
        raise
    for folder in (path.parent, root):
        _flush(folder)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(partial: Path) -> None:
    for left in partial.iterdir():
        with contextlib.suppress(FileNotFoundError):  # whose it was has moved it, or another sweeps too
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()
