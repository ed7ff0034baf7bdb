"""What the service's own words are called on a page, where a person may not know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVIDENCE = {
    "single_read": "One reader",
    "consensus": "Consensus of readers",
    "follow_up": "Follow-up",
    "pathology": "Pathology",
    "report_text": "Text of a report",
}
"""Kinds of evidence, the one that is usual first."""

EXPOSURE = {
    "blind": "without the model",
    "aided": "after seeing the model",
    "unknown": "not known whether the model was seen",
}

STATES = {
    "trained": "trained, waits for its gates",
    "gates_passed": "passed its gates, waits for people",
    "gates_failed": "stopped at its gates",
    "rejected": "rejected by a person",
    "champion": "champion",
    "retired": "retired champion",
    "freezing": "freezing its dataset",
    "training": "training",
    "gating": "at its gates",
    "finished": "finished",
    "refused": "had nothing to learn from",
    "failed": "failed",
    "cancelled": "cancelled",
    "proposed": "waits for signatures",
    "adopted": "adopted",
    "outdated": "outdated",
    "queued": "queued",
    "running": "running",
    "succeeded": "succeeded",
}

VERDICTS = {
    "pass": "passed",
    "fail": "failed",
    "insufficient": "too few cases to tell",
    "not_passed": "not passed",
    "withheld": "not open to you yet",
    "warn": "warning",
}
WATCHED = {"in_order": "in order", "alarm": "errs too often", "insufficient": "too few cases to tell"}

WALLETS = {
    "recipe": "models of the declared recipe",
    "adaptive": "models made otherwise",
    "unlimited": "every use at full level",
}
MARKS = {"pass": "✓", "fail": "✗", "insufficient": "?", "not_passed": "✗", "withheld": "·", "warn": "!"}

ARMS = {
    "blind": "blind audit",
    "random": "random",
    "uncertain": "uncertain",
    "diverse": "uncertain, and unlike each other",
    "unlike": "unlike what is known",
    "coverage": "site with few answers",
    "disagreement": "models disagree",
}

UNFINISHED = ("freezing", "training", "gating")

MOST_COUNTED = 500
"""Cases of a worklist that are counted for a page; of more it says `or more`."""

JOB_STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def plain(word: str) -> str:
    """A word of the record as people write it."""
    return STATES.get(word, word.replace("_", " ").replace("auroc", "AUROC"))


def over_findings(gate: Mapping[str, Any]) -> str:
    """What the numbers of a gate's line are where it asked of several findings; nothing where there is one question."""
    if "findings" not in (gate.get("details") or {}):
        return ""
    return " (the largest of the findings)" if gate["name"] == "calibration" else " (mean of the findings)"


def estimate(value: Mapping[str, Any] | None) -> str:
    """An estimate with its interval and number of cases."""
    if not value:
        return "–"
    interval = f"({value['low']:.3f}\u00a0to\u00a0{value['high']:.3f})"
    return f"{value['value']:.3f} {interval}, n\u00a0=\u00a0{value['n']}"


def percent(share: float, digits: int = 0) -> str:
    """A share in per cent; one that rounds to nothing or all of it says so."""
    least = 10.0 ** -(2 + digits)
    if 0 < share < least:
        return f"under {least:.{digits}%}".replace("%", "\u00a0%")
    if 1 - least < share < 1:
        return f"over {1 - least:.{digits}%}".replace("%", "\u00a0%")
    return f"{share:.{digits}%}".replace("%", "\u00a0%")
