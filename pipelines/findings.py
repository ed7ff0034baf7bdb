"""Findings of one image that are each present or absent by themselves: one answer in words, and what is refused.

Invariant: an answer about several findings has one form, those present in the protocol's order joined by `+`, such as
`effusion+pneumonia`, and `none_of_these` where none is. The record writes the same (`registry.findings`; a test holds
the two together), and everything else reads it here. What a line of several findings cannot have, its protocol's check
refuses by the clause's name (docs/decisions/0025).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.types import ConfirmedCase, Strategy

if TYPE_CHECKING:
    from pipelines.protocol import Protocol

NONE = "none_of_these"
"""The answer where no finding is present; no finding may be called so."""
JOIN = "+"
MOST = 30
"""Findings of one line."""
CARRIED: tuple[Strategy, ...] = ("full", "auto", "warm", "replay", "interpolate", "finetune")
"""Strategies that learn by the given answers alone, so that they need not know how many findings a case has."""

Present = NDArray[np.bool_]


class UnknownAnswer(ValueError):
    """An answer that names no finding of these, or names one twice; the message says which."""


def joined(present: Iterable[Any], classes: Sequence[str]) -> str:
    """Return the answer of one case, `present` (K,) saying of each finding whether it is there."""
    return JOIN.join(name for name, there in zip(classes, present, strict=True) if there) or NONE


def matrix(answers: Sequence[str], classes: Sequence[str]) -> Present:
    """Return (N, K) bool, which findings are present in each answer. Raises UnknownAnswer."""
    rows = {answer: _row(answer, classes) for answer in set(answers)}
    return np.array([rows[answer] for answer in answers], dtype=np.bool_).reshape(-1, len(classes))


def side_of(name: str, *, present: Any) -> str:
    """Name the side of a finding that a case is on: `effusion`, or `no effusion`."""
    return name if present else f"no {name}"


def sides(classes: Sequence[str]) -> tuple[str, ...]:
    """Name both sides of each finding, (2 K,): those with it, those without."""
    return tuple(side_of(name, present=there) for name in classes for there in (True, False))


def counted(present: Present, classes: Sequence[str]) -> dict[str, int]:
    """Count the cases of `present` (N, K) on both sides of each finding."""
    found = present.sum(axis=0).tolist()
    counts = [count for there in found for count in (there, len(present) - there)]
    return dict(zip(sides(classes), counts, strict=True))


def about(name: str, *, cases: Iterable[ConfirmedCase]) -> Iterator[ConfirmedCase]:
    """Give the cases as if only one finding had been asked about: each answer is the side that it puts the case on."""
    for case in cases:
        said = tuple(
            replace(item, finding=item.finding and side_of(name, present=name in item.finding.split(JOIN)))
            for item in case.confirmations
        )
        yield replace(case, confirmations=said)


def refusals(asked: Protocol) -> list[str]:
    """Say which clauses of a protocol a line of several findings cannot have, each by its name."""
    if asked.task != "multilabel":
        return []
    recipe, envelope, point = asked.recipe, asked.envelope, asked.operating_point
    ways = {*recipe.declared, *(() if envelope is None else envelope.strategies)} - {*CARRIED}
    wrong = {
        f"classes: a line of several findings has at most {MOST}": len(asked.classes) > MOST,
        f"classes: {NONE!r} is what the answer says where no finding is present; call the finding otherwise": (
            NONE in asked.classes
        ),
        "positive: each finding is present or absent by itself; leave it out": asked.positive is not None,
        f"recipe.strategy: {', '.join(sorted(ways))} cannot learn several findings; there are {', '.join(CARRIED)}": (
            bool(ways)
        ),
        "recipe.members: several networks answer as one where classes exclude each other; leave it out": (
            recipe.members > 1
        ),
        "envelope.maximum_threshold_change: each finding has a threshold of its own; leave it out": (
            envelope is not None and envelope.maximum_threshold_change is not None
        ),
        "operating_point.by_site: each finding has one threshold for all sites; leave it out": point.by_site,
        "operating_point.second_look: there is no band about several thresholds; leave it out": (
            point.second_look is not None
        ),
        "monitoring: a champion of several findings is not watched yet; leave it out": asked.monitoring is not None,
    }
    return [words for words, is_so in wrong.items() if is_so]


def _row(answer: str, classes: Sequence[str]) -> list[bool]:
    named = [] if answer == NONE else answer.split(JOIN)
    if strange := [name for name in named if name not in classes]:
        raise UnknownAnswer(f"{strange[0]!r} is not one of {', '.join(classes)}")
    if len(set(named)) != len(named):
        raise UnknownAnswer(f"{answer!r} names a finding twice")
    return [name in named for name in classes]
