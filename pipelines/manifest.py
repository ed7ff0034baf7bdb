"""From confirmations to the rows of a dataset version: who is in, with what answer, in which split.

Invariants: no patient and no image is in two splits, ever; the same confirmations give the same rows in the same
order; nobody who submits can choose a split, because it hangs on a keyed hash of the patient. A case without a
settled answer waits, with the reason in words.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipelines.protocol import Protocol, ReferenceStandardRule, Splits
from pipelines.types import (
    EVIDENCE_RANK,
    AiExposure,
    CaseId,
    Confirmation,
    ConfirmedCase,
    Digest,
    Evidence,
    Example,
    Split,
    Waiting,
)


Outcome = Example | Waiting

CROSSING = "would change its split"
"""How the reason of a case begins that leaves because its patient's split is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A reference standard: the answer, and the agreeing confirmations it stands on (one a reader)."""

    finding: str
    evidence: Evidence
    ai_exposure: AiExposure
    reads: int
    submitters: tuple[str, ...]
    confirmation_ids: tuple[int, ...]


def settle(confirmations: Iterable[Confirmation], rule: ReferenceStandardRule) -> Settled | str:
    """Find the one answer in a case's standing confirmations, or say in words why the case has to wait.

    The strongest evidence present decides, by majority within it; each reader of a submitter has one vote, the
    latest. The exposure of the answer is that of its most exposed read (`aided`, then `unknown`, then `blind`).
    A reason begins with a few fixed words and a colon, so that reasons can be counted.
    """
    every = sorted(confirmations, key=lambda item: item.confirmation_id)
    allowed = [item for item in every if item.ai_exposure in rule.exposures]
    if not allowed:
        found = ", ".join(sorted({item.ai_exposure for item in every})) or "no confirmation"
        return f"AI exposure not accepted: {found}"
    rank = max(EVIDENCE_RANK[item.evidence] for item in allowed)
    if rank < rule.minimum_rank:
        strongest = next(item.evidence for item in allowed if EVIDENCE_RANK[item.evidence] == rank)
        return f"evidence too weak: {strongest}, where {rule.minimum_evidence} is needed"
    votes = {(item.submitter, item.reader): item for item in allowed if EVIDENCE_RANK[item.evidence] == rank}
    counts = Counter(item.finding for item in votes.values())
    (finding, reads), *others = counts.most_common()
    if others and others[0][1] == reads:
        tally = ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
        return f"discordant: {tally}"
    if reads < rule.minimum_reads:
        return f"too few reads: {reads} of {rule.minimum_reads}"
    agreeing = [item for item in votes.values() if item.finding == finding]
    exposures = {item.ai_exposure for item in agreeing}
    exposure: AiExposure = "aided" if "aided" in exposures else "unknown" if "unknown" in exposures else "blind"
    return Settled(
        finding=finding,
        evidence=agreeing[0].evidence,
        ai_exposure=exposure,
        reads=reads,
        submitters=tuple(sorted({item.submitter for item in agreeing})),
        confirmation_ids=tuple(sorted(item.confirmation_id for item in agreeing)),
    )


def split_of(key: bytes, group: str, splits: Splits) -> Split:
    """Assign a group to a split by HMAC-SHA256: the same key, group and shares give the same split for ever."""
    fraction = int.from_bytes(hmac.new(key, group.encode(), hashlib.sha256).digest()[:8], "big") / 2**64
    if fraction < splits.train:
        return "train"
    return "tune" if fraction < splits.train + splits.tune else "sealed_test"


def assemble(
    cases: Iterable[ConfirmedCase],
    *,
    protocol: Protocol,
    split_key: bytes,
    number: int,
    before: Mapping[CaseId, Outcome] | None = None,
    kept_splits: Mapping[str, Split] | None = None,
) -> dict[CaseId, Outcome]:
    """Decide what becomes of cases in version `number`: rows of the version, or cases that wait and why.

    `before` is what became of them in the version before. A case that was in wins over other copies of its image;
    among newcomers the lowest case id wins. `kept_splits` names the splits of groups that the shares of today would
    put elsewhere. Cases that share no image do not bear on each other, so any number may be decided at a time, as long
    as those that share one are decided together.
    """
    before, kept_splits = before or {}, kept_splits or {}
    cases = sorted(cases, key=lambda case: (not isinstance(before.get(case.case_id), Example), case.case_id))
    sides = {
        case.image_digest: before[case.case_id].split
        for case in cases
        if case.case_id in before and before[case.case_id].split
    }
    holders: dict[Digest, CaseId] = {}
    outcomes: dict[CaseId, Outcome] = {}
    for case in cases:
        old = before.get(case.case_id)
        split = kept_splits.get(case.group) or split_of(split_key, case.group, protocol.splits)
        settled = settle(case.confirmations, protocol.reference_standard)
        reason = settled if isinstance(settled, str) else None
        if isinstance(settled, Settled):
            reason = _keeps_out(case, settled, split=split, side=sides.get(case.image_digest), holders=holders, protocol=protocol)
        if isinstance(settled, Settled) and reason is None:
            holders[case.image_digest] = case.case_id
            sides[case.image_digest] = split
            outcomes[case.case_id] = _example(case, settled, split=split, number=number, old=old)
        else:
            outcomes[case.case_id] = Waiting(
                case_id=case.case_id,
                reason=str(reason),
                split=sides.get(case.image_digest),
                added_in=None if old is None else old.added_in,
            )
    return outcomes


def kept_split(outcome: Outcome) -> Split | None:
    """The split that a case holds its group to; None for one that never was in, or left because of its group."""
    if isinstance(outcome, Waiting) and (outcome.added_in is None or outcome.reason.startswith(CROSSING)):
        return None
    return outcome.split


def _keeps_out(
    case: ConfirmedCase,
    settled: Settled,
    *,
    split: Split,
    side: Split | None,
    holders: Mapping[Digest, CaseId],
    protocol: Protocol,
) -> str | None:
    if settled.finding not in protocol.classes:
        return f"not a class of this line: {settled.finding}"
    if case.image_digest in holders:
        return f"same image as another: case {holders[case.image_digest]}"
    if side is not None and side != split:
        return f"{CROSSING}: from {side} to {split}, since its patient is another now"
    return None


def _example(case: ConfirmedCase, settled: Settled, *, split: Split, number: int, old: Outcome | None) -> Example:
    same_label = isinstance(old, Example) and old.finding == settled.finding
    return Example(
        case_id=case.case_id,
        image_digest=case.image_digest,
        group=case.group,
        split=split,
        finding=settled.finding,
        evidence=settled.evidence,
        ai_exposure=settled.ai_exposure,
        reads=settled.reads,
        submitters=settled.submitters,
        confirmation_ids=settled.confirmation_ids,
        site=case.site,
        scanner=case.scanner,
        sex=case.sex,
        age_band=case.age_band,
        added_in=number if old is None or old.added_in is None else old.added_in,
        label_since=old.label_since if isinstance(old, Example) and same_label else number,
    )
