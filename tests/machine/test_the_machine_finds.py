"""The machine finds what it is for: with a protection taken away, some sequence ends in a wrong record.

A protection that has a second one behind it goes together with that one; alone it is not missed, which is the point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import psycopg
import pytest

from registry import adjudications, approvals, confirmations, idempotency, jobs, promotions
from registry.db import Connection
from tests.machine.machine import RecordMachine, steps_performed

SEQUENCES = 11
"""As many as the main test plays before it is content."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A protection taken away: in the database, in the code, or in both."""

    sql: str = ""
    code: Mapping[tuple[Any, str], Any] = field(default_factory=dict)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _heartbeat_of_anybody(conn: Connection, *, job_id: int, fence: int, lease_seconds: float) -> jobs.Heartbeat:
    del fence
    now = jobs.get_job(conn, job_id)
    return _HEARTBEAT(conn, job_id=job_id, fence=now.fence, lease_seconds=lease_seconds)


def _store_the_last_answer(conn: Connection, *, user_id: int, key: str, **values: Any) -> None:
    if _BEGIN(conn, user_id=user_id, key=key, request_digest=values["request_digest"]) is None:
        _STORE(conn, user_id=user_id, key=key, **values)


def _without_a_look_at_what_came_in(*_: Any, **__: Any) -> str:
    return "single_read"


def _whatever_was_signed(conn: Connection, candidate_id: int) -> list[approvals.Approval]:
    return [given for given in approvals.list_for_candidate(conn, candidate_id) if given.decision == "approve"]


_HEARTBEAT, _BEGIN, _STORE = jobs.heartbeat, idempotency.begin, idempotency.finish

TWINS = {
    "a correction may be corrected twice": Twin(
        sql="ALTER TABLE confirmations DROP CONSTRAINT confirmations_superseded_once",
        code={(confirmations, "_judge_supersedes"): _nothing},
    ),
    "a repeat is done again": Twin(
        code={(idempotency, "begin"): _nothing, (idempotency, "finish"): _store_the_last_answer}
    ),
    "an adjudication does not look at what has come in": Twin(
        code={(adjudications, "_strongest"): _without_a_look_at_what_came_in}
    ),
    "the queue is not kept": Twin(sql="DROP TRIGGER confirmations_are_followed ON confirmations"),
    "a heartbeat does not look at the fence": Twin(code={(jobs, "heartbeat"): _heartbeat_of_anybody}),
    "void signatures count": Twin(code={(approvals, "standing"): _whatever_was_signed}),
    "promotions take no turns": Twin(
        sql="DROP INDEX promotions_one_champion_per_line", code={(promotions, "lock_line"): _nothing}
    ),
}


@pytest.mark.timeout(1800)  # seconds each on idle cores
@pytest.mark.parametrize("name", TWINS)
def test_the_machine_finds_out_when(
    name: str, clone: Callable[[], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Machine(RecordMachine):
        sabotage = TWINS[name].sql
        performed: ClassVar[Counter[tuple[str, str]]] = Counter()

    Machine.clone = staticmethod(clone)
    for (module, attribute), broken in TWINS[name].code.items():
        monkeypatch.setattr(module, attribute, broken)
    with pytest.raises((AssertionError, psycopg.Error)):
        Machine.run_all(range(SEQUENCES))
    print(f"{name}: found within {steps_performed(Machine.performed)} steps")
