"""Where a reader is on a worklist, and how they read: it goes along in the address from page to page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, Query

from api.console import words


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """A place on a worklist of some site or reason, and the evidence by which a reader confirms."""

    site: str = ""
    reason: str = ""
    place: int = 0
    evidence: str = "single_read"

    def __str__(self) -> str:
        all_of_it = {"site": self.site, "reason": self.reason, "place": self.place, "evidence": self.evidence}
        return urlencode({name: value for name, value in all_of_it.items() if value})

    def at(self, place: int) -> Trail:
        """The same way of reading, at another place."""
        return replace(self, place=place)

    def keeping(self, ticked: Sequence[str]) -> str:
        """The address's query to the same case again, with what is ticked there: no more than a line can ask."""
        ticks = urlencode([("ticked", name[:60]) for name in ticked[:31]])
        return "&".join(part for part in (str(self), ticks) if part)


def _trail(
    site: Annotated[str, Query(max_length=80)] = "",
    reason: Annotated[str, Query(max_length=40)] = "",
    place: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    evidence: Annotated[str, Query(max_length=40)] = "single_read",
) -> Trail:
    known = evidence if evidence in words.EVIDENCE else "single_read"
    return Trail(site=site.strip(), reason=reason, place=place, evidence=known)


OnTrail = Annotated[Trail, Depends(_trail)]
