"""What one step is: something a person or a worker asks of the record in one transaction, and what must come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from registry.db import Connection
from tests.machine.model import Model

DONE, NOTHING = "done", "nothing"
SYSTEM = "overread"

Item = TypeVar("Item")


class Step(Protocol):
    """One step; it is drawn before it is known what it will meet."""

    def expect(self, model: Model) -> str:
        """What must come of it: `done`, `nothing` (an answer that says no), or the slug of a refusal."""

    def do(self, conn: Connection) -> Any:
        """Ask the record, as the service does; None or False for `nothing`."""

    def note(self, model: Model, result: Any) -> None:
        """Change the model after a commit. Raises AssertionError where the answer was not the right one."""


def pick(items: Sequence[Item], number: int) -> Item | None:
    """One of the items, None if there are none."""
    return items[number % len(items)] if items else None
