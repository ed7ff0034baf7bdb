"""Signed notes and checkpoints: what the audit trail was at a time, in a form that other people's tools can check.

A checkpoint says: the tree over the first `size` audit events has this root. Leaf n is the text that event n's digest
is taken over (`registry.audit.Link`), so that whoever holds a checkpoint holds every event up to it to what it was.
Keys are Ed25519; a verifier key is one line of text that an auditor keeps, a signing key a file of its owner's alone.

    overread/5f0c2a81b7d94e36
    1300
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    time 2026-03-02T09:30:00Z

    — overread/5f0c2a81b7d94e36 Az3grlgt…

Reference: C2SP signed-note and tlog-checkpoint (https://c2sp.org/tlog-checkpoint); RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from registry.errors import NoteRefused

_ED25519 = b"\x01"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tree of the audit trail at `size` events; `at` is the database's clock as it was signed."""

    origin: str
    size: int
    root: bytes
    at: datetime

    @property
    def text(self) -> str:
        """What is signed: origin, size, root and, as an extension line, the time."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\ntime {self.at.astimezone(UTC):{_TIME}}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """Whoever holds this can tell the notes of one key from all others."""

    name: str
    public_key: bytes

    @property
    def key_hash(self) -> bytes:
        """The four bytes by which a signature line names its key."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    def __str__(self) -> str:
        key = base64.b64encode(_ED25519 + self.public_key).decode()
        return f"{self.name}+{self.key_hash.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read `name+hash+key`. Raises NoteRefused."""
        try:
            name, key_hash, key = text.strip().split("+", 2)
            decoded = base64.b64decode(key, validate=True)
        except (ValueError, binascii.Error):
            raise NoteRefused("a verifier key reads name+hash+key, in one line") from None
        made = cls(name=name, public_key=decoded[1:])
        if decoded[:1] != _ED25519 or len(made.public_key) != 32 or made.key_hash.hex() != key_hash:
            raise NoteRefused("this is no Ed25519 verifier key, or part of it was changed")
        return made

    def opened(self, note: str) -> Checkpoint:
        """Return the checkpoint in a note signed by this key. Raises NoteRefused."""
        text, blank, signatures = note.rpartition("\n\n")
        for line in signatures.splitlines() if blank else ():
            dash, _, rest = line.partition(" ")
            name, _, encoded = rest.rpartition(" ")
            try:
                signature = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                continue
            if (dash, name, signature[:4]) == ("—", self.name, self.key_hash):
                return self._checked(f"{text}\n", signature[4:])
        raise NoteRefused(f"it has no signature by {self.name} ({self.key_hash.hex()})")

    def _checked(self, text: str, signature: bytes) -> Checkpoint:
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, text.encode())
        except InvalidSignature:
            raise NoteRefused(f"its signature by {self.name} does not fit its text") from None
        try:
            origin, size, root, *extensions = text.splitlines()
            times = [line.removeprefix("time ") for line in extensions if line.startswith("time ")]
            checkpoint = Checkpoint(
                origin=origin,
                size=int(size),
                root=base64.b64decode(root, validate=True),
                at=datetime.strptime(times[0], _TIME).replace(tzinfo=UTC),
            )
        except (ValueError, IndexError, binascii.Error):
            raise NoteRefused("it is signed, but no checkpoint of an audit trail") from None
        if origin != self.name:
            raise NoteRefused(f"it is about {origin}, and signed by {self.name}")
        return checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A name and the secret that signs in it."""

    verifier: Verifier
    key: Ed25519PrivateKey

    def sign(self, checkpoint: Checkpoint) -> str:
        """Make the signed note of a checkpoint."""
        signature = self.verifier.key_hash + self.key.sign(checkpoint.text.encode())
        return f"{checkpoint.text}\n— {self.verifier.name} {base64.b64encode(signature).decode()}\n"


def signer_at(path: Path) -> Signer:
    """Return the signer whose key is in this file, making key and verifier key (`.pub`, beside it) the first time.

    Raises NoteRefused where the file holds something else.
    """
    if not path.exists():
        _make_key(path)
    try:
        name, _, encoded = path.read_text(encoding="utf-8").strip().removeprefix("PRIVATE+KEY+").split("+", 2)
        key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(encoded, validate=True)[1:])
    except (ValueError, binascii.Error):
        raise NoteRefused(f"{path} holds no signing key; restore it from a backup") from None
    signer = Signer(verifier=Verifier(name=name, public_key=key.public_key().public_bytes_raw()), key=key)
    public = verifier_path(path)
    if not public.exists():
        public.write_text(f"{signer.verifier}\n", encoding="utf-8")
    return signer


def verifier_path(key: Path) -> Path:
    """Where the verifier key of a signing key lies."""
    return key.with_name(f"{key.name}.pub")


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    verifier = Verifier(name=f"overread/{secrets.token_hex(8)}", public_key=key.public_key().public_bytes_raw())
    seed = base64.b64encode(_ED25519 + key.private_bytes_raw()).decode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"PRIVATE+KEY+{verifier.name}+{verifier.key_hash.hex()}+{seed}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)  # whole or not at all, and never over another's
    finally:
        temporary.unlink()
