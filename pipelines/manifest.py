"""From confirmations to the rows of a dataset version: who is in, with what answer, in which split.

Invariants: no patient and no image is in two splits, ever; the same confirmations give the same rows in the same
order; nobody who submits can choose a split, because it hangs on a keyed hash of the patient. A case without a
settled answer waits, with the reason in words.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from pipelines.protocol import Protocol, Splits
from pipelines.reference_standard import Settled, settle
from pipelines.types import CaseId, ConfirmedCase, Digest, Example, Split, Waiting

Outcome = Example | Waiting

CROSSING = "would change its split"
"""How the reason of a case begins that leaves because its patient's split is another."""


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
    examples: dict[CaseId, Outcome] = {}
    reasons: dict[CaseId, str] = {}
    for case in cases:
        old = before.get(case.case_id)
        split = kept_splits.get(case.group) or split_of(split_key, case.group, protocol.splits)
        settled = settle(
            case.confirmations, protocol.reference_standard, findings=protocol.classes if protocol.several else ()
        )
        reason = settled if isinstance(settled, str) else None
        if isinstance(settled, Settled):
            reason = _keeps_out(
                case, settled, split=split, side=sides.get(case.image_digest), holders=holders, protocol=protocol
            )
        if isinstance(settled, Settled) and reason is None:
            holders[case.image_digest] = case.case_id
            sides[case.image_digest] = split
            examples[case.case_id] = _example(case, settled, split=split, number=number, old=old)
        else:
            reasons[case.case_id] = str(reason)
    return examples | {
        case.case_id: Waiting(
            case_id=case.case_id,
            reason=reasons[case.case_id],
            split=sides.get(case.image_digest),
            added_in=before[case.case_id].added_in if case.case_id in before else None,
        )
        for case in cases
        if case.case_id in reasons
    }


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
    if not protocol.several and settled.finding not in protocol.classes:
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
        why=settled.why,
        confirmed_on=max(
            item.confirmed_on for item in case.confirmations if item.confirmation_id in settled.confirmation_ids
        ),
        site=case.site,
        scanner=case.scanner,
        sex=case.sex,
        age_band=case.age_band,
        added_in=number if old is None or old.added_in is None else old.added_in,
        label_since=old.label_since if isinstance(old, Example) and same_label else number,
    )
