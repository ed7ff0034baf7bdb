"""Breaks the process it is loaded into at a chosen fault point (docs/decisions/0007-fault-points.md).

Python imports it at start where this folder is on PYTHONPATH; tests that fork arm themselves by `arm`.

    FAULTPOINT=transaction.commit.before:3:kill     at the third hit of that point; first and `kill` where left out
    FAULTPOINT_ONCE=/path/to/marker                 only in the first process that gets there, ever
    FAULTPOINT_SEEN=/path/to/file                   notes the label of each hit, a line each; alone it breaks nothing
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

EVENT = "overread.fault"


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "full": _full,
}
"""What may happen at a point: killed at once, stopped until SIGCONT, or told that the disk is full."""


def arm(environment: Mapping[str, str]) -> None:
    """Do in this process what the variables above ask for; an audit hook stays until the process ends."""
    wanted, _, rest = environment.get("FAULTPOINT", "").partition(":")
    number, _, action = rest.partition(":")
    once, seen = environment.get("FAULTPOINT_ONCE"), environment.get("FAULTPOINT_SEEN")
    if not wanted and not seen:
        return
    hits = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != EVENT:
            return
        if seen is not None:
            _note(seen, arguments[0])
        if arguments[0] == wanted and next(hits) == int(number or 1) and (once is None or _first(once)):
            ACTIONS[action or "kill"]()

    sys.addaudithook(hook)


def _note(path: str, label: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, f"{label}\n".encode())
    os.close(descriptor)


def _first(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


arm(os.environ)
