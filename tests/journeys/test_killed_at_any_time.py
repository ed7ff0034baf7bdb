"""While the loop turns, each process is killed -9 once; it ends in the record in which it would have ended anyway."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from api.cli.stack import Stack
from api.cli.story import Story
from registry import audit, db

VICTIMS = ("api", "inference", "worker", "beat", "relay", "mlflow", "postgres")
PAUSE_SECONDS = 4.0


@contextmanager
def killing(stack: Stack, *, seed: int) -> Iterator[list[str]]:
    """Kill every process of the service once, in a random order, one each few seconds."""
    killed: list[str] = []
    enough, waiting = threading.Event(), random.Random(seed).sample(VICTIMS, len(VICTIMS))

    def kill() -> None:
        while waiting and not enough.wait(PAUSE_SECONDS):
            if pid := stack.pids.get(waiting[0]):
                os.kill(pid, signal.SIGKILL)
                killed.append(waiting.pop(0))

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        enough.set()
        thread.join()


@pytest.mark.timeout(1200)
def test_killed_at_any_time(stack: Stack, tell: Callable[..., Story]) -> None:
    story = tell("cxr-killed")
    with killing(stack, seed=7) as killed:
        cycle = story.learn(story.confirm_batch(240, "pacs-north"))
    assert len(killed) >= 5, killed

    with db.connect(stack.environment["OVERREAD_DATABASE_URL"]) as record:
        count = "SELECT count(*), count(DISTINCT case_id) FROM confirmations JOIN lines USING (line_id) WHERE name = %s"
        assert record.execute(count, (story.line,)).fetchone() == (240, 240), "none lost, none doubled"
        runs = "SELECT state FROM runs JOIN lines USING (line_id) WHERE name = %s"
        assert record.execute(runs, (story.line,)).fetchall() == [("finished",)]
        made = "SELECT number, state FROM candidates JOIN lines USING (line_id) WHERE name = %s"
        state = "gates_passed" if cycle.report["verdict"] == "pass" else "gates_failed"
        assert record.execute(made, (story.line,)).fetchall() == [(1, state)]
        versions = "SELECT number FROM dataset_versions JOIN lines USING (line_id) WHERE name = %s"
        assert record.execute(versions, (story.line,)).fetchall() == [(1,)]
        assert audit.first_broken(record) is None
