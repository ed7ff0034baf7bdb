"""A gate report as a page: what it says, put into the order in which a person decides.

Invariant: nothing is measured here, and nothing is said that is not in the report's document; whatever it lacks (an
older report, one of which only the bit may be seen) leaves its place out, with the reason where there is one. The same
view fills the console's partial (`report.html`) and a file of its own (`standalone`), which needs nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from api.console import charts
from api.console.charts import Chart
from api.console.words import over_findings

FOLDER = Path(__file__).parent
MARKS = {"pass": "passed", "fail": "FAILED", "insufficient": "too few cases", "withheld": "withheld"}
SENTENCES = {
    "pass": "Every requirement was shown. People may now decide; nothing is promoted by itself.",
    "fail": "A requirement is not met. This candidate cannot be approved.",
    "insufficient": "No requirement is broken, but not every one could be shown on this many cases.",
    "not_passed": "This candidate did not pass. What was measured is not open to you yet.",
}
HEADLINES = {"pass": "Passed", "fail": "Failed", "insufficient": "Not enough cases", "not_passed": "Not passed"}
PLACES = ("roc", "reliability", "decision_curve", "forest", "forgetting")
_CHARTS: dict[str, Callable[[Any], Chart | list[Chart]]] = {
    "roc": charts.roc,
    "reliability": charts.reliability,
    "decision_curve": charts.decision_curve,
    "forest": charts.forest,
    "forgetting": charts.forgetting,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table of checks, in words."""

    name: str
    verdict: str
    mark: str
    reason: str
    requirement: str
    candidate: str
    champion: str
    difference: str
    n: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A report as its templates see it."""

    line: str
    verdict: str
    headline: str
    sentence: str
    passed: int
    checks: tuple[Check, ...]
    facts: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    missing: tuple[tuple[str, str], ...]
    flips: Mapping[str, Any] | None
    changed: tuple[tuple[str, str, str], ...]
    slices: tuple[Mapping[str, Any], ...]
    exposed: tuple[Mapping[str, str], ...]
    copied: str
    digest: str


def view(document: Mapping[str, Any], *, digest: str) -> View:
    """Read a report's document (`registry.candidates.GateReport`) into what its page shows."""
    evidence = document.get("evidence") or {}
    drawn, missing = _drawn(evidence)
    flips = evidence.get("flips")
    verdict = str(document["verdict"])
    checks = tuple(_check(row) for row in _worst_first(document["results"]))
    return View(
        line=str(document.get("line", "")),
        verdict="fail" if verdict == "not_passed" else verdict,
        headline=HEADLINES[verdict],
        sentence=SENTENCES[verdict],
        passed=sum(check.verdict == "pass" for check in checks),
        checks=checks,
        facts=_facts(document),
        charts=drawn,
        missing=missing,
        flips=flips if flips and "missing" not in flips else None,
        changed=_changed(evidence.get("changed") or {}),
        slices=_slices(document["results"]),
        exposed=_exposed(evidence.get("exposure") or {}),
        copied=_copied(evidence.get("exposure") or {}),
        digest=digest,
    )


def plots_of(document: Mapping[str, Any], *, name: str, drawn_as: str) -> tuple[Chart, ...]:
    """ROC of each class, and reliability, of a report's own model alone; none where the report has no such plots.

    Their axes are those of every such plot, so two models can be laid side by side. `drawn_as` is `candidate` or
    `champion`: colour, dashes and marks.
    """
    evidence, names = document.get("evidence") or {}, {drawn_as: name}
    roc, reliability = evidence.get("roc") or {}, evidence.get("reliability") or {}
    drawn: list[Chart] = []
    if "curves" in roc:
        own = [{**curve, "model": drawn_as} for curve in roc["curves"] if curve["model"] == "candidate"]
        drawn += charts.roc({**roc, "curves": own}, names=names)
    if "models" in reliability:
        own_bins = {drawn_as: reliability["models"]["candidate"]}
        drawn.append(charts.reliability({**reliability, "models": own_bins}, names=names))
    return tuple(drawn)


