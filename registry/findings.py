"""How an answer is written: a class of the line, or, where its findings do not exclude each other, those present.

Invariant: what enters the record has one form, so that two who say the same say it in the same words. Where a line's
protocol says `task: multilabel`, an answer names the findings that are present, joined by `+` in the protocol's order,
and `none_of_these` where none is; it is accepted in any order. The science reads it (`pipelines.findings`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import UnknownFinding

NONE = "none_of_these"
JOIN = "+"


def are_several(document: Mapping[str, Any]) -> bool:
    """Say whether a protocol's findings are each present or absent by themselves."""
    return document.get("task") == "multilabel"


def canonical(said: str, *, classes: Sequence[str], several: bool, others: str = "") -> str:
    """Return an answer as the record writes it; `others` says in a refusal what could be said besides.

    Raises UnknownFinding where it names what the line does not know, a finding twice, or none and a finding.
    """
    if not several:
        if said not in classes:
            known = ", ".join(classes)
            raise UnknownFinding(f"{said!r} is not a finding of this line; it knows {known}{others}")
        return said
    named = [name.strip() for name in said.split(JOIN)]
    if named == [NONE]:
        return NONE
    known = f"it knows {', '.join(classes)}, joined by {JOIN} where several are present, or {NONE}{others}"
    if NONE in named:
        raise UnknownFinding(f"{said!r} says {NONE} and a finding; {known}")
    if strange := [name for name in named if name not in classes]:
        raise UnknownFinding(f"{strange[0]!r} is not a finding of this line; {known}")
    if doubled := [name for name in classes if named.count(name) > 1]:
        raise UnknownFinding(f"{said!r} names {doubled[0]} twice; {known}")
    return JOIN.join(name for name in classes if name in named)


def parts(said: str) -> tuple[str, ...]:
    """Return the findings that an answer in the record's form names."""
    return () if said == NONE else tuple(said.split(JOIN))
