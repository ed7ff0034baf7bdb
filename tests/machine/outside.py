"""What happens to the record from outside: time, a broker that forgets, and the owner of the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import LiteralString

import psycopg

from registry import lines
from registry.db import Connection
from tests import factories
from tests.machine.learning import stored_blob
from tests.machine.model import Model
from tests.machine.step import pick

Numbers = tuple[int, int, int, int]


def _a_lease_runs_out(conn: Connection, model: Model, n: Numbers) -> None:
    job = pick([key for key, job in model.jobs.items() if job.state == "running"], n[0])
    if job is not None:
        conn.execute(
            "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 s' WHERE unique_key = %s", (job,)
        )
        model.jobs[job].expired = True


def _the_pauses_end(conn: Connection, model: Model, n: Numbers) -> None:
    del n
    conn.execute("UPDATE jobs SET run_after = clock_timestamp() WHERE run_after > '8000-01-01'")
    for job in model.jobs.values():
        job.pausing = False


def _the_broker_forgets(conn: Connection, model: Model, n: Numbers) -> None:
    del n
    conn.execute("UPDATE jobs SET sent_at = sent_at - interval '1 day' WHERE state = 'queued'")
    for job in model.jobs.values():
        job.nudge_lost |= job.sent


def _weights_are_swapped(conn: Connection, model: Model, n: Numbers) -> None:
    made = pick([key for key, candidate in model.candidates.items() if candidate.state == "gates_passed"], -1)
    if made is not None:
        weights = stored_blob(conn, f"swapped {made} {n}")
        conn.execute("UPDATE candidates SET weights_digest = %s WHERE candidate_id = %s", (weights, made))
        model.candidates[made].weights = weights


def _a_new_protocol_comes_into_force(conn: Connection, model: Model, n: Numbers) -> None:
    if n[1] % 3:  # else nothing that was gated before would ever be promoted
        return
    line = model.lines[n[0] % 2]
    now = lines.current_protocol(conn, line)
    factories.new_protocol(conn, lines.line_by_id(conn, line), title=f"Pneumonia, as amended after {now.version}")
    model.protocols[line].append(lines.current_protocol(conn, line).protocol_id)
    query = "SELECT actor, action, subject FROM audit_events ORDER BY audit_event_id OFFSET %s"
    told = conn.execute(query, (len(model.trail),)).fetchall()
    assert [action for _, action, _ in told if action.startswith(("amendment", "protocol"))] == [
        *("amendment:propose", "amendment:approve", "amendment:approve", "protocol:amend")
    ]
    model.trail += [(str(actor), str(action), str(subject)) for actor, action, subject in told]


def _somebody_tampers(conn: Connection, model: Model, n: Numbers) -> None:
    del model, n
    for statement in _TAMPERING:
        with contextlib.suppress(psycopg.errors.RestrictViolation):
            conn.execute(statement)


_TAMPERING: tuple[LiteralString, ...] = (
    "UPDATE confirmations SET finding = 'normal'",
    "DELETE FROM confirmations WHERE supersedes IS NOT NULL",
    "UPDATE approvals SET decision = 'approve'",
    "DELETE FROM approvals",
    "UPDATE audit_events SET actor = 'somebody else'",
    "DELETE FROM audit_events WHERE audit_event_id = (SELECT max(audit_event_id) FROM audit_events)",
)
HAPPENINGS = (
    *("a lease runs out", "a lease runs out", "a lease runs out", "the pauses end", "the pauses end"),
    *("the broker forgets", "somebody tampers", "weights are swapped", "a new protocol comes into force"),
)
OUTSIDE: dict[str, Callable[[Connection, Model, Numbers], None]] = {
    "a lease runs out": _a_lease_runs_out,
    "the pauses end": _the_pauses_end,
    "the broker forgets": _the_broker_forgets,
    "weights are swapped": _weights_are_swapped,
    "a new protocol comes into force": _a_new_protocol_comes_into_force,
    "somebody tampers": _somebody_tampers,
}
