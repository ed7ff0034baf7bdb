"""Cases: the images people sent, without the people.

One image under one line: its pixels by digest, its patient by keyed hash, and attributes that survived an allow-list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from registry import audit
from registry.db import Connection, constraint_means, fetch_all, fetch_one
from registry.errors import AlreadyExists, Invalid, NotFound
from registry.users import User


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case; `patient` is a pseudonym or None, `submitter` the name of the user who sent it."""

    case_id: int
    line_id: int
    external_id: str | None
    image_digest: str
    patient: str | None
    site: str
    scanner: str | None
    sex: str | None
    age_band: str | None
    attributes: dict[str, Any]
    submitted_by: int
    submitter: str
    created_at: datetime
    erasure_id: int | None
    """The erasure that took the patient and the image away."""


def submit_case(
    conn: Connection,
    *,
    line_id: int,
    image_digest: str,
    patient: str | None,
    site: str,
    scanner: str | None,
    sex: str | None,
    age_band: str | None,
    attributes: Mapping[str, Any],
    external_id: str | None,
    actor: User,
) -> tuple[Case, bool]:
    """Add a case whose image is stored already; return it and whether it is new.

    The same `external_id` by the same submitter with the same image is the same case and comes back as it is.
    Raises AlreadyExists if that id stands for another image, Invalid for an unknown sex or malformed age band.
    """
    with constraint_means(
        conn,
        cases_sex_is_known=Invalid("sex is female, male or other, or left out"),
        cases_age_band_is_a_range=Invalid("an age band reads like 40-49 or 90+"),
    ):
        row = conn.execute(
            "INSERT INTO cases (line_id, external_id, image_digest, patient, site, scanner, sex, age_band, attributes,"
            " submitted_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT ON CONSTRAINT cases_external_id_is_taken DO NOTHING RETURNING case_id",
            (
                line_id,
                external_id,
                image_digest,
                patient,
                site,
                scanner,
                sex,
                age_band,
                Jsonb(dict(attributes)),
                actor.user_id,
            ),
        ).fetchone()
    if row is not None:
        audit.record(
            conn,
            actor=actor.name,
            action="case:submit",
            subject=f"case/{row[0]}",
            details={"image": image_digest},
            row=f"cases/{row[0]}",
        )
        return get_case(conn, row[0]), True
    assert external_id is not None
    case = sent_before(
        conn, line_id=line_id, external_id=external_id, image_digest=image_digest, submitted_by=actor.user_id
    )
    assert case is not None
    return case, False


def sent_before(
    conn: Connection, *, line_id: int, external_id: str, image_digest: str, submitted_by: int
) -> Case | None:
    """Return the case that a submitter made of this image under this id, or None.

    Ask before the image is stored, so that no file is left of one that is refused. Raises AlreadyExists where the id
    stands for another image.
    """
    case = by_external_id(conn, line_id=line_id, external_id=external_id, submitted_by=submitted_by)
    if case is not None and case.image_digest != image_digest:
        raise AlreadyExists(
            f"you sent another image as {external_id!r} already (case {case.case_id}); give this one an id of its own",
            case_id=case.case_id,
        )
    return case


def get_case(conn: Connection, case_id: int) -> Case:
    """Return a case by id. Raises NotFound."""
    case = fetch_one(
        conn,
        Case,
        "SELECT cases.*, users.name AS submitter FROM cases JOIN users ON user_id = submitted_by WHERE case_id = %s",
        (case_id,),
    )
    if case is None:
        raise NotFound(f"there is no case {case_id}")
    return case


def by_external_id(conn: Connection, *, line_id: int, external_id: str, submitted_by: int) -> Case | None:
    """Return the case a submitter knows by `external_id`, or None."""
    return fetch_one(
        conn,
        Case,
        "SELECT cases.*, users.name AS submitter FROM cases JOIN users ON user_id = submitted_by"
        " WHERE line_id = %s AND external_id = %s AND submitted_by = %s",
        (line_id, external_id, submitted_by),
    )


def ids_of(conn: Connection, *, line_id: int, external_ids: Collection[str], submitted_by: int) -> dict[str, int]:
    """Ids of the cases that a submitter knows by these external ids; those they do not know are left out."""
    found = conn.execute(
        "SELECT external_id, case_id FROM cases WHERE line_id = %s AND submitted_by = %s AND external_id = ANY(%s)",
        (line_id, submitted_by, list(external_ids)),
    )
    return dict(found.fetchall())


def list_cases(
    conn: Connection, *, line_id: int, after: int = 0, limit: int = 100, confirmed: bool | None = None
) -> list[Case]:
    """Cases with an id above `after`, oldest first; `confirmed` keeps those of which something stands, or nothing."""
    return fetch_all(
        conn,
        Case,
        "SELECT cases.*, users.name AS submitter FROM cases JOIN users ON user_id = submitted_by"
        " WHERE line_id = %(line_id)s AND case_id > %(after)s AND (%(confirmed)s::boolean IS NULL OR %(confirmed)s ="
        " EXISTS (SELECT FROM confirmations this WHERE this.case_id = cases.case_id AND kind <> 'retraction'"
        " AND NOT EXISTS (SELECT FROM confirmations later WHERE later.supersedes = this.confirmation_id)))"
        " ORDER BY case_id LIMIT %(limit)s",
        {"line_id": line_id, "after": after, "confirmed": confirmed, "limit": limit},
    )


def with_image(conn: Connection, case_ids: Collection[int]) -> set[int]:
    """Return those of some cases that there are and whose image is not erased."""
    rows = conn.execute(
        "SELECT case_id FROM cases WHERE case_id = ANY(%s::bigint[]) AND erasure_id IS NULL", (list(case_ids),)
    ).fetchall()
    return {int(row[0]) for row in rows}


def count_cases(conn: Connection, line_id: int) -> tuple[int, int]:
    """Number of cases of a line, and of those with at least one confirmation."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM cases WHERE line_id = %(line_id)s),"
        " (SELECT count(DISTINCT case_id) FROM confirmations WHERE line_id = %(line_id)s)",
        {"line_id": line_id},
    ).fetchone()
    assert row is not None
    return row[0], row[1]
