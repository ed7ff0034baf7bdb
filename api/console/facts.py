"""What a model is, for whoever has to answer for it: facts, reporting checklist, and evidence for each promise.

Invariant: each line stands on what the record says, named by digest, and what the record does not know says so and
waits for a person. Written as Markdown, for a file beside the submission.

References: Mongan, Moy, Kahn, Radiology: Artificial Intelligence 2020, 2:e200029 (CLAIM, 42 items); FDA, "Marketing
Submission Recommendations for a Predetermined Change Control Plan", final guidance, 2024-12; Mitchell et al., 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.console.charts import estimate
from api.console.words import over_findings
from registry.findings import are_several

Row = Mapping[str, Any]
UNKNOWN = "not in the record: for a person to write"
MEASURED = ("auroc", "kappa", "sensitivity", "specificity", "accuracy", "calibration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that the page stands on, as the API gives it; `protocol` is the one that the candidate was made under."""

    line: Row
    protocol: Row
    candidate: Row
    report: Row
    version: Row
    run: Row
    approvals: Sequence[Row]

    @property
    def asked(self) -> Row:
        """The protocol's document."""
        found: Row = self.protocol["document"]
        return found


def page(found: Sources) -> str:
    """Write the page: model facts, traceability of the change plan, reporting checklist."""
    number, name = found.candidate["number"], found.line["name"]
    return "\n\n".join(
        (
            f"# Model {number} of {name}",
            _table(("Fact", "What the record says"), _facts(found)),
            "## Performance on the sealed test",
            _performance(found),
            "## The change plan, traced",
            "Predetermined Change Control Plan (FDA, 2024-12): what was promised, what shows it, and its digest.",
            _table(("Requirement", "Evidence", "Digest"), _traced(found)),
            "## CLAIM checklist (2020, 42 items)",
            "Items that a record can answer are answered; the others are for the people who report the study.",
            _table(("Item", "Asked for", "Answer"), _claim(found)),
            "Not a medical device. Generated from the record; it changes when the record does.",
        )
    )


def _facts(found: Sources) -> list[tuple[str, ...]]:
    asked, made = found.asked, found.candidate["metadata"]
    signed = ", ".join(f"{one['printed_name']} ({one['decision']})" for one in found.approvals)
    return [
        ("Intended use", asked["intended_use"].strip()),
        ("Answers", _answers(asked)),
        (
            "Sees",
            f"{_size(asked['input'])}, {asked['input']['channels']} channel",
        ),
        ("State", found.candidate["state"].replace("_", " ")),
        ("Network", f"{asked['recipe']['network']}, {made.get('parameters', 'unknown')} parameters"),
        (
            "Made by",
            f"strategy {found.run['strategy']}, seed {found.run['seed']}, from {made.get('started_from', UNKNOWN)}",
        ),
        ("Asked for", found.run["reason"]),
        ("Learnt from", f"dataset version {found.version['number']}, {_counted(found, 'train')} cases"),
        ("Threshold", _threshold(made)),
        ("Threshold by site", _by_site(made)),
        ("Gates", found.report["verdict"].replace("_", " ")),
        ("Signatures", signed or "none"),
        ("Weights, SHA-256", found.candidate["weights_digest"]),
        ("Erasures since", str(found.candidate["erasures"] or "none")),
    ]


def _answers(asked: Mapping[str, Any]) -> str:
    classes = ", ".join(asked["classes"])
    if are_several(asked):
        return f"{classes}, each present or absent by itself"
    return f"{classes}; positive: {asked.get('positive') or 'by arg-max'}"


def _threshold(made: Mapping[str, Any]) -> str:
    """The threshold, or of several findings that of each, with how it was chosen."""
    points: Mapping[str, Any] = made.get("operating_points") or {"": made.get("operating_point") or {}}
    chosen = next(iter(points.values()))
    values = ", ".join(f"{name} {point.get('threshold')}".strip() for name, point in points.items())
    beside = f" beside the champion {made['beside_digest'][:12]}" if made.get("beside_digest") else ""
    return f"{values} (rule {chosen.get('rule')}, chosen on {chosen.get('chosen_on')}{beside})"


