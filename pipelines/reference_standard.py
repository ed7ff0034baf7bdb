"""From many confirmations to one answer, with the sentence that says why.

Invariant: a pure function of what stands about a case and of the protocol's rule; the order in which things are given
does not matter, only their ids. What is not of an accepted AI exposure is not looked at, and a retracted row is as if
it had never been said. The database keeps the queue of cases that wait for an adjudication by the same rule
(`follow_discordances` in the schema); a test holds the two together. See `docs/reference-standard.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.findings import joined, matrix, side_of
from pipelines.protocol import ReferenceStandardRule
from pipelines.types import EVIDENCE_RANK, AiExposure, Confirmation, Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A reference standard: the answer, what it stands on (one row a reader), and why, in a sentence for people.

    `votes` are all readers at the deciding tier by exposure, then finding: how blind and aided reads split.
    """

    finding: str
    evidence: Evidence
    ai_exposure: AiExposure
    reads: int
    submitters: tuple[str, ...]
    confirmation_ids: tuple[int, ...]
    why: str
    votes: Mapping[AiExposure, Mapping[str, int]]


def settle(
    confirmations: Iterable[Confirmation], rule: ReferenceStandardRule, *, findings: Sequence[str] = ()
) -> Settled | str:
    """Find the one answer in all that stands about a case, or say in words why the case has to wait.

    The newest adjudication decides, until stronger evidence that comes after it says otherwise. Without one, the
    strongest evidence present decides, by majority within it; each reader of a submitter has one vote, the latest. The
    exposure of the answer is that of its most exposed read (`aided`, then `unknown`, then `blind`). A reason begins
    with a few fixed words and a colon, so that reasons can be counted.

    `findings` are those of a line where each is present or absent by itself: the vote is then taken on each of them,
    and the case waits where it settles one of them not.
    """
    every = sorted((item for item in confirmations if item.kind != "retraction"), key=lambda item: item.confirmation_id)
    if not every:
        return "no confirmation stands: all that was said is retracted"
    allowed = [item for item in every if item.ai_exposure in rule.exposures]
    if not allowed:
        return f"AI exposure not accepted: {', '.join(sorted({item.ai_exposure for item in every}))}"
    said = [item for item in allowed if item.kind == "confirmation"]
    adjudications = [item for item in allowed if item.kind == "adjudication"]
    if adjudications:
        return _adjudicated(adjudications[-1], said, rule=rule)
    votes = _votes(said)
    return _each_by_majority(votes, rule=rule, findings=findings) if findings else _by_majority(votes, rule=rule)


def _adjudicated(decision: Confirmation, said: Sequence[Confirmation], *, rule: ReferenceStandardRule) -> Settled | str:
    stronger = [
        item
        for item in said
        if item.confirmation_id > decision.confirmation_id
        and EVIDENCE_RANK[item.evidence] > EVIDENCE_RANK[decision.evidence]
    ]
    against = [item for item in stronger if item.finding != decision.finding]
    if against:
        news = ", ".join(sorted({f"{item.evidence} says {item.finding}" for item in against}))
        return f"new evidence since the adjudication: {news}"
    if decision.finding is None:
        return "adjudicated: cannot be answered"
    why = f"adjudicated by {decision.reader} on {decision.confirmed_on}: {decision.reason!r}"
    return _weak([decision, *stronger], rule=rule) or _settled(
        [decision, *_votes(stronger)], decision.finding, why=why, votes=_votes(said)
    )


def _by_majority(votes: Sequence[Confirmation], *, rule: ReferenceStandardRule) -> Settled | str:
    counts = Counter(str(item.finding) for item in votes)
    (finding, reads), *others = counts.most_common()
    tally = ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
    if weak := _weak(votes, rule=rule):
        return weak
    if others and others[0][1] == reads:
        return f"discordant: {tally}"
    if rule.minimum_agreement is not None and reads / len(votes) < rule.minimum_agreement:
        return f"agreement too low: {tally}, where {rule.minimum_agreement:.0%} have to agree"
    if reads < rule.minimum_reads:
        return f"too few reads: {reads} of {rule.minimum_reads}"
    agreeing = [item for item in votes if item.finding == finding]
    readers = f"by {reads} of {len(votes)} readers" if len(votes) > 1 else f"by {agreeing[0].reader}"
    why = f"{votes[0].evidence.replace('_', ' ')} {readers}, {_exposure(agreeing)}"
    return _settled(agreeing, finding, why=why, votes=votes)


def _each_by_majority(
    votes: Sequence[Confirmation], *, rule: ReferenceStandardRule, findings: Sequence[str]
) -> Settled | str:
    """Settle each finding as if nothing else had been asked, and join them; what stands behind any of them counts."""
    if weak := _weak(votes, rule=rule):
        return weak
    present = matrix([str(item.finding) for item in votes], findings)  # (readers, K)
    settled: list[Settled] = []
    for name, there in zip(findings, present.T, strict=True):
        own = [replace(vote, finding=side_of(name, present=is_so)) for vote, is_so in zip(votes, there, strict=True)]
        found = _by_majority(own, rule=rule)
        if isinstance(found, str):
            return f"{found}, for {name}"
        settled.append(found)
    behind = {number for one in settled for number in one.confirmation_ids}
    rows = [vote for vote in votes if vote.confirmation_id in behind]
    reads = min(one.reads for one in settled)
    readers = f"by {reads} of {len(votes)} readers on each finding" if len(votes) > 1 else f"by {votes[0].reader}"
    why = f"{votes[0].evidence.replace('_', ' ')} {readers}, {_exposure(rows)}"
    answer = joined([one.finding == name for one, name in zip(settled, findings, strict=True)], findings)
    return replace(_settled(rows, answer, why=why, votes=votes), reads=reads)


def _votes(said: Iterable[Confirmation]) -> list[Confirmation]:
    """Keep the strongest evidence, and of each reader of a submitter the latest; `said` in order of id."""
    rows = list(said)
    strongest = max((EVIDENCE_RANK[item.evidence] for item in rows), default=0)
    latest = {(item.submitter, item.reader): item for item in rows if EVIDENCE_RANK[item.evidence] == strongest}
    return list(latest.values())


def _weak(rows: Sequence[Confirmation], *, rule: ReferenceStandardRule) -> str | None:
    strongest = max((item.evidence for item in rows), key=EVIDENCE_RANK.__getitem__)
    if EVIDENCE_RANK[strongest] >= rule.minimum_rank:
        return None
    return f"evidence too weak: {strongest}, where {rule.minimum_evidence} is needed"


def _exposure(rows: Iterable[Confirmation]) -> AiExposure:
    exposures = {item.ai_exposure for item in rows}
    return "aided" if "aided" in exposures else "unknown" if "unknown" in exposures else "blind"


def _settled(rows: Sequence[Confirmation], finding: str, *, why: str, votes: Sequence[Confirmation]) -> Settled:
    table: dict[AiExposure, dict[str, int]] = {}
    for vote in votes:
        row = table.setdefault(vote.ai_exposure, {})
        row[str(vote.finding)] = row.get(str(vote.finding), 0) + 1
    return Settled(
        finding=finding,
        evidence=max((item.evidence for item in rows), key=EVIDENCE_RANK.__getitem__),
        ai_exposure=_exposure(rows),
        reads=len(rows),
        submitters=tuple(sorted({item.submitter for item in rows})),
        confirmation_ids=tuple(sorted(item.confirmation_id for item in rows)),
        why=why,
        votes={exposure: dict(sorted(table[exposure].items())) for exposure in sorted(table)},
    )
