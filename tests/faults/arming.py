"""Breaking a process at a point of its work, where a test would else have to be there at the right moment."""

from __future__ import annotations

import os
from pathlib import Path

HOOK = Path(__file__).parent / "hook"
ROOT = Path(__file__).parents[2]


def armed(faultpoint: str, *, once: Path | None = None) -> dict[str, str]:
    """An environment in which a process breaks at a point (see `hook`), or only the first one that gets there."""
    path = os.pathsep.join([str(HOOK), str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = {"FAULTPOINT": faultpoint, "PYTHONPATH": path}
    return given if once is None else {**given, "FAULTPOINT_ONCE": str(once)}
