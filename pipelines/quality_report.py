"""A quality report: what was found wrong, or could not be told, in the cases that a model would learn from.

Invariant: plain values; a line has its number, its n, its reason in words, and the cases to look at. The report names
the dataset version by digest, and is itself known by the digest of its document. `pipelines.quality` makes one,
`pipelines.data_gates` holds it against the protocol.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.types import Digest, digest_of

QualityVerdict = Literal["pass", "warn", "fail", "insufficient"]

SCHEMA_VERSION = 1
EXAMPLES = 20
"""The most case ids that a line shows."""
WIDTH = 100
MARKS: dict[QualityVerdict, str] = {"pass": "ok", "warn": "look", "fail": "FAIL", "insufficient": "too few"}
SENTENCES: dict[QualityVerdict, str] = {
    "pass": "PASS - nothing that has to be looked at before training.",
    "warn": "LOOK - nothing breaks the protocol, but a person should look at the lines marked so.",
    "fail": "FAIL - the data break what the protocol asks of them; a model trained on them cannot pass the gates.",
    "insufficient": "TOO FEW - nothing was found wrong, but for some lines there are too few cases to tell.",
}
_WORST_FIRST: tuple[QualityVerdict, ...] = ("fail", "warn", "insufficient", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLine:
    """One thing that was looked at. `value` is what `threshold` bounds from above; None where nothing was measured."""

    name: str
    verdict: QualityVerdict
    reason: str
    n: int
    """Cases looked at."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Bounds of the two-sided 95 % interval of `value`, where it is an estimate."""
    p: float | None = None
    """Of the test that the line names, where there is one."""
    threshold: float | None = None
    examples: tuple[int, ...] = ()
    """Case ids, at most EXAMPLES."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """All lines on one dataset version; `previous_digest` is None for the first of its line."""

    schema_version: int
    line: str
    number: int
    dataset_digest: Digest
    previous_digest: Digest | None
    rules: Mapping[str, Any]
    """The protocol's `data_quality` section that the lines were held against, every default filled in."""
    lines: tuple[QualityLine, ...]

    @property
    def verdict(self) -> QualityVerdict:
        """The worst verdict of the lines; `fail` where there is no line."""
        return worst([line.verdict for line in self.lines])

    @property
    def digest(self) -> Digest:
        """SHA-256 of the document."""
        return digest_of(self.document())

    def document(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        document = asdict(self) | {"verdict": self.verdict}
        for line in document["lines"]:
            line["examples"] = list(line["examples"])
        return document | {"lines": list(document["lines"])}

    def named(self, name: str) -> QualityLine:
        """Return the line of that name. Raises KeyError where the report does not have it."""
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(f"the quality report has no line {name!r}")


def worst(verdicts: list[QualityVerdict]) -> QualityVerdict:
    """Return the worst of some verdicts: fail, warn, insufficient, pass; `fail` of none, for nothing was shown."""
    return min(verdicts, key=_WORST_FIRST.index, default="fail")


def from_document(document: Mapping[str, Any]) -> QualityReport:
    """Read a report back from plain values. Raises ValueError where it is of another schema or lacks something."""
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"a quality report of schema {document.get('schema_version')!r} cannot be read: make it anew")
    values = {name: value for name, value in document.items() if name != "verdict"}
    try:
        lines = tuple(QualityLine(**{**line, "examples": tuple(line["examples"])}) for line in values.pop("lines"))
        return QualityReport(**values, lines=lines)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a quality report: {error}") from error


def render_text(report: QualityReport) -> str:
    """Render the report for a terminal or a mail, at most 100 columns: the verdict, what to look at, then the rest."""
    before = "no version before" if report.previous_digest is None else f"before it {report.previous_digest[:12]}"
    lines = [
        f"Data quality · {report.line} · version {report.number}",
        SENTENCES[report.verdict],
        f"dataset {report.dataset_digest[:12]} · {before}",
    ]
    for verdict in _WORST_FIRST:
        of_it = [line for line in report.lines if line.verdict == verdict]
        if of_it:
            lines.append("")
        for line in of_it:
            lines += _wrapped(line)
    return "\n".join(lines) + "\n"


def _wrapped(line: QualityLine) -> list[str]:
    words = f"{MARKS[line.verdict]:<8}{line.name}: {line.reason}"
    found = textwrap.wrap(words, width=WIDTH, subsequent_indent=" " * 8)
    if line.examples and line.verdict != "pass":
        cases = "cases " + ", ".join(str(case) for case in line.examples)
        found += textwrap.wrap(cases, width=WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return found
