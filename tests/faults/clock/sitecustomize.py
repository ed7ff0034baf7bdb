"""Moves the time of day of the process it is loaded into; its monotonic clock goes on.

Python imports it at start where this folder is on PYTHONPATH. CLOCK_FILE names a file with the seconds to add, read at
each question, so that a clock jumps while the process runs.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import time
from pathlib import Path
from typing import Any

_FILE = Path(os.environ["CLOCK_FILE"])
_time, _time_ns, _now = time.time, time.time_ns, datetime.datetime.now


def _offset() -> float:
    return float(_FILE.read_text() or 0)


def _shifted_now(_cls: type, tz: datetime.tzinfo | None = None) -> datetime.datetime:
    return _now(tz) + datetime.timedelta(seconds=_offset())


def _shifted_utcnow(_cls: type) -> datetime.datetime:
    return _shifted_now(datetime.datetime, datetime.UTC).replace(tzinfo=None)


time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
names: dict[str, Any] = gc.get_referents(datetime.datetime.__dict__)[0]  # a class written in C takes no setattr
names["now"], names["utcnow"] = classmethod(_shifted_now), classmethod(_shifted_utcnow)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
