"""The Celery worker is killed -9 in the middle of training: the run resumes, once, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from api.cli.story import Story


def processes_running(*words: str) -> list[psutil.Process]:
    """Processes whose command line holds all of `words`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if all(word in line for word in words):
            found.append(process)
    return found


def home_of(process: psutil.Process) -> str | None:
    """Which service a process belongs to; None where it has just ended."""
    try:
        return process.environ().get("OVERREAD_HOME")
    except psutil.NoSuchProcess:
        return None


@pytest.mark.timeout(1200)
def test_a_worker_dies_midway(tell: Callable[..., Story]) -> None:
    recipe = {"strategy": "full", "epochs": 30}
    story = tell("killed", recipe=recipe)
    confirmed = story.confirm_batch(400, "pacs-north")
    reviewer = story.doors["rita"]

    def training_midway() -> bool:
        runs = reviewer.get(f"/v1/lines/{story.line}/runs")
        return any(run["state"] == "training" and run["progress"].get("epoch", 0) >= 3 for run in runs)

    story.wait("training to be under way", training_midway)
    home = str(story.stack.home)
    workers = processes_running("celery", "workers.app", "worker")
    workers = [process for process in workers if home_of(process) == home]
    assert workers, "no Celery worker found to kill"
    for process in workers:
        process.kill()
    killed_at = time.monotonic()

    cycle = story.learn(confirmed)
    candidate = cycle.candidate

    (run,) = reviewer.get(f"/v1/lines/{story.line}/runs")
    assert run["state"] == "finished"
    candidates = reviewer.get(f"/v1/lines/{story.line}/candidates")
    assert [one["candidate_id"] for one in candidates] == [candidate["candidate_id"]]
    assert cycle.report["document"]["candidate_digest"] == candidate["weights_digest"]
    jobs = story.doors["otto"].get("/v1/jobs", line=story.line)
    (training,) = [job for job in jobs if job["kind"] == "train_candidate"]
    assert training["attempts"] == 2
    epochs = [row["epoch"] for row in run["history"]]
    assert epochs == list(range(1, 31)), "every epoch once, in order"
    print(f"the verdict of the gates came {time.monotonic() - killed_at:.0f} s after the kill")
