"""Whether what somebody looks at has changed: a short mark of each subject, another one after each change of it.

A mark says nothing of what it stands for, and is compared with nothing but an earlier one. It is made of the system
column `xmin`, which names the transaction that wrote a row last (PostgreSQL 18, 5.6), and of the newest ids there are,
so that asking costs the same however much there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any, LiteralString

from registry.db import Connection

KINDS = ("run", "line", "worklist", "jobs")
"""A subject is one of these and an id, `run/17`. `worklist` takes the id of its line; of jobs there is but `jobs/0`."""


def marks(conn: Connection, subjects: Collection[str]) -> dict[str, str]:
    """Return the mark of each subject that there is; those that there are not are left out.

    Raises ValueError for what is no subject.
    """
    wanted: dict[str, list[int]] = {}
    for subject in subjects:
        kind, number = split(subject)
        wanted.setdefault(kind, []).append(number)
    return {
        f"{kind}/{number}": hashlib.sha256(text.encode()).hexdigest()[:16]
        for kind, numbers in wanted.items()
        for number, text in conn.execute(_MARKS[kind], (numbers,)).fetchall()
    }


def split(subject: str) -> tuple[str, int]:
    """Take `run/17` apart. Raises ValueError for what is no subject."""
    kind, _, number = subject.partition("/")
    if kind not in KINDS or not (number.isascii() and number.isdecimal()) or int(number) >= 2**63:
        raise ValueError(f"{subject!r} is no subject; one is {', '.join(f'{kind}/1' for kind in KINDS)}")
    return kind, int(number)


_RUN: LiteralString = (
    "SELECT run_id, concat_ws(' ', runs.xmin, (SELECT max(candidates.xmin::text || state) FROM candidates"
    " WHERE candidates.run_id = runs.run_id), (SELECT string_agg(concat(job_id, state, attempts), ' ' ORDER BY job_id)"
    " FROM jobs WHERE jobs.line_id = runs.line_id AND payload ->> 'run_id' = runs.run_id::text))"
    " FROM runs WHERE run_id = ANY(%s::bigint[])"
)

_LINE: LiteralString = (
    "SELECT line_id, concat_ws(' ', lines.xmin,"
    " (SELECT max(confirmation_id) FROM confirmations WHERE confirmations.line_id = lines.line_id),"
    " (SELECT string_agg(newest.xmin::text, ' ') FROM (SELECT runs.xmin FROM runs WHERE runs.line_id = lines.line_id"
    " ORDER BY run_id DESC LIMIT 10) newest),"
    " (SELECT string_agg(newest.xmin::text, ' ') FROM (SELECT candidates.xmin FROM candidates"
    " WHERE candidates.line_id = lines.line_id ORDER BY number DESC LIMIT 10) newest),"
    " (SELECT max(promotion_id) FROM promotions WHERE promotions.line_id = lines.line_id),"
    " (SELECT max(version) FROM protocols WHERE protocols.line_id = lines.line_id),"
    " (SELECT max(watch_id) FROM watches WHERE watches.line_id = lines.line_id),"
    " (SELECT ranked_at FROM worklists WHERE worklists.line_id = lines.line_id))"
    " FROM lines WHERE line_id = ANY(%s::bigint[])"
)

_WORKLIST: LiteralString = (
    "SELECT line_id, concat_ws(' ', (SELECT ranked_at FROM worklists WHERE worklists.line_id = lines.line_id),"
    " (SELECT max(confirmation_id) FROM confirmations WHERE confirmations.line_id = lines.line_id))"
    " FROM lines WHERE line_id = ANY(%s::bigint[])"
)

_JOBS: LiteralString = (
    "SELECT 0, concat_ws(' ', (SELECT max(job_id) FROM jobs), (SELECT string_agg(concat(state, ' ', many), ' '"
    " ORDER BY state) FROM (SELECT state, count(*) AS many FROM jobs GROUP BY state) counted),"
    " (SELECT max(finished_at) FROM jobs), (SELECT count(*) FROM jobs WHERE state = 'running'"
    " AND lease_expires_at < clock_timestamp()), (SELECT string_agg(paused_at::text, ' ') FROM lines))"
    " WHERE 0 = ANY(%s::bigint[])"
)

_MARKS: Mapping[str, Any] = {"run": _RUN, "line": _LINE, "worklist": _WORKLIST, "jobs": _JOBS}
