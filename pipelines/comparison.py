"""What the gates look at: two models on one sealed test, and who said what about the new cases.

Invariant: plain arrays and values, no torch, no files; `pipelines.evaluate` makes one, `pipelines.gates` judges it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import findings
from pipelines.metrics import MetricError
from pipelines.protocol import Protocol
from pipelines.quality_report import QualityReport
from pipelines.types import Digest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sealed:
    """The sealed test: the answers, and who belongs together."""

    labels: NDArray[Any]
    """(N,) int64 index into the protocol's classes; of several findings (N, K) bool, which are present."""
    groups: NDArray[Any]
    """(N,) patient, or the image where the patient is unknown."""
    traits: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By attribute (site, scanner, sex, age_band), (N,) its value in each case, "" where it is unknown."""
    case_ids: NDArray[np.int64] | None = None
    """(N,) for the list of flips."""
    batches: NDArray[np.int64] | None = None
    """(N,) number of the dataset version in which each case was first."""
    exposures: NDArray[Any] | None = None
    """(N,) AI exposure of the reads that each answer rests on; None: not known."""

    def of(self, rows: NDArray[np.intp]) -> Sealed:
        """Return the cases in these rows."""
        return Sealed(
            labels=self.labels[rows],
            groups=self.groups[rows],
            traits={name: values[rows] for name, values in self.traits.items()},
            case_ids=None if self.case_ids is None else self.case_ids[rows],
            batches=None if self.batches is None else self.batches[rows],
            exposures=None if self.exposures is None else self.exposures[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What one model said about the sealed test."""

    digest: Digest
    scores: NDArray[np.floating[Any]]
    """(N, classes) in [0, 1]."""
    decided: NDArray[Any]
    """(N,) class decided at the model's own operating point; of several findings (N, K) bool, those called present."""
    threshold: float | None
    """None where decisions are by arg-max, or where no operating point met the rule."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """Of several findings that of each; None where no operating point met the rule."""

    def of(self, rows: NDArray[np.intp]) -> Scored:
        """Return what it said about the cases in these rows."""
        return replace(self, scores=self.scores[rows], decided=self.decided[rows])

    def about(self, index: int, *, name: str) -> Scored:
        """Return what it said about one finding of several, called `name`: absent, or present."""
        present = self.scores[:, index]
        return replace(
            self,
            scores=np.stack([1.0 - present, present], axis=1),
            decided=self.decided[:, index].astype(np.int64),
            threshold=self.thresholds[name],
            thresholds={},
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tuned:
    """Both models on the tune split, for the screen: it is open, and no part of the sealed test."""

    cases: Sealed
    candidate: Scored
    champion: Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """One submitter's finding on one case that is new in this version, and what others have said about the case."""

    submitter: str
    finding: str
    champion: str | None
    """The champion's decision; None without a champion."""
    others: str | None
    """Finding of others whose evidence outweighs this one; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one case of the dataset version lies; what the leakage gate looks at."""

    image_digest: str
    group: str
    split: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """All that a gate may look at. `champion` is None for the first model of a line."""

    protocol: Protocol
    sealed: Sealed
    candidate: Scored
    champion: Scored | None
    opinions: tuple[Opinion, ...]
    placements: tuple[Placement, ...]
    tuned: Tuned | None = None
    """The tune split; a protocol with a screen fails without it."""
    quality: QualityReport | None = None
    """Of the dataset version; a protocol that asks for data quality fails without it."""
    approved: tuple[Scored, ...] = ()
    """Models approved before the champion that the candidate must not fall below either, the original first."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """How candidate and champion came about, in plain values, for people."""
    made: Mapping[str, Any] = field(default_factory=dict)
    """Strategy and parameters of the candidate, for the envelope."""
    fine_tuned: bool = False
    """The candidate started from the champion and saw none of the past cases."""

    use: Mapping[str, Any] | None = None
    """The use of the sealed test that the ledger granted: `level` is what it is worth. None: it is worth alpha."""

    def of(self, rows: NDArray[np.intp]) -> Comparison:
        """Return the comparison on the sealed cases in these rows alone."""
        return replace(
            self,
            sealed=self.sealed.of(rows),
            candidate=self.candidate.of(rows),
            champion=None if self.champion is None else self.champion.of(rows),
            approved=tuple(model.of(rows) for model in self.approved),
        )

    @property
    def alpha(self) -> float:
        """One-sided level at which the candidate has to show what is asked of it."""
        return self.protocol.gates.alpha if self.use is None else float(self.use["level"])

    @property
    def level(self) -> float:
        """Two-sided level whose bounds are the one-sided tests at `alpha`."""
        return 1.0 - 2.0 * self.alpha

    def questions(self) -> dict[str, Comparison]:
        """Return the comparison on each finding as if its line asked nothing else, by name; one question has no name.

        Whatever judges a line with a positive class judges such a comparison too.
        """
        if not self.protocol.several:
            return {"": self}
        return {name: self._about(index, name=name) for index, name in enumerate(self.protocol.classes)}

    def _about(self, index: int, *, name: str) -> Comparison:
        alone = {"classes": (findings.side_of(name, present=False), name), "positive": name, "task": "nominal"}
        return replace(
            self,
            protocol=self.protocol.model_copy(update=alone),
            sealed=replace(self.sealed, labels=self.sealed.labels[:, index].astype(np.int64)),
            candidate=self.candidate.about(index, name=name),
            champion=None if self.champion is None else self.champion.about(index, name=name),
            approved=tuple(model.about(index, name=name) for model in self.approved),
            tuned=None,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Sealed cases of each class; of several findings, with each of them and without."""
        if self.protocol.several:
            return findings.counted(self.sealed.labels, self.protocol.classes)
        return {name: int((self.sealed.labels == index).sum()) for index, name in enumerate(self.protocol.classes)}

    def agrees(self, model: Scored) -> NDArray[np.bool_]:
        """Return (N,) whether the whole answer of a model is that of the reference standard."""
        same = np.asarray(model.decided == self.sealed.labels)
        return np.asarray(same.all(axis=1)) if self.protocol.several else same

    @property
    def truth(self) -> NDArray[np.bool_]:
        """(N,) whether the case is of the positive class. Raises MetricError where findings do not exclude others."""
        if self.protocol.several:
            raise MetricError("several findings have no positive class: ask about each of them")
        return np.asarray(self.sealed.labels == self.protocol.positive_index)
