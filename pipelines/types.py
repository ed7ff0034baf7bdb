"""The values of the science: what a case, a label, an estimate and a verdict are.

Everything here is frozen and knows nothing of files, databases or networks. Digests are SHA-256 in lower-case
hexadecimal over canonical JSON (sorted keys, no spaces, UTF-8, no NaN), so that two machines agree on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NewType, get_args

CaseId = NewType("CaseId", int)
Digest = NewType("Digest", str)

Split = Literal["train", "tune", "sealed_test"]
Evidence = Literal["report_text", "single_read", "consensus", "follow_up", "pathology"]
AiExposure = Literal["blind", "aided", "unknown"]
Kind = Literal["confirmation", "retraction", "adjudication"]
Strategy = Literal[
    "full", "auto", "warm", "replay", "derpp", "gdumb", "lwf", "ewc", "interpolate", "analytic", "finetune"
]
Task = Literal["nominal", "ordinal", "multilabel"]
Verdict = Literal["pass", "fail", "insufficient"]

SPLITS: tuple[Split, ...] = get_args(Split)
EVIDENCE_RANK: dict[Evidence, int] = {tier: rank for rank, tier in enumerate(get_args(Evidence))}
"""Evidence tiers from weakest (0) to strongest (4)."""


def canonical_json(value: Any) -> str:
    """Write `value` in the one form that digests are taken over. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> Digest:
    """SHA-256 of the canonical JSON of `value`, 64 hexadecimal digits."""
    return Digest(hashlib.sha256(canonical_json(value).encode()).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What one source said of a case, as the science needs it; superseded rows never reach here.

    A retraction stands where a row was taken back and says nothing; an adjudication decides over the others. `finding`
    is None in a retraction, and in an adjudication that finds the case cannot be answered. `confirmed_on` is an ISO
    date in UTC; `reason` is given by retractions and adjudications alone.
    """

    confirmation_id: int
    kind: Kind = "confirmation"
    finding: str | None
    evidence: Evidence
    ai_exposure: AiExposure
    submitter: str
    reader: str
    confirmed_on: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmedCase:
    """A case with all its standing confirmations; the input of a freeze.

    `patient` is a pseudonym, None where the patient is unknown (the case is then a group of its own).
    """

    case_id: CaseId
    image_digest: Digest
    patient: str | None
    site: str
    scanner: str | None
    sex: str | None
    age_band: str | None
    spacing_mm: tuple[float, ...] | None = None
    """Distance between pixels, in the order of the image's axes; None: unknown."""
    confirmations: tuple[Confirmation, ...]

    @property
    def group(self) -> str:
        """What must stay together in one split: the patient, or the image where the patient is unknown."""
        return f"image:{self.image_digest}" if self.patient is None else f"patient:{self.patient}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a dataset version's case table that is in: a case, its reference standard and how it was reached."""

    case_id: CaseId
    image_digest: Digest
    group: str
    split: Split
    finding: str
    evidence: Evidence
    ai_exposure: AiExposure
    reads: int
    submitters: tuple[str, ...]
    confirmation_ids: tuple[int, ...]
    why: str
    """Why this finding stands, in a sentence."""
    confirmed_on: str
    """ISO date of the newest confirmation it stands on."""
    site: str
    scanner: str | None
    sex: str | None
    age_band: str | None
    added_in: int
    """Number of the dataset version in which this case first appeared."""
    label_since: int
    """Number of the dataset version since which it has had this finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A confirmed case that does not enter a version, and why."""

    case_id: CaseId
    reason: str
    split: Split | None = None
    """The split that its image has been in; it is in no other, ever. None: in none yet."""
    added_in: int | None = None
    """Number of the dataset version in which this case was first, before it left; None: never in one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured value with its two-sided interval and the number of cases behind it."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold on the positive class's score in [0, 1], and what it was chosen for, and where.

    `threshold` is None where no point meets the rule ("no such operating point"); a gate must then fail.
    """

    rule: str
    target: float | None
    threshold: float | None
    sensitivity: Estimate | None
    specificity: Estimate | None
    chosen_on: Split
    shortfall: float | None = None
    """How far one of the two is below the champion's on the same cases, 0 where neither is; None: not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One line of a gate report: a pre-stated requirement, what was measured, and the verdict in words."""

    name: str
    requirement: str
    verdict: Verdict
    reason: str
    candidate: Estimate | None = None
    champion: Estimate | None = None
    difference: Estimate | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The verdict on one candidate, bound by digest to all that it was measured with.

    `champion_digest` is None for the first model of a line, which absolute floors gate.
    """

    schema_version: int
    line: str
    candidate_digest: Digest
    champion_digest: Digest | None
    dataset_digest: Digest
    protocol_digest: Digest
    verdict: Verdict
    results: tuple[GateResult, ...]
    sealed_test: Mapping[str, Any] | None = None
    """The use of the sealed test that the ledger granted, with its level; None: outside of a ledger, at alpha."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The points of the report's plots (`pipelines.evidence`); no part of any verdict."""

    def document(self) -> dict[str, Any]:
        """The report as plain JSON values; its digest is `digest_of` this."""
        return asdict(self)