def _size(asked: Mapping[str, Any]) -> str:
    sides = [asked[name] for name in ("depth", "rows", "columns") if asked.get(name)]
    return f"{'images' if len(sides) == 2 else 'volumes'} of {' × '.join(map(str, sides))}"


def _by_site(made: Mapping[str, Any]) -> str:
    """The thresholds that decide at single sites; the line's decides at all others."""
    if not made.get("decides_by_site"):
        return "none: one for all sites"
    points = {site: point["threshold"] for site, point in made["operating_points_by_site"].items()}
    own = ", ".join(f"{site} {threshold}" for site, threshold in points.items() if threshold is not None)
    return own or "none: no site had cases enough on tune"


def _performance(found: Sources) -> str:
    if found.report["withheld"]:
        return (
            "What was measured is not open to you yet: nobody has decided, and you asked for the run or may not review."
        )
    rows = [
        line
        for row in found.report["document"]["results"]
        if row["name"] in MEASURED and row.get("candidate")
        for line in _measured(row)
    ]
    missed = [
        f"{row['name']}: {row['reason']}" for row in found.report["document"]["results"] if row["verdict"] != "pass"
    ]
    known = "Not shown: " + "; ".join(missed) if missed else "Every requirement of the protocol was shown."
    return _table(("Endpoint", "Candidate", "Against the champion then", "n"), rows) + "\n\n" + known


def _measured(row: Row) -> list[tuple[str, ...]]:
    """An endpoint, and of several findings that of each after it."""
    whole = {"finding": None, "candidate": row["candidate"], "difference": row.get("difference")}
    each = [one for one in (row.get("details") or {}).get("findings", []) if one.get("candidate")]
    return [
        (
            row["name"] + (f" of {one['finding']}" if one["finding"] else over_findings(row)),
            estimate(one["candidate"]),
            estimate(one.get("difference"), signed=True),
            str(one["candidate"]["n"]),
        )
        for one in (whole, *each)
    ]


def _traced(found: Sources) -> list[tuple[str, ...]]:
    asked, gates, report = found.asked, found.asked["gates"], found.report
    use = report["document"].get("sealed_test") or {}
    plan, version, candidate = found.protocol["digest"], found.version["digest"], found.candidate
    envelope, wear = asked.get("envelope"), gates.get("sealed_test")
    allowed = (
        f"strategies {', '.join(envelope['strategies'])}; gate `envelope`" if envelope else "no envelope: any strategy"
    )
    worn = (
        f"use {use.get('place')} of epoch {use.get('epoch')}, level {use.get('level')}" if use else "before the ledger"
    )
    return [
        ("Description of modifications", allowed, plan),
        ("Intended use does not change", "protocol: intended_use", plan),
        ("Data management: reference standard", f"at least {asked['reference_standard']['minimum_evidence']}", plan),
        (
            "Data management: what was learnt from",
            f"dataset version {found.version['number']}, {found.version['git_tag']}",
            version,
        ),
        ("Data management: test kept apart", "split by keyed hash of the patient; gate `leakage`", version),
        (
            "Re-training: as declared",
            f"run {found.run['run_id']}, {found.run['strategy']}",
            candidate["metadata_digest"],
        ),
        ("Performance evaluation: acceptance criteria", f"{len(report['document']['results'])} gates", plan),
        ("Performance evaluation: result", report["verdict"].replace("_", " "), report["digest"]),
        ("Performance evaluation: reuse of the test", worn + ("" if wear else " (no plan for wear)"), plan),
        ("Update: what runs is what was tested", "weights by digest", candidate["weights_digest"]),
        *[
            ("Update: approved by", f"{one['printed_name']}: {one['decision']}, “{one['reason']}”", one["bound_digest"])
            for one in found.approvals
        ],
        ("Update: can be undone", "`overread roll-back`, one transaction", ""),
        ("Impact assessment", UNKNOWN, ""),
    ]


