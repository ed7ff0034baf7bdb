"""Waiting for something to become true, and looking at processes that may end at any moment.

A wait ends as soon as the thing is true, so that a generous limit costs nothing: it is there for what never comes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from registry import db

PATIENCE_SECONDS = 120.0
"""More than a busy machine ever takes for what a test waits for."""


def until(
    condition: Callable[[], object],
    *,
    seconds: float = PATIENCE_SECONDS,
    what: str = "what was waited for",
    log: Path | None = None,
    process: subprocess.Popen[Any] | None = None,
    record: db.Connection | None = None,
) -> float:
    """Wait until `condition` returns something true; return for how many seconds it did not.

    Fails with `what`, and the end of `log`, after `seconds`, or at once where `process` ends before.
    The transaction of `record` is ended before each further look.
    """
    began = time.monotonic()
    while True:
        ended = process is not None and process.poll() is not None  # asked first: what it did last is seen below
        if condition():
            break
        if ended:
            raise AssertionError(f"the process ended before {what} came{_end_of(log)}")
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what} did not come within {seconds:g} seconds{_end_of(log)}")
        if record is not None:
            record.rollback()
        time.sleep(0.02)
    return time.monotonic() - began


def running(process: psutil.Process | int) -> bool:
    """Whether a process still does something: one that has ended, or that nobody has buried yet, does not."""
    try:
        return (psutil.Process(process) if isinstance(process, int) else process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """All that a process (this one, unless told) has started and that still runs."""
    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if running(process)]
    except psutil.NoSuchProcess:
        return []


def command_of(process: psutil.Process) -> list[str]:
    """Return what a process was started with; nothing of one that has ended."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _end_of(log: Path | None) -> str:
    return "" if log is None else ":\n" + log.read_text(errors="replace")[-6000:]
