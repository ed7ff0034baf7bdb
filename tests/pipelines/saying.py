"""Things said about a case, made up: one at a time for tables, and any number for properties."""

from __future__ import annotations

from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st

from pipelines.types import AiExposure, Confirmation, Evidence, Kind

relaxed = settings(max_examples=80, deadline=None)


def read(
    finding: str | None,
    *,
    number: int = 1,
    evidence: Evidence = "single_read",
    exposure: AiExposure = "blind",
    submitter: str = "north",
    reader: str = "ana",
    kind: Kind = "confirmation",
    reason: str | None = None,
) -> Confirmation:
    """A blind single read of 2 March."""
    return Confirmation(
        confirmation_id=number,
        kind=kind,
        finding=finding,
        evidence=evidence,
        ai_exposure=exposure,
        submitter=submitter,
        reader=reader,
        confirmed_on="2026-03-02",
        reason=reason,
    )


def adjudication(
    finding: str | None, *, number: int, evidence: Evidence = "single_read", exposure: AiExposure = "blind"
) -> Confirmation:
    """A decision of the reviewer rita over what was said before."""
    return read(
        finding,
        number=number,
        evidence=evidence,
        exposure=exposure,
        submitter="rita",
        reader="rita",
        kind="adjudication",
        reason="the lateral view shows it",
    )


def retraction(*, number: int) -> Confirmation:
    """What stands where a row was taken back."""
    return read(None, number=number, kind="retraction", reason="another patient")


confirmations = st.builds(
    read,
    st.sampled_from(["normal", "pneumonia"]),
    number=st.integers(1, 10**6),
    evidence=st.sampled_from(get_args(Evidence)),
    exposure=st.sampled_from(get_args(AiExposure)),
    submitter=st.sampled_from(["north", "south", "east"]),
    reader=st.sampled_from(["ana", "ben", "eva"]),
)
adjudications = st.builds(
    adjudication,
    st.sampled_from(["normal", "pneumonia", None]),
    number=st.integers(1, 10**6),
    evidence=st.sampled_from(get_args(Evidence)),
    exposure=st.sampled_from(get_args(AiExposure)),
)
retractions = st.builds(retraction, number=st.integers(1, 10**6))
said = st.lists(
    confirmations | confirmations | adjudications | retractions, max_size=6, unique_by=lambda item: item.confirmation_id
).map(tuple)