def _claim(found: Sources) -> list[tuple[str, ...]]:
    asked, made = found.asked, found.candidate["metadata"]
    shown = {row["name"] for row in found.report["document"]["results"]}
    versions = ", ".join(f"{name} {number}" for name, number in (made.get("versions") or {}).items())
    answers = {
        3: asked["intended_use"].strip(),
        7: f"dataset version {found.version['number']}, SHA-256 {found.version['digest'][:16]}",
        9: f"resampled to {_size(asked['input'])}, scaled to [0, 1]",
        12: "pixels and allow-listed attributes only; patients by keyed pseudonym",
        13: f"cases that did not enter: {dict(found.version['waiting']) or 'none'}",
        14: f"strongest evidence decides, at least {asked['reference_standard']['minimum_evidence']}",
        16: f"{len(found.version['submitter_shares'])} submitters of new labels; adjudication by a named reviewer",
        18: "agreement of readers: `overread` shows it for each version (docs/reference-standard.md)",
        20: ", ".join(f"{split} {_counted(found, split)}" for split in ("train", "tune", "sealed_test")),
        21: "patient: a keyed hash decides, once and for ever",
        22: f"{asked['recipe']['network']}, {made.get('parameters')} parameters",
        23: versions or UNKNOWN,
        24: f"from {made.get('started_from')}, seed {found.run['seed']}",
        25: f"{made.get('epochs')} epochs, batch {made.get('batch_size')}; protocol recipe",
        26: f"epoch {made.get('chosen_epoch')}, by log loss on tune",
        28: ", ".join(name for name in MEASURED if name in shown) or UNKNOWN,
        29: "DeLong by patient, exact McNemar, intervals at the level of the use of the sealed test",
        31: "GradCAM heat map with each prediction, for orientation only",
        33: f"cases that wait and why: {dict(found.version['waiting']) or 'none'}",
        36: "above, with intervals and n" if not found.report["withheld"] else "not open to you yet",
        37: "cases that changed sides: `overread candidate report --html`",
        40: f"protocol registered before, SHA-256 {found.protocol['digest'][:16]}",
        41: "`overread line show --json`",
    }
    return [(str(item), words, str(answers.get(item, UNKNOWN))) for item, words in CLAIM.items()]


def _counted(found: Sources, split: str) -> str:
    manifest = found.version["manifest"]
    counts = manifest.get("counts", {}).get(split)
    if counts and manifest.get("task") == "multilabel":  # a case is on one side of each finding
        return str(sum(counts.values()) * 2 // len(counts))
    return str(sum(counts.values())) if counts else "unknown"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


CLAIM = {
    1: "Title names the use of artificial intelligence",
    2: "Structured summary",
    3: "Background, intended use and clinical role",
    4: "Objectives and hypotheses",
    5: "Prospective or retrospective",
    6: "Goal of the study",
    7: "Data sources",
    8: "Eligibility criteria",
    9: "Pre-processing of data",
    10: "Selection of subsets",
    11: "Definitions of data elements",
    12: "De-identification",
    13: "Handling of missing data",
    14: "Definition of the reference standard",
    15: "Rationale for the reference standard",
    16: "Source of annotations, and qualification of readers",
    17: "Annotation tools",
    18: "Variability between and within readers",
    19: "Sample size and how it was determined",
    20: "Partitions",
    21: "Level at which partitions are disjoint",
    22: "Description of the model",
    23: "Software and versions",
    24: "Initialisation",
    25: "Training",
    26: "Selection of the final model",
    27: "Ensembling",
    28: "Metrics of performance",
    29: "Significance and uncertainty",
    30: "Robustness or sensitivity analysis",
    31: "Explainability",
    32: "Validation on external data",
    33: "Flow of cases",
    34: "Demographics by partition",
    35: "Performance on every partition",
    36: "Diagnostic accuracy and its precision",
    37: "Analysis of failures",
    38: "Limitations",
    39: "Implications for practice",
    40: "Registration",
    41: "Where the protocol is",
    42: "Funding",
}
