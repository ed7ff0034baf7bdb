"""From confirmations to the rows of a dataset version: who is in, with what answer, in which split.

Invariants: no patient and no image is in two splits, ever; the same confirmations give the same rows in the same
order; nobody who submits can choose a split, because it hangs on a keyed hash of the patient. A case without a
settled answer waits, with the reason in words.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Sequence

from pipelines.protocol import Protocol, Splits
from pipelines.reference_standard import settle
from pipelines.types import SPLITS, CaseId, ConfirmedCase, Digest, Example, Split, Waiting


def group_of(case: ConfirmedCase) -> str:
    """Name what must stay together in one split: the patient, or the image where the patient is unknown."""
    return f"image:{case.image_digest}" if case.patient is None else f"patient:{case.patient}"


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
    previous: Sequence[Example] = (),
) -> tuple[list[Example], list[Waiting]]:
    """Make the rows of version `number`, sorted by case id, and say which cases wait and why.

    A patient that `previous` held keeps the split even if the protocol's shares change, and a case that it held wins
    over other copies of its image; among newcomers the lowest case id wins. `added_in` and `label_since` are carried
    over.
    """
    before = {example.case_id: example for example in previous}
    split_before = {example.group: example.split for example in previous}
    image_split_before = {example.image_digest: example.split for example in previous}
    holder: dict[Digest, CaseId] = {}
    examples: list[Example] = []
    waiting: list[Waiting] = []
    # Incumbents first: a newcomer with the same image must not carry it into another split.
    for case in sorted(cases, key=lambda case: (case.case_id not in before, case.case_id)):
        old = before.get(case.case_id)
        group = group_of(case)
        split = split_before.get(group) or split_of(split_key, group, protocol.splits)
        settled = settle(case.confirmations, protocol.reference_standard)
        reason: str | None = None
        if isinstance(settled, str):
            reason = settled
        elif settled.finding not in protocol.classes:
            reason = f"not a class of this line: {settled.finding}"
        elif case.image_digest in holder:
            reason = f"same image as another: case {holder[case.image_digest]}"
        elif image_split_before.get(case.image_digest, split) != split:
            moved = f"from {image_split_before[case.image_digest]} to {split}"
            reason = f"would change its split: {moved}, since its patient is another now"
        if isinstance(settled, str) or reason is not None:
            waiting.append(Waiting(case_id=case.case_id, reason=reason or str(settled)))
            continue
        holder[case.image_digest] = case.case_id
        same_label = old is not None and old.finding == settled.finding
        examples.append(
            Example(
                case_id=case.case_id,
                image_digest=case.image_digest,
                group=group,
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
                added_in=old.added_in if old is not None else number,
                label_since=old.label_since if old is not None and same_label else number,
            )
        )
    return sorted(examples, key=lambda row: row.case_id), sorted(waiting, key=lambda row: row.case_id)


def counts(examples: Iterable[Example], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count examples by split, then class; every split and class has an entry, if only 0."""
    table = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    for example in examples:
        table[example.split][example.finding] += 1
    return {str(split): row for split, row in table.items()}


def new_cases(examples: Iterable[Example], *, number: int) -> tuple[dict[str, int], int]:
    """Count the cases whose label is new in version `number`: by submitter, and in all."""
    new = [example for example in examples if example.label_since == number]
    tally = Counter(submitter for example in new for submitter in example.submitters)
    return dict(sorted(tally.items())), len(new)
