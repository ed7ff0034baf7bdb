"""Erasure: taking what the record holds away from a patient who asks for it (GDPR Art. 17).

Invariant: afterwards no row leads to the patient, and every row that told what happened still stands: a finding of a
case without pixels, pseudonym or attributes is nobody's. `erase` names all that was learned from these cases, stops
what is learning from them now, and asks for the job that removes the bytes. The audit trail goes on over it unbroken;
it never held a patient. Only the owner of the record erases; the service has no right to (`erase_patient`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from registry import audit, blobs, jobs, promotions, runs, worklists
from registry.db import Connection, fetch_all, fetch_known, fetch_value
from registry.errors import Forbidden, NotFound, RunInProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure; `patient_digest` is SHA-256 of the pseudonym, `line` None means all lines."""

    erasure_id: int
    patient_digest: str
    line: str | None
    reason: str
    cases_until: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Concerned:
    """Something that an erasure concerns, in the words people know it by."""

    subject: str
    subject_id: int
    line_id: int
    line: str
    name: str
    state: str


def digest_of_patient(pseudonym: str) -> str:
    """Return what an erasure remembers of a pseudonym."""
    return hashlib.sha256(pseudonym.encode()).hexdigest()


def erase(
    conn: Connection,
    *,
    patient_digest: str,
    line: str | None,
    reason: str,
    actor: str,
    until: datetime | None = None,
) -> Erasure:
    """Erase the cases of a patient sent until now (or `until`), on one line or on all.

    Unfinished runs that read them are cancelled, what was learned from them is noted, and the removal of the bytes is
    asked for on each line concerned. Raises NotFound where there is no case of this patient, Forbidden unless `conn`
    is the owner's.
    """
    moment = until or fetch_value(conn, "SELECT clock_timestamp()")
    try:
        with conn.transaction():
            conn.execute("LOCK TABLE runs IN EXCLUSIVE MODE")  # runs before all else: whoever holds one is waited for
            erasure_id = fetch_value(
                conn, "SELECT erase_patient(%s, %s, %s, %s)", (patient_digest, line, reason, moment)
            )
    except (psycopg.errors.NoDataFound, psycopg.errors.ForeignKeyViolation):  # no such case, no such line
        raise NotFound("there is no case of this patient" + (f" on {line}" if line else "")) from None
    except psycopg.errors.InsufficientPrivilege:
        raise Forbidden(
            f"{conn.info.user} may not erase; only the owner of the record may: OVERREAD_OWNER_DATABASE_URL"
        ) from None
    found = concerned(conn, erasure_id)
    for run in found:
        if run.subject == "run":
            words = f"cancelled by erasure {erasure_id}: it was learning from a patient who has been erased"
            runs.cancel(conn, run_id=run.subject_id, actor=None, outcome=words)
    for line_id in sorted({item.line_id for item in found}):
        jobs.enqueue(
            conn,
            kind="erase_bytes",
            line_id=line_id,
            payload={"erasure_id": erasure_id},
            unique_key=f"erase_bytes:{erasure_id}:{line_id}",
        )
    cases = [item.subject_id for item in found if item.subject == "case"]
    worklists.forget(conn, case_ids=cases)
    for case_id in cases:
        audit.record(
            conn,
            actor=actor,
            action="case:erase",
            subject=f"case/{case_id}",
            details={"erasure": erasure_id},
            row=f"cases/{case_id}",
        )
    audit.record(
        conn,
        actor=actor,
        action="patient:erase",
        subject=f"erasure/{erasure_id}",
        details={
            "reason": reason,
            "cases": len(cases),
            "concerned": [f"{item.line} {item.name}" for item in found if item.subject != "case"],
        },
        row=f"erasures/{erasure_id}",
    )
    return get(conn, erasure_id)


def find(conn: Connection, *, patient_digest: str, line: str | None) -> dict[str, int]:
    """Count the cases of a patient by line, on one line or on all; changes nothing."""
    rows = conn.execute(
        "SELECT lines.name, count(*) FROM cases JOIN lines USING (line_id) WHERE patient IS NOT NULL"
        " AND encode(sha256(convert_to(patient, 'UTF8')), 'hex') = %(digest)s"
        " AND (%(line)s::text IS NULL OR lines.name = %(line)s) GROUP BY 1 ORDER BY 1",
        {"digest": patient_digest, "line": line},
    ).fetchall()
    return {str(name): int(count) for name, count in rows}


