"""What the record knows of one case or one candidate, in a file that proves itself without the record.

A bundle is a tar of `events.jsonl` (each audit event as the chain has it, with its RFC 6962 proof of inclusion),
`rows.jsonl` (the rows that those events vouch for, as text), `checkpoint` (signed) and, if asked for, `files/` named by
their SHA-256. It is made of nothing but these, so the same record under the same checkpoint makes the same bytes.

It proves that all that is in it was recorded, and unchanged since the checkpoint. That nothing was left out of it only
`overread verify` at the whole record can tell. It names no patient beyond the keyed pseudonym.

Reference: RFC 6962 §2.1.1 (audit paths); C2SP tlog-checkpoint.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import audit, blobs, rows
from registry.db import Connection
from registry.errors import NoteRefused, NotFound
from registry.merkle import Tree, leaf_hash, root_by_proof
from registry.notes import Checkpoint, Verifier
from registry.verify import Finding

_DIGEST = re.compile(r'"(?:image|weights|metadata)_digest": "([0-9a-f]{64})"')
_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What goes into a bundle: what it is about, the ids of its events, and the names of its rows."""

    subject: str
    events: Sequence[int]
    rows: Sequence[str]


def of_case(conn: Connection, case_id: int, *, up_to: int) -> Contents:
    """Events of a case up to one (inclusive), and its row and confirmations. Raises NotFound."""
    if rows.text(conn, f"cases/{case_id}") is None:
        raise NotFound(f"there is no case {case_id}")
    return _contents(conn, [f"case/{case_id}"], up_to=up_to)


def of_candidate(conn: Connection, *, line: str, number: int, up_to: int) -> Contents:
    """Events of a candidate, of its line, run and dataset version, and their rows. Raises NotFound."""
    found = conn.execute(
        "SELECT candidate_id, run_id, dataset_version_id, line_id FROM candidates JOIN lines USING (line_id)"
        " WHERE name = %s AND number = %s",
        (line, number),
    ).fetchone()
    if found is None:
        raise NotFound(f"line {line!r} has no candidate {number}")
    candidate_id, run_id, version_id, line_id = found
    subjects = (f"candidate/{candidate_id}", f"run/{run_id}", f"dataset_version/{version_id}", f"line/{line_id}")
    return _contents(conn, subjects, up_to=up_to)


def write(
    conn: Connection, path: Path, *, contents: Contents, note: str, verifier: Verifier, files: Path | None = None
) -> int:
    """Write a bundle under the checkpoint in `note`; returns how many events it holds.

    `files` is the blob root where the images, weights and metadata themselves are to go in. No event may be newer than
    the checkpoint. Raises BlobCorrupt, NoteRefused.
    """
    checkpoint = verifier.opened(note)
    wanted, leaves, texts = set(contents.events), [], {}
    for link in audit.chain(conn):
        if link.audit_event_id > checkpoint.size:
            break
        leaves.append(leaf_hash(link.text.encode()))
        if link.audit_event_id in wanted:
            texts[link.audit_event_id] = link.text
    tree = Tree(leaves)
    proofs = {event: [_base64(item) for item in tree.inclusion_proof(event - 1)] for event in contents.events}
    events = [{"audit_event_id": event, "text": texts[event], "proof": proofs[event]} for event in contents.events]
    told = [{"row": row, "text": rows.text(conn, row)} for row in contents.rows]
    members = {"checkpoint": note.encode(), "events.jsonl": _lines(events), "rows.jsonl": _lines(told)}
    if files is not None:
        digests = {digest for row in told for digest in _DIGEST.findall(str(row["text"]))}
        members |= {f"files/{digest}": blobs.read(files, digest) for digest in digests}
    _pack(path, members)
    return len(events)


