"""The checkpoints of the audit trail: one signed file each, in a folder outside the database.

Invariants: a checkpoint is never replaced; it is only signed if the trail of now begins with the trail that was signed
before. Copy the folder to where this machine cannot write (`docs/verifying.md`), and nobody who holds both the database
and this machine can take an event back that was copied.

What was read is not read again: `range.json` beside them holds the O(log n) hashes from which the tree grows. It is
believed only where it leads to the root of the newest checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from registry import audit
from registry.db import Connection, fetch_value
from registry.errors import NoteRefused, TrailDamaged
from registry.merkle import CompactRange, leaf_hash
from registry.notes import Checkpoint, Signer, Verifier

SUFFIX = ".checkpoint"
RANGE = "range.json"


@dataclass(slots=True, kw_only=True)
class Grown:
    """A tree over the trail so far, and the digest of its last event."""

    tree: CompactRange
    digest: str = audit.GENESIS


def files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def newest(folder: Path, verifier: Verifier) -> Checkpoint | None:
    """Return the newest checkpoint, None before the first. Raises NoteRefused."""
    found = files(folder)
    return read(found[-1], verifier) if found else None


def newest_note(folder: Path) -> str | None:
    """Return the signed text of the newest checkpoint, None before the first."""
    found = files(folder)
    return found[-1].read_text(encoding="utf-8") if found else None


def read(file: Path, verifier: Verifier) -> Checkpoint:
    """Read one checkpoint. Raises NoteRefused where it is not signed by that key, or not under its own name."""
    try:
        checkpoint = verifier.opened(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise NoteRefused(f"{file.name}: it is no text") from None
    except NoteRefused as refusal:
        raise NoteRefused(f"{file.name}: {refusal}") from None
    if file.name != _name(checkpoint.size):
        raise NoteRefused(f"{file.name}: it is the checkpoint of {checkpoint.size} events, under another name")
    return checkpoint


def take(conn: Connection, folder: Path, *, signer: Signer) -> Checkpoint | None:
    """Sign a checkpoint of the trail as it is now; None where the newest one is of the same length, or it is empty.

    Reads only what was written since. Raises TrailDamaged where the trail no longer is the one that was signed,
    NoteRefused where the newest checkpoint is not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = newest(folder, signer.verifier)
    grown = _resumed(conn, folder, last)
    for link in audit.chain(conn, after=grown.tree.size):
        if not link.follows(grown.tree.size, grown.digest):
            raise TrailDamaged(f"event {grown.tree.size + 1} of the audit trail is missing or was rewritten")
        grown.tree.append(leaf_hash(link.text.encode()))
        grown.digest = link.digest
        if last is not None and grown.tree.size == last.size:
            _check(grown.tree, last)
    if last is not None and grown.tree.size < last.size:
        raise TrailDamaged(missing(grown.tree.size, last))
    if grown.tree.size == (0 if last is None else last.size):
        return None
    now: datetime = fetch_value(conn, "SELECT clock_timestamp()")
    checkpoint = Checkpoint(
        origin=signer.verifier.name, size=grown.tree.size, root=grown.tree.root(), at=now.replace(microsecond=0)
    )
    _write_once(folder / _name(checkpoint.size), signer.sign(checkpoint))
    _keep(folder, grown)
    return checkpoint


def missing(size: int, checkpoint: Checkpoint) -> str:
    """Say which events a checkpoint names that a trail of `size` events does not have."""
    checkpoint_of = f"checkpoint {checkpoint.size} of {checkpoint.at:%Y-%m-%d %H:%M:%SZ}"
    if checkpoint.size == size + 1:
        return f"event {checkpoint.size} is missing: {checkpoint_of} names it"
    return f"events {size + 1}..{checkpoint.size} are missing: {checkpoint_of} names them"


def _resumed(conn: Connection, folder: Path, last: Checkpoint | None) -> Grown:
    """Go on from what was kept, if it is what was signed and the trail still has its last event; else from nothing."""
    anew = Grown(tree=CompactRange())
    if last is None:
        return anew
    try:
        kept = json.loads((folder / RANGE).read_text(encoding="utf-8"))
        tree = CompactRange(size=int(kept["size"]), hashes=[bytes.fromhex(item) for item in kept["hashes"]])
        digest = str(kept["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return anew
    if (tree.size, tree.root()) != (last.size, last.root):
        return anew
    there = fetch_value(conn, "SELECT digest FROM audit_events WHERE audit_event_id = %s", (tree.size,))
    return Grown(tree=tree, digest=digest) if there == digest else anew


def _check(tree: CompactRange, checkpoint: Checkpoint) -> None:
    if tree.root() != checkpoint.root:
        raise TrailDamaged(
            f"the audit trail was rewritten: its first {checkpoint.size} events are not those that checkpoint"
            f" {checkpoint.size} of {checkpoint.at:%Y-%m-%d %H:%M:%SZ} was signed for"
        )


def _name(size: int) -> str:
    return f"{size:012d}{SUFFIX}"


def _keep(folder: Path, grown: Grown) -> None:
    document = {"size": grown.tree.size, "digest": grown.digest, "hashes": [item.hex() for item in grown.tree.hashes]}
    temporary = _written(folder / RANGE, json.dumps(document))
    temporary.replace(folder / RANGE)


def _write_once(path: Path, text: str) -> None:
    """Write a file that is whole on disk or absent, and never take the place of one that is there."""
    temporary = _written(path, text)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return  # another process signed the same trail at the same length
    finally:
        temporary.unlink()
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _written(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
