"""Which state may follow which: one table per kind of thing, one function.

The states themselves are CHECKed in the schema; these tables say how a row may move between them.
"""

from __future__ import annotations

from typing import Literal

from registry.errors import StateMoved

Kind = Literal["candidate", "run", "job"]
RunState = Literal["freezing", "training", "gating", "finished", "refused", "failed", "cancelled"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]

UNFINISHED_RUN_STATES: tuple[RunState, ...] = ("freezing", "training", "gating")
UNFINISHED_JOB_STATES: tuple[JobState, ...] = ("queued", "running")

TRANSITIONS: dict[Kind, dict[str, tuple[str, ...]]] = {
    "candidate": {
        "trained": ("gates_passed", "gates_failed"),
        # Gated again when the champion it was compared with has gone.
        "gates_passed": ("gates_passed", "gates_failed", "rejected", "champion"),
        "gates_failed": ("gates_passed", "gates_failed"),
        "rejected": (),
        "champion": ("retired",),
        "retired": ("champion",),  # by roll back only
    },
    "run": {
        "freezing": ("training", "refused", "failed", "cancelled"),
        "training": ("gating", "refused", "failed", "cancelled"),
        "gating": ("finished", "refused", "failed", "cancelled"),
        "finished": (),
        "refused": (),
        "failed": (),
        "cancelled": (),
    },
    "job": {
        "queued": ("running", "cancelled"),
        "running": ("queued", "succeeded", "failed", "cancelled"),
        "succeeded": (),
        "failed": (),
        "cancelled": (),
    },
}


def advance(kind: Kind, current: str, target: str) -> str:
    """Return `target` if `kind` may move there from `current`. Raises StateMoved otherwise."""
    if target not in TRANSITIONS[kind][current]:
        raise StateMoved(
            f"a {kind} that is {current.replace('_', ' ')} cannot become {target.replace('_', ' ')}; read it again",
            state=current,
        )
    return target
