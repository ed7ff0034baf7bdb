"""A gate report as text that a person reads in a terminal or a mail, at most 100 columns wide.

Invariant: it says nothing that is not in the report, and leaves out no gate.
"""

from __future__ import annotations

import textwrap

from pipelines import blind
from pipelines.types import Estimate, GateReport, GateResult, Verdict

WIDTH = 100
MARKS: dict[Verdict, str] = {"pass": "pass", "fail": "FAIL", "insufficient": "too few"}
SENTENCES: dict[Verdict, str] = {
    "pass": "PASS - every requirement was shown. People may now approve it; nothing is promoted by itself.",
    "fail": "FAIL - a requirement is not met. This candidate cannot be approved.",
    "insufficient": "NOT ENOUGH CASES - no requirement is broken, but not every one could be shown.",
}


def render_text(report: GateReport) -> str:
    """Render the report: verdict, what was compared, a table of the gates, and why what did not pass did not."""
    champion = "none, the first model of its line" if report.champion_digest is None else report.champion_digest[:12]
    counts = ", ".join(f"{n} {name}" for name, n in report.summary.get("sealed_test", {}).items())
    lines = [
        f"Gate report · {report.line}",
        SENTENCES[report.verdict],
        "",
        f"candidate {report.candidate_digest[:12]} · champion {champion}",
        f"dataset {report.dataset_digest[:12]} · protocol {report.protocol_digest[:12]} · sealed test: {counts}",
        *_sealed(report),
        "",
    ]
    cells = [("gate", "verdict", "candidate", "champion", "difference", "n"), *map(_cells, report.results)]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    for row in cells:
        lines.append("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if any("findings" in result.details for result in report.results):
        lines += ["", "Of several findings these are means; the calibration error is the largest of theirs."]
    troubled = [result for result in report.results if result.verdict != "pass"]
    if troubled:
        lines += ["", "Why not:"]
    for result in troubled:
        lines += textwrap.wrap(
            f"{result.name}: {result.reason}. Required: {result.requirement}.",
            width=WIDTH - 2,
            initial_indent="- ",
            subsequent_indent="  ",
        )
    return "\n".join(lines) + "\n"


def _sealed(report: GateReport) -> list[str]:
    """Which use of the sealed test this was, what it was worth, which cases changed sides, and who had read blind."""
    lines, use, flips = [], report.sealed_test, report.evidence.get("flips", {})
    if use is not None:
        words = "every use at alpha, no plan for wear" if use["wallet"] == "unlimited" else f"wallet {use['wallet']}"
        lines.append(f"use {use['place']} of its epoch {use['epoch']}, {words} · judged at level {use['level']:.4g}")
    if "counts" in flips:
        lost, gained = flips["counts"]["lost"], flips["counts"]["gained"]
        named = ", ".join(str(one["case"]) for one in flips["lost"][:10])
        lines.append(f"of {flips['n']} cases {lost} are lost that the champion has right, {gained} gained")
        if named:
            lines.append(f"lost first: cases {named}" + (" …" if lost > 10 else ""))
    exposed = report.evidence.get("exposure", {})
    if "cases" in exposed:
        lines += textwrap.wrap(blind.words(exposed), width=WIDTH)
    return lines


def _cells(result: GateResult) -> tuple[str, str, str, str, str, str]:
    n = next((e.n for e in (result.candidate, result.difference) if e is not None), None)
    return (
        result.name,
        MARKS[result.verdict],
        _number(result.candidate),
        _number(result.champion),
        _number(result.difference, signed=True),
        "" if n is None else str(n),
    )


def _number(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    form = "+.3f" if signed else ".3f"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
