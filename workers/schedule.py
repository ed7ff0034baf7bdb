"""What runs by the clock: asking, every few seconds, whether a line is due to learn and MLflow shows what it was told.

Invariant: beat only ticks. Whether a run starts is decided in the record, in one transaction, where a second beat, a
late tick or ten ticks at once change nothing: a line has at most one unfinished run. Nothing here reads the time of
day: with Celery's own scheduler a clock set back by a day means no tick for a day.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import beat

from registry import runs
from registry.errors import RunInProgress
from workers.lease import Workshop

TASK = "workers.start_due_runs"

log = logging.getLogger(__name__)


class Scheduler(beat.Scheduler):  # type: ignore[misc] # Celery is untyped
    """Beat's scheduler by this process's own time: every entry, each `beat_max_loop_interval` seconds."""

    _next_at = 0.0

    def install_default_entries(self, data: Any) -> None:
        """Add none: Celery would sweep up results, and none is kept."""

    def tick(self) -> float:
        """Send what is due; return in how many seconds to ask again."""
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + self.max_interval
            for entry in self.schedule.values():
                self.apply_entry(entry, producer=self.producer)
        return max(0.0, self._next_at - time.monotonic())


class Paced:
    """What a worker does about a tick, at most so often; ticks that waited while no worker ran count as one."""

    def __init__(self, work: Callable[[Workshop], None], *, pause_seconds: float) -> None:
        self._work = work
        self._pause_seconds = pause_seconds
        self._pausing = threading.Lock()
        self._next_at = 0.0

    def __call__(self, workshop: Workshop) -> None:
        """Do the work, unless it was begun just now."""
        with self._pausing:
            if time.monotonic() < self._next_at:
                return
            self._next_at = time.monotonic() + self._pause_seconds
        self._work(workshop)


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
