"""What runs by the clock: asking, every few seconds, whether a line is due to learn.

Invariant: beat only ticks. Whether a run starts is decided in the record, in one transaction, where a second beat, a
late tick or ten ticks at once change nothing: a line has at most one unfinished run.
"""

from __future__ import annotations

import logging

from registry import runs
from registry.errors import RunInProgress
from workers.lease import Workshop

TASK = "workers.start_due_runs"

log = logging.getLogger(__name__)


def start_due_runs(workshop: Workshop) -> None:
    """Start a run for every line whose protocol says that it is time."""
    with workshop.transaction() as connection:
        due = runs.due_triggers(connection)
    for line, reason in due:
        try:
            with workshop.transaction() as connection:
                run = runs.start_run(connection, line_id=line.line_id, requested_by=None, reason=reason)
        except RunInProgress:
            continue
        log.info("line %s: run %s starts: %s", line.name, run.run_id, reason)
