"""Connections that die on purpose: before a given statement, before the commit, or with the commit's answer unread.

What became of a transaction is never guessed: the server is asked (`pg_xact_status`) once the session is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.rows import TupleRow

from registry.db import Connection, fetch_value
from registry.errors import RegistryError
from tests.conftest import as_superuser
from tests.machine.step import DONE, NOTHING, Step

Ending = Literal["committed", "rolled back", "killed", "answer lost", "hung up"]
ENDINGS: tuple[Ending, ...] = ("committed", "rolled back", "killed", "answer lost", "hung up")
CUT = "cut"
"""What came of a step whose session ended in the middle of it."""
PATIENCE_SECONDS = 120.0


class _Cursor(psycopg.Cursor[TupleRow]):
    def execute(self, *args: Any, **kwargs: Any) -> Any:
        wire = self.connection
        assert isinstance(wire, Wire)
        if wire.fuse is not None:
            wire.fuse -= 1
            if wire.fuse == 0:
                wire.terminate(wire.info.backend_pid)
        return super().execute(*args, **kwargs)


class Wire(psycopg.Connection[TupleRow]):
    """A connection whose session is terminated before its `fuse`-th statement."""

    fuse: int | None = None
    terminate: Callable[[int], None]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A step that was done and whose transaction is not ended yet."""

    step: Step
    outcome: str
    result: Any
    wire: Wire | None
    transaction: str | None


class Exchange:
    """Opens wires to one database, and watches them from the outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.observer: Connection = psycopg.connect(as_superuser(url), options="-c timezone=UTC", autocommit=True)
        self._all: list[Wire] = []
        self._idle: list[Wire] = []

    def close(self) -> None:
        """Close everything."""
        for wire in self._all:
            wire.close()
        self.observer.close()

    def attempt(self, step: Step, *, fuse: int | None = None) -> Attempt:
        """Do a step and leave its transaction open; one that was refused or cut is rolled back."""
        wire = self._idle.pop() if self._idle else self._open()
        wire.fuse = fuse
        try:
            result = step.do(wire)
        except RegistryError as refusal:
            wire.fuse = None
            wire.rollback()
            self._idle.append(wire)
            return Attempt(step=step, outcome=refusal.slug, result=refusal, wire=None, transaction=None)
        except psycopg.OperationalError as error:
            if fuse is None or not wire.broken:
                raise
            wire.close()
            return Attempt(step=step, outcome=CUT, result=error, wire=None, transaction=None)
        wire.fuse = None
        transaction = fetch_value(wire, "SELECT pg_current_xact_id_if_assigned()::text")
        outcome = NOTHING if result is None or not (result or isinstance(result, list)) else DONE
        return Attempt(step=step, outcome=outcome, result=result, wire=wire, transaction=transaction)

    def end(self, attempt: Attempt, ending: Ending) -> bool:
        """End an attempt's transaction; return whether it was committed, by the server's own word."""
        wire, attempt.wire = attempt.wire, None
        if wire is None:
            return False
        if ending in {"committed", "rolled back"}:
            (wire.commit if ending == "committed" else wire.rollback)()
            self._idle.append(wire)
            return ending == "committed"
        pid = wire.info.backend_pid
        if ending == "killed":
            self.terminate(pid)
            try:
                wire.commit()
            except psycopg.OperationalError:
                pass
            else:
                raise AssertionError("a terminated session committed")
        elif ending == "answer lost":
            wire.pgconn.send_query(b"COMMIT")
            wire.pgconn.flush()
        wire.close()
        self._wait_for("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s", pid)
        if attempt.transaction is None:
            return ending == "answer lost"
        status = fetch_value(self.observer, "SELECT pg_xact_status(%s::xid8)", (attempt.transaction,))
        assert status == ("committed" if ending == "answer lost" else "aborted")
        return bool(status == "committed")

    def terminate(self, pid: int) -> None:
        """End a session from the outside, and wait until it is gone."""
        self.observer.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))

    def waits(self, pid: int) -> bool:
        """Does this session wait for another?"""
        return bool(fetch_value(self.observer, "SELECT cardinality(pg_blocking_pids(%s)) > 0", (pid,)))

    def next_pid(self) -> int:
        """The session that the next attempt will use."""
        if not self._idle:
            self._idle.append(self._open())
        return self._idle[-1].info.backend_pid

    def _open(self) -> Wire:
        wire = Wire.connect(self.url, options="-c timezone=UTC", cursor_factory=_Cursor)
        wire.terminate = self.terminate
        self._all.append(wire)
        return wire

    def _wait_for(self, question: Any, pid: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not fetch_value(self.observer, question, (pid,)):
            assert time.monotonic() < end, "a session that was left did not end"
            time.sleep(0.001)