def check(path: Path, verifier: Verifier) -> list[Finding]:
    """Check a bundle with nothing but the verifier key; every member is believed only as far as it is proven."""
    try:
        members = _unpack(path)
        checkpoint = verifier.opened(members["checkpoint"].decode())
        events = [json.loads(line) for line in members["events.jsonl"].decode().splitlines()]
        told = [json.loads(line) for line in members["rows.jsonl"].decode().splitlines()]
    except NoteRefused as refusal:
        return [Finding(check="checkpoint", state="damaged", detail=str(refusal))]
    except (tarfile.TarError, KeyError, ValueError) as error:
        return [Finding(check="bundle", state="damaged", detail=f"{path} is no bundle of Overread: {error}")]
    signed = f"{checkpoint.size} events, signed by {checkpoint.origin} at {checkpoint.at:%Y-%m-%d %H:%M:%SZ}"
    return [
        Finding(check="checkpoint", state="fine", detail=signed),
        _check_events(events, checkpoint),
        _check_rows(events, told),
        _check_files(members, told),
    ]


def _contents(conn: Connection, subjects: Sequence[str], *, up_to: int) -> Contents:
    found = conn.execute(
        "SELECT audit_event_id, details ->> 'row' FROM audit_events WHERE subject = ANY(%s)"
        " AND audit_event_id <= %s ORDER BY audit_event_id",
        (list(subjects), up_to),
    ).fetchall()
    named = dict.fromkeys(row for _, row in found if row is not None)  # in order, each once
    return Contents(subject=subjects[0], events=[event for event, _ in found], rows=list(named))


def _check_events(events: Sequence[Mapping[str, Any]], checkpoint: Checkpoint) -> Finding:
    for event in events:
        number = event["audit_event_id"]
        proof = [base64.b64decode(item) for item in event["proof"]]
        try:
            leaf = leaf_hash(event["text"].encode())
            root = root_by_proof(leaf, index=number - 1, size=checkpoint.size, proof=proof)
        except ValueError:
            root = b""
        if root != checkpoint.root or not event["text"].startswith(f"{number}{_SEPARATOR}"):
            detail = f"event {number} is not what was written: its proof does not lead to the signed root"
            return Finding(check="events", state="damaged", detail=detail)
    return Finding(check="events", state="fine", detail=f"{len(events)} events lead to the signed root")


def _check_rows(events: Iterable[Mapping[str, Any]], told: Sequence[Mapping[str, Any]]) -> Finding:
    recorded = {}
    for event in events:
        details = json.loads(event["text"].split(_SEPARATOR)[5])
        if "row" in details:
            recorded[details["row"]] = details["new_digest"], event["audit_event_id"]
    given = {row["row"]: row["text"] for row in told}
    for row, (_, event) in recorded.items():
        if row not in given:
            return Finding(check="rows", state="damaged", detail=f"{row}, which event {event} tells of, is not in it")
    for row, text in given.items():
        if row not in recorded:
            return Finding(check="rows", state="damaged", detail=f"{row} is told of by no event in it")
        digest, event = recorded[row]
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            return Finding(check="rows", state="damaged", detail=f"{row} is not what event {event} recorded")
    return Finding(check="rows", state="fine", detail=f"{len(given)} rows as their events recorded them")


def _check_files(members: Mapping[str, bytes], told: Iterable[Mapping[str, Any]]) -> Finding:
    named = {digest for row in told for digest in _DIGEST.findall(row["text"])}
    files = {name.removeprefix("files/"): data for name, data in members.items() if name.startswith("files/")}
    for digest, data in files.items():
        if hashlib.sha256(data).hexdigest() != digest:
            return Finding(check="files", state="damaged", detail=f"files/{digest} was altered")
        if digest not in named:
            return Finding(check="files", state="damaged", detail=f"files/{digest} is named by no row in it")
    detail = f"{len(files)} of the {len(named)} files that its rows name are in it, with their digests"
    return Finding(check="files", state="fine", detail=detail)


def _lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(audit.canonical_json(value) + "\n" for value in values).encode()


def _pack(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as bundle:
        for name, data in sorted(members.items()):
            entry = tarfile.TarInfo(name)  # no time, owner or mode of this machine
            entry.size = len(data)
            bundle.addfile(entry, io.BytesIO(data))


def _unpack(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as bundle:
        members = {}
        for entry in bundle:
            file = bundle.extractfile(entry)
            if file is None or entry.name in members:
                raise ValueError(f"{entry.name} does not belong there")
            members[entry.name] = file.read()
        return members


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
