"""By the clock: whose worklist is missing, or older than what has happened since?

Invariant: it only asks, in one transaction a line; at most one ranking of a line is unfinished, however many ask.
"""

from __future__ import annotations

import logging

from registry import worklists
from workers.lease import Workshop

TASK = "workers.rank_due_worklists"

log = logging.getLogger(__name__)


def rank_due_worklists(workshop: Workshop) -> None:
    """Ask for the ranking of every line whose list is missing or too old."""
    with workshop.transaction() as connection:
        asked = [(line, reason, worklists.ask(connection, line.line_id)) for line, reason in worklists.due(connection)]
    for line, reason, job_id in asked:
        if job_id is not None:
            log.info("line %s: job %s ranks what to confirm next: %s", line.name, job_id, reason)
