"""The record in plain Python: what a reader of the docs would say is in the database, and nothing about how.

Invariant: nothing here is ever removed or rewritten but the states that the docs say may move. Jobs are known by their
unique key, because that can be foretold; other rows by the ids the database gave them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from registry.users import User

CLASSES = ("normal", "pneumonia")
APPROVALS_REQUIRED = 2
MAXIMUM_SHARE = 0.5
MAXIMUM_ATTEMPTS = {"freeze_dataset": 3, "train_candidate": 3, "gate_candidate": 3}
UNFINISHED_RUN = ("freezing", "training", "gating")

Event = tuple[str, str, str]
"""Actor, action, subject."""


@dataclass(slots=True, kw_only=True)
class Case:
    """A case."""

    line: int
    submitter: str
    external_id: str | None
    image: str
    patient: str | None


@dataclass(slots=True, kw_only=True)
class Confirmation:
    """A confirmation; it stands while nothing supersedes it."""

    case: int
    kind: str = "confirmation"
    finding: str | None
    submitter: str
    supersedes: int | None


@dataclass(slots=True, kw_only=True)
class Job:
    """A job: `pausing` until its next attempt is due, `expired` when its lease ran out, `sent` when nudged."""

    kind: str
    line: int
    run: int | None
    candidate: int | None
    state: str = "queued"
    attempts: int = 0
    fence: int = 0
    pausing: bool = False
    expired: bool = False
    sent: bool = False
    nudge_lost: bool = False
    cancel_requested: bool = False

    @property
    def maximum_attempts(self) -> int:
        """How often it is tried."""
        return MAXIMUM_ATTEMPTS.get(self.kind, 100)


@dataclass(slots=True, kw_only=True)
class Holding:
    """What a worker believes it holds: a job under a fence, and what it read of the record when it began."""

    job: str
    fence: int
    up_to: int
    champion: int | None


@dataclass(slots=True, kw_only=True)
class Run:
    """A training run."""

    line: int
    requested_by: str | None
    strategy: str
    state: str = "freezing"
    version: int | None = None
    base: int | None = None


@dataclass(slots=True, kw_only=True)
class Version:
    """A dataset version: exactly these confirmations, in this order."""

    line: int
    number: int
    last: int
    standing: list[int]
    shares: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Report:
    """A gate report."""

    candidate: int
    champion: int | None
    protocol: int
    verdict: str


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A candidate."""

    line: int
    number: int
    run: int
    version: int
    weights: str
    state: str = "trained"


@dataclass(slots=True, kw_only=True)
class Approval:
    """A signature and all that it was given for."""

    candidate: int
    report: int
    approver: str
    decision: str
    bound: tuple[Any, ...]


@dataclass(slots=True, kw_only=True)
class Reign:
    """One reign of a champion."""

    line: int
    candidate: int
    kind: str
    replaced: int | None
    ended: bool = False


@dataclass(slots=True, kw_only=True)
class Model:
    """The whole record."""

    people: dict[str, User]
    lines: list[int]
    images: list[str]
    protocols: dict[int, list[int]]
    keys: dict[str, str] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    cases: dict[int, Case] = field(default_factory=dict)
    confirmations: dict[int, Confirmation] = field(default_factory=dict)
    replies: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    holdings: list[Holding] = field(default_factory=list)
    runs: dict[int, Run] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    candidates: dict[int, Candidate] = field(default_factory=dict)
    reports: dict[int, Report] = field(default_factory=dict)
    approvals: dict[int, Approval] = field(default_factory=dict)
    reigns: dict[int, Reign] = field(default_factory=dict)
    trail: list[Event] = field(default_factory=list)

    def superseded_by(self, confirmation: int) -> int | None:
        """The confirmation that replaced this one."""
        return next((key for key, later in self.confirmations.items() if later.supersedes == confirmation), None)

    def standing(self, line: int, *, up_to: int) -> list[int]:
        """The confirmations of a line that stand, as of one of them; by case."""
        known = {key: value for key, value in self.confirmations.items() if key <= up_to}
        gone = {value.supersedes for value in known.values()}
        stand = [key for key, value in known.items() if key not in gone and self.cases[value.case].line == line]
        return sorted(stand, key=lambda key: (known[key].case, key))

    def discordant(self) -> dict[int, int]:
        """The cases that wait for an adjudication, with their lines; everybody here gives blind single reads."""
        found = {}
        for case in self.cases:
            rows = [self.confirmations[key] for key in self.standing(self.cases[case].line, up_to=2**62)]
            rows = [row for row in rows if row.case == case and row.kind != "retraction"]
            votes = {row.submitter: row.finding for row in rows}
            if len(set(votes.values())) > 1 and all(row.kind != "adjudication" for row in rows):
                found[case] = self.cases[case].line
        return found

    def last(self, line: int) -> int:
        """The newest confirmation of a line, 0 before the first."""
        return max((key for key, value in self.confirmations.items() if self.cases[value.case].line == line), default=0)

    def latest_version(self, line: int) -> Version | None:
        """The newest dataset version of a line."""
        found = [version for version in self.versions.values() if version.line == line]
        return max(found, key=lambda version: version.number, default=None)

    def holds(self, holding: Holding) -> bool:
        """Whether this worker still holds its job."""
        job = self.jobs[holding.job]
        return job.state == "running" and job.fence == holding.fence

    def open_run(self, line: int) -> int | None:
        """The unfinished run of a line."""
        return next((key for key, run in self.runs.items() if run.line == line and run.state in UNFINISHED_RUN), None)

    def reign(self, line: int) -> Reign | None:
        """The reign of today's champion."""
        return next((reign for reign in self.reigns.values() if reign.line == line and not reign.ended), None)

    def champion(self, line: int) -> int | None:
        """Today's champion."""
        reign = self.reign(line)
        return None if reign is None else reign.candidate

    def previous(self, line: int) -> int | None:
        """Whom a roll back would bring back."""
        now = self.champion(line)
        first = next((r for r in self.reigns.values() if r.candidate == now and r.kind == "promotion"), None)
        return None if first is None else first.replaced

    def report(self, candidate: int) -> tuple[int, Report] | None:
        """The gate report that counts."""
        found = [(key, report) for key, report in self.reports.items() if report.candidate == candidate]
        return max(found, key=lambda pair: pair[0], default=None)

    def bound(self, candidate: int) -> tuple[Any, ...] | None:
        """All that a signature stands for today."""
        found = self.report(candidate)
        if found is None:
            return None
        key, report = found
        champion = None if report.champion is None else self.candidates[report.champion].weights
        made = self.candidates[candidate]
        return made.weights, made.version, key, report.protocol, champion

    def end_run(self, run: int, state: str, *, actor: str) -> None:
        """End a run."""
        self.runs[run].state = state
        self.trail.append((actor, f"run:{state}", f"run/{run}"))
