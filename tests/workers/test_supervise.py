"""Watching a process: its progress is told, its result returned, and it never outlives its reason."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.waiting import running, until
from workers.supervise import Row, ScienceCrashed, ScienceRefused, Stopping, run_science

MODULE = "science_for_tests"
AN_HOUR = 3600
SCIENCE = """
import json, os, subprocess, sys, time
from pathlib import Path
job = Path(sys.argv[1])
config = json.loads((job / "config.json").read_text())
print("about to begin", file=sys.stderr)
for row in config.get("rows", []):
    with (job / "progress.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\\n")
if config.get("crash"):
    raise RuntimeError("the loss is not a number")
if config.get("sleep"):
    child = subprocess.Popen(["sleep", str(config["sleep"])])
    (job / "written").write_text(f"{os.getpid()} {child.pid}")
    (job / "written").rename(job / "pids")
    child.wait()
result = config.get("result") or {"secrets": [name for name in os.environ if name.startswith("OVERREAD_")]}
(job / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture(autouse=True)
def science(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that does as its configuration says."""
    (tmp_path / f"{MODULE}.py").write_text(SCIENCE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def run(job: Path, config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told: list[Row] = changes.pop("told", [])
    settings = {"heartbeat": told.extend, "heartbeat_seconds": 0.1, "stopping": threading.Event(), **changes}
    return run_science(MODULE, job, config=config, **settings)


def assert_all_dead(job: Path) -> None:
    for pid in map(int, (job / "pids").read_text().split()):
        until(lambda pid=pid: not running(pid), seconds=30, what=f"the end of process {pid}")  # type: ignore[misc]


def test_a_result_and_all_progress_come_back(tmp_path: Path) -> None:
    told: list[Row] = []
    rows = [{"epoch": number} for number in range(5)]
    assert run(tmp_path / "job", {"rows": rows, "result": {"weights": "w"}}, told=told) == {"weights": "w"}
    assert told == rows


def test_a_refusal_comes_back_in_words(tmp_path: Path) -> None:
    with pytest.raises(ScienceRefused, match="nothing is new"):
        run(tmp_path / "job", {"result": {"refused": "nothing is new"}})


def test_a_crash_says_what_the_process_said_last(tmp_path: Path) -> None:
    with pytest.raises(ScienceCrashed, match="RuntimeError: the loss is not a number"):
        run(tmp_path / "job", {"crash": True})


def test_a_result_of_an_earlier_attempt_is_not_taken_for_this_one(tmp_path: Path) -> None:
    run(tmp_path / "job", {"result": {"number": 1}})
    with pytest.raises(ScienceCrashed):
        run(tmp_path / "job", {"crash": True})


def test_the_science_holds_no_secret_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERREAD_DATABASE_URL", "postgresql://somebody:secret@localhost/overread")
    assert run(tmp_path / "job", {}) == {"secrets": []}


def test_a_lost_lease_kills_the_process_and_all_it_started(tmp_path: Path) -> None:
    def lost(_rows: list[Row]) -> None:
        if (tmp_path / "job" / "pids").exists():
            raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        run(tmp_path / "job", {"sleep": AN_HOUR}, heartbeat=lost)
    assert_all_dead(tmp_path / "job")


def test_a_warm_stop_kills_the_process_amid_its_work(tmp_path: Path) -> None:
    stopping = threading.Event()

    def stop() -> None:
        until((tmp_path / "job" / "pids").exists)
        stopping.set()

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopping):
        run(tmp_path / "job", {"sleep": AN_HOUR}, stopping=stopping)
    assert_all_dead(tmp_path / "job")


def test_a_process_that_hangs_is_killed_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = (tmp_path / "job" / "pids").exists
    monkeypatch.setattr("workers.supervise.time", SimpleNamespace(monotonic=lambda: AN_HOUR * begun()))
    with pytest.raises(ScienceCrashed, match="longer than the 1 seconds"):
        run(tmp_path / "job", {"sleep": AN_HOUR}, within_seconds=1.0)
    assert_all_dead(tmp_path / "job")


def test_the_worker_itself_is_not_hit_by_the_killing(tmp_path: Path) -> None:
    with pytest.raises(ScienceCrashed):
        run(tmp_path / "job", {"sleep": AN_HOUR}, within_seconds=0.5)
    assert psutil.Process(os.getpid()).is_running()
