"""A sign of life for whoever supervises this process: a file, touched each second.

Invariant: it says that this process is scheduled and its interpreter runs, and no more. A broker or a record that is
away stops no pulse: starting anew would cost a training its last minutes and help nobody.
"""

from __future__ import annotations

import threading
from pathlib import Path

EVERY_SECONDS = 1.0


def start(path: Path | None) -> None:
    """Touch the file from now on until the process ends; None: nobody asks."""
    if path is not None:
        threading.Thread(target=_beat, args=(path,), name="pulse", daemon=True).start()


def _beat(path: Path) -> None:
    never = threading.Event()
    while True:
        path.touch()
        never.wait(EVERY_SECONDS)