def record_removal(
    conn: Connection, *, erasure_id: int, line_id: int, images: int, versions: Sequence[str], edition: str | None
) -> None:
    """Note that the bytes are gone from a line, and have it learn without them if its champion learned from them.

    The champion goes on serving: whether it may is for people to decide, and the run gives them the choice.
    """
    champion = promotions.champion(conn, line_id)
    next_step = "none: the champion did not learn from this patient"
    if champion is not None and erasure_id in of_subject(conn, subject="candidate", subject_id=champion.candidate_id):
        try:
            reason = f"erasure {erasure_id}: candidate {champion.number} learned from a patient who has been erased"
            run = runs.start_run(conn, line_id=line_id, requested_by=None, reason=reason, strategy="full")
            next_step = f"run {run.run_id} learns without this patient"
        except RunInProgress:
            next_step = "the run in progress learns without this patient"
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="patient:erase_bytes",
        subject=f"erasure/{erasure_id}",
        details={
            "line": line_id,
            "images": images,
            "dataset_versions": list(versions),
            "edition": edition,
            "next": next_step,
        },
    )


def get(conn: Connection, erasure_id: int) -> Erasure:
    """Return an erasure by id. Raises NotFound."""
    return fetch_known(conn, Erasure, "erasure", erasure_id)


def as_list(conn: Connection) -> list[dict[str, Any]]:
    """Everybody who was erased, as plain values that can be kept elsewhere and given to `erase_again`."""
    rows = fetch_all(conn, Erasure, "SELECT * FROM erasures ORDER BY erasure_id")
    return [
        {
            "patient_digest": row.patient_digest,
            "line": row.line,
            "reason": row.reason,
            "cases_until": row.cases_until.isoformat(),
        }
        for row in rows
    ]


def erase_again(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Erase in a restored record whom `as_list` named elsewhere; return how many of them it had brought back."""
    back = 0
    for row in sorted(rows, key=lambda row: str(row["cases_until"])):
        try:
            erase(
                conn,
                patient_digest=row["patient_digest"],
                line=row["line"],
                reason=row["reason"],
                actor=audit.SYSTEM,
                until=datetime.fromisoformat(row["cases_until"]),
            )
            back += 1
        except NotFound:
            continue  # erased before the backup was taken, or sent after it
    return back


def concerned(conn: Connection, erasure_id: int) -> list[Concerned]:
    """What an erasure concerns: cases, dataset versions, runs that were stopped, candidates; in this order."""
    return fetch_all(conn, Concerned, _CONCERNED, (erasure_id,))


def of_subject(conn: Connection, *, subject: str, subject_id: int) -> list[int]:
    """Ids of the erasures that concern one thing."""
    rows = conn.execute(
        "SELECT erasure_id FROM erasure_effects WHERE subject = %s AND subject_id = %s ORDER BY 1",
        (subject, subject_id),
    ).fetchall()
    return [int(row[0]) for row in rows]


def erased_cases(conn: Connection, *, line_id: int) -> list[int]:
    """Ids of all erased cases of a line, ascending."""
    rows = conn.execute(
        "SELECT case_id FROM erasure_effects JOIN cases ON case_id = subject_id AND cases.erasure_id IS NOT NULL"
        " WHERE subject = 'case' AND line_id = %s ORDER BY 1",
        (line_id,),
    ).fetchall()
    return [int(row[0]) for row in rows]


def images_to_remove(conn: Connection, *, erasure_id: int, line_id: int) -> list[str]:
    """Digests of the erased images of a line that no other case has."""
    rows = conn.execute(
        "SELECT DISTINCT image_digest FROM cases WHERE erasure_id = %s AND line_id = %s"
        " AND blob_is_erased(image_digest) ORDER BY 1",
        (erasure_id, line_id),
    ).fetchall()
    return [str(row[0]) for row in rows]


def remove_bytes(conn: Connection, root: Path, *, digests: Sequence[str]) -> int:
    """Remove these stored files for good, but not one that somebody sends again just now; return how many went."""
    removed = 0
    for digest in digests:
        blobs.lock(conn, digest, alone=True)
        if fetch_value(conn, "SELECT blob_is_erased(%s)", (digest,)):
            removed += blobs.remove(root, digest)
    return removed


_CONCERNED: LiteralString = (
    "SELECT subject, subject_id, found.line_id, lines.name AS line, found.name, found.state FROM ("
    " SELECT 1 AS place, subject, subject_id, erasure_id, line_id, 'case ' || case_id AS name, '' AS state"
    " FROM erasure_effects JOIN cases USING (erasure_id) WHERE subject = 'case' AND case_id = subject_id"
    " UNION ALL SELECT 2, subject, subject_id, erasure_id, line_id, 'dataset version ' || number, ''"
    " FROM erasure_effects JOIN dataset_versions ON subject = 'dataset_version' AND dataset_version_id = subject_id"
    " UNION ALL SELECT 3, subject, subject_id, erasure_id, line_id, 'run ' || run_id, state"
    " FROM erasure_effects JOIN runs ON subject = 'run' AND run_id = subject_id"
    " UNION ALL SELECT 4, subject, subject_id, erasure_id, line_id, 'candidate ' || number, state"
    " FROM erasure_effects JOIN candidates ON subject = 'candidate' AND candidate_id = subject_id"
    ") found JOIN lines USING (line_id) WHERE erasure_id = %s ORDER BY place, subject_id"
)
