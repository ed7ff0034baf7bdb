"""Run heavy work in a process of its own, watched: the science of `pipelines`, and the errands of this package.

Invariant: the process outlives neither its lease, nor a cancellation, nor the worker's stop; it is killed with all it
started. It gets config.json, tells through progress.jsonl, and answers with result.json; it holds no setting and no
secret of the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pipelines.job import write_atomically

Row = dict[str, Any]
"""One line of progress.jsonl."""
Heartbeat = Callable[[list[Row]], None]
"""Told every few seconds of the progress since it was last told; raises to have the process killed."""

LOOK_SECONDS = 0.1
KEPT_OF_STDERR = 4000


class ScienceError(Exception):
    """The process came to no result; the message says why."""


class ScienceRefused(ScienceError):
    """It was asked for something that cannot be done; trying again would not help."""


class ScienceCrashed(ScienceError):
    """It ended without a result."""


class Stopping(Exception):
    """This worker was told to stop; the process was killed, and somebody else may go on with its directory."""


def run_science(
    module: str,
    job_dir: Path,
    *,
    config: dict[str, Any],
    heartbeat: Heartbeat,
    heartbeat_seconds: float,
    stopping: threading.Event,
    within_seconds: float | None = None,
) -> dict[str, Any]:
    """Run `python -m module JOB_DIR` and return its result.

    `heartbeat` is called at once, every `heartbeat_seconds`, and a last time after the end; what it raises passes
    through once the process is dead. `within_seconds` is the most it may take, None for any time.
    Raises ScienceRefused, ScienceCrashed, Stopping.
    """
    job_dir.mkdir(parents=True, exist_ok=True)
    result = job_dir / "result.json"
    result.unlink(missing_ok=True)
    write_atomically(job_dir / "config.json", json.dumps(config, allow_nan=False, indent=1).encode())
    progress = _Progress(job_dir / "progress.jsonl")
    with (job_dir / "stderr.log").open("w+b") as stderr, _process(module, job_dir, stderr=stderr) as process:
        due = started = time.monotonic()
        while process.poll() is None:
            if stopping.is_set():
                raise Stopping
            if within_seconds is not None and time.monotonic() - started > within_seconds:
                raise ScienceCrashed(f"it took longer than the {within_seconds:g} seconds it is given")
            if time.monotonic() >= due:
                heartbeat(progress.new_rows())
                due = time.monotonic() + heartbeat_seconds
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
        heartbeat(progress.new_rows())
        sys.audit("overread.fault", "science.end.after")
        return _read_result(result, exit_code=process.returncode, stderr=stderr)


def start(module: str, job_dir: Path, *, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `python -m module JOB_DIR`, with nothing of the service but where its code is."""
    return subprocess.Popen(
        [sys.executable, "-m", module, str(job_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment(),
        start_new_session=True,  # so that one signal reaches it and all it started, and none of the worker's does
    )


def environment() -> dict[str, str]:
    """Return the environment of a job's process: ours without the settings of the service, and where its code is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    root = str(Path(__file__).resolve().parents[1])
    kept["PYTHONPATH"] = os.pathsep.join(part for part in (root, kept.get("PYTHONPATH", "")) if part)
    return kept


class _Progress:
    """Reads a file line by line as it grows; half a line waits for its other half.

    It begins with what an earlier attempt left, which may have died before that was told.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_rows(self) -> list[Row]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            whole, newline, _half = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines() if line.strip()]


@contextlib.contextmanager
def _process(module: str, job_dir: Path, *, stderr: IO[bytes]) -> Any:
    process = start(module, job_dir, stderr=stderr)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_result(path: Path, *, exit_code: int, stderr: IO[bytes]) -> dict[str, Any]:
    if exit_code != 0 or not path.exists():
        stderr.seek(0)
        said = stderr.read().decode("utf-8", "replace").strip()[-KEPT_OF_STDERR:]
        last = said.splitlines()[-1] if said else "it said nothing"
        raise ScienceCrashed(f"exit code {exit_code}: {last}")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "refused" in document:
        raise ScienceRefused(document["refused"])
    return document
