"""Where a batch is too much for the memory there is: the same batch in parts, its gradients added up.

Invariant: a run that met the end of memory begins again with twice as many parts, so its weights depend on the parts
alone and not on the moment at which memory ran out. Every step still follows the whole batch; BatchNorm, which sees one
part at a time, is what changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

ON_THE_HOST = ("can't allocate memory", "could not create a primitive")
"""torch has no type for the host's memory, and oneDNN gives no reason."""
T = TypeVar("T")


class NotEnoughMemory(Exception):
    """Not even the smallest part of a batch has room."""


def in_parts(attempt: Callable[[int], T], *, largest: int) -> T:
    """Return `attempt(1)`, or where memory runs out that of 2, 4, 8, … parts, up to `largest`.

    Raises NotEnoughMemory where none has room; whatever else goes wrong passes through.
    """
    parts = 1
    while True:
        try:
            return attempt(parts)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if parts >= largest:
                raise NotEnoughMemory(str(error)) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        parts = min(2 * parts, largest)


def parts_of(cases: int, parts: int) -> list[tuple[slice, float]]:
    """Deal a batch of `cases` out into at most `parts` of nearly equal size, each with its share of the batch.

    A batch is in the order of its cases' ids, so that each part has of what is old and what is new. None is of a single
    case, by which BatchNorm could not tell anything.
    """
    count = max(1, min(parts, cases // 2))
    return [(slice(k, cases, count), len(range(k, cases, count)) / cases) for k in range(count)]


def ran_out(error: BaseException) -> bool:
    """Return whether `error` says that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ON_THE_HOST)