def standalone(document: Mapping[str, Any], *, digest: str, number: int, made_at: str) -> str:
    """Return a report as one HTML file: style within, no script, nothing to load; prints on A4."""
    shown = view(document, digest=digest)
    style = Markup((FOLDER / "static" / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of ours
    template = environment().get_template("report_page.html")
    return template.render(shown=shown, number=number, made_at=made_at, style=style)


@cache
def environment() -> Environment:
    """The templates of a report: everything is escaped, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _drawn(evidence: Mapping[str, Any]) -> tuple[tuple[Chart, ...], tuple[tuple[str, str], ...]]:
    drawn: list[Chart] = []
    missing: list[tuple[str, str]] = []
    for place in PLACES:
        points = evidence.get(place)
        if isinstance(points, Mapping) and "missing" in points:
            missing.append((place.replace("_", " "), str(points["missing"])))
        elif points:
            made = _CHARTS[place](points)
            drawn += made if isinstance(made, list) else [made]
    return tuple(drawn), tuple(missing)


def _worst_first(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = {"fail": 0, "insufficient": 1}
    return sorted(rows, key=lambda row: order.get(row["verdict"], 2))


def _check(row: Mapping[str, Any]) -> Check:
    measured = [row.get(name) for name in ("candidate", "difference")]
    return Check(
        name=str(row["name"]).replace("_", " ") + over_findings(row),
        verdict=row["verdict"],
        mark=MARKS.get(row["verdict"], str(row["verdict"])),
        reason=str(row.get("reason", "")),
        requirement=str(row["requirement"]),
        candidate=charts.estimate(row.get("candidate")),
        champion=charts.estimate(row.get("champion")),
        difference=charts.estimate(row.get("difference"), signed=True),
        n=next((str(found["n"]) for found in measured if found), ""),
    )


def _facts(document: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What was compared with what, by digest, on how many cases, at which level."""
    summary, use = document.get("summary") or {}, document.get("sealed_test")
    counts = ", ".join(f"{n} {name}" for name, n in (summary.get("sealed_test") or {}).items())
    champion = document.get("champion_digest")
    rows = [
        ("Candidate", str(document.get("candidate_digest", ""))[:16]),
        ("Champion then", champion[:16] if champion else "none: the first model of its line"),
        ("Sealed test", counts + (f" of {summary['patients']} patients" if "patients" in summary else "")),
        ("Use of it", "" if not use else _use(use)),
        ("Read blind", _read_blind((document.get("evidence") or {}).get("exposure") or {})),
        ("Dataset", str(document.get("dataset_digest", ""))[:16]),
        ("Protocol", str(document.get("protocol_digest", ""))[:16]),
    ]
    return tuple((name, words) for name, words in rows if words)


def _use(use: Mapping[str, Any]) -> str:
    wallet = "every use at alpha: the protocol says nothing of wear" if use["wallet"] == "unlimited" else use["wallet"]
    return f"number {use['place']} of epoch {use['epoch']}, wallet {wallet}; judged at level {use['level']:.4g}"


def _read_blind(exposure: Mapping[str, Any]) -> str:
    """How many labels were given before the model was seen, who decides, and what all labels say instead."""
    if "cases" not in exposure:
        return ""
    cases = exposure["cases"]
    decides = "these alone decide" if exposure["decides"] == "blind" else "all decide"
    told = f"{cases['blind']} of {sum(cases.values())} cases; {decides}"
    return told + (f". {exposure['warning']}" if exposure["warning"] else "")


def _exposed(exposure: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Each endpoint on the labels given before the model was seen, and on all of them."""
    return tuple(
        {"name": row["endpoint"]}
        | {
            f"{whose}_{what}": _measured(row[whose][what], signed=what == "difference")
            for whose in ("blind", "all")
            for what in ("candidate", "difference")
        }
        for row in exposure.get("endpoints", ())
    )


def _measured(found: Mapping[str, Any], *, signed: bool) -> str:
    """An estimate, on so many cases, or why there is none."""
    if "missing" in found:
        return f"none: {found['missing']}"
    return f"{charts.estimate(found, signed=signed)}, n {found['n']}"


def _copied(exposure: Mapping[str, Any]) -> str:
    """How many of the labels given with the model in sight were copied from the champion."""
    copied = exposure.get("copied")
    if copied is None:
        return ""
    if "missing" in copied:
        return f"Whether aided readers copied the champion cannot be told: {copied['missing']}."
    return f"Share of aided labels that were copied from the champion: {charts.estimate(copied)}."


def _changed(changed: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """What is another in the candidate: name, the champion's, the candidate's."""
    rows = [
        (name.replace("_", " "), _plain(before), _plain(after))
        for name, (before, after) in (changed.get("models") or {}).items()
    ]
    if "dataset" in changed:
        told = f"version {changed['dataset']}: {changed['examples']} cases, {changed['new_labels']} new labels"
        rows.insert(0, ("data", "", told))
    return tuple(rows)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _slices(rows: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """What the gate `subgroups` said of each slice, where the protocol asks for it."""
    found: list[Mapping[str, Any]] = next(
        (row.get("details", {}).get("slices", []) for row in rows if row["name"] == "subgroups"), []
    )
    return tuple(
        {
            "name": one["name"],
            "tier": one["tier"],
            "n": one["n"],
            "verdict": one["judged"]["verdict"],
            "mark": MARKS[one["judged"]["verdict"]],
            "reason": one["judged"]["reason"],
            "difference": charts.estimate(one["judged"].get("difference"), signed=True),
        }
        for one in found
    )
