"""Which sealed cases decide where readers may have followed the champion, and what the others would have said.

Invariant: labels given before the model was seen and labels given after are never mixed in silence. A protocol whose
`gates.evidence` is `blind` has the gates decide on blind labels alone, and too few of those pass nothing. The report
shows both measurements whoever decides, with how far aided readers followed the champion (`pipelines.exposure`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import exposure
from pipelines.comparison import Comparison
from pipelines.endpoints import (
    Decision,
    area,
    area_difference,
    decision_difference,
    decisions_of,
    rule_of,
    share,
)
from pipelines.metrics import MetricError
from pipelines.types import Estimate, GateResult

MEASURED = frozenset(
    {
        *("auroc", "kappa", "improvement", "sensitivity", "specificity", "accuracy"),
        *("approved_models", "subgroups", "calibration", "findings"),
    }
)
"""The gates that stand on the answers of the sealed test."""


def deciding(comparison: Comparison) -> Comparison:
    """Return what the gates decide on: every sealed case, or those that were read blind where the protocol says so."""
    if comparison.protocol.gates.evidence == "all":
        return comparison
    return comparison.of(np.flatnonzero(_read_blind(comparison)))


def too_few(name: str, comparison: Comparison) -> GateResult | None:
    """Say that a gate has too few blind labels to measure by, None where it has enough, or needs none."""
    rules = comparison.protocol.gates
    if rules.evidence == "all" or name not in MEASURED:
        return None
    few = [f"{n} of {finding}" for finding, n in comparison.counts.items() if n < rules.minimum_cases_per_class]
    if not few:
        return None
    return GateResult(
        name=name,
        requirement=f"measured on blind labels, at least {rules.minimum_cases_per_class} of each class",
        verdict="insufficient",
        reason=f"only {', '.join(few)} were read blind: have more of the blind cases read",
    )


def both(comparison: Comparison) -> dict[str, Any]:
    """Measure each endpoint on all labels and on blind ones, and how far aided readers followed; plain JSON values.

    Estimates are at the comparison's level; `copied` is {"missing": why} where it cannot be told. Raises MetricError
    where nobody wrote down who had seen what.
    """
    exposures = comparison.sealed.exposures
    if exposures is None:
        raise MetricError("who had seen the model is not known of these cases")
    unseen = comparison.of(np.flatnonzero(_read_blind(comparison)))
    counts = Counter(exposures.tolist())
    endpoints: tuple[Literal["auroc"] | Decision, ...] = ("auroc", *decisions_of(comparison))
    return {
        "decides": comparison.protocol.gates.evidence,
        "cases": {name: counts.get(name, 0) for name in ("blind", "aided", "unknown")},
        "endpoints": [
            {"endpoint": name, "all": _measured(comparison, name), "blind": _measured(unseen, name)}
            for name in endpoints
        ],
        **_followed(comparison),
    }


def words(found: dict[str, Any]) -> str:
    """Say in a sentence or two what `both` found."""
    cases = found["cases"]
    decides = "these alone decide" if found["decides"] == "blind" else "all decide"
    told = f"{cases['blind']} of {sum(cases.values())} sealed cases were read blind; {decides}"
    return told if found["warning"] is None else f"{told}. {found['warning']}"


def _read_blind(comparison: Comparison) -> NDArray[np.bool_]:
    exposures = comparison.sealed.exposures
    if exposures is None:
        return np.zeros(len(comparison.sealed.labels), dtype=np.bool_)
    return np.asarray(exposures == "blind", dtype=np.bool_)


def _measured(comparison: Comparison, endpoint: Literal["auroc"] | Decision) -> dict[str, Any]:
    """Candidate, and difference from the champion, on one endpoint."""
    champion = comparison.champion

    def candidate() -> Estimate:
        if endpoint == "auroc":
            return area(comparison, comparison.candidate)
        return share(comparison, comparison.candidate, endpoint)

    def difference() -> Estimate:
        if champion is None:
            raise MetricError("there was no champion")
        if endpoint == "auroc":
            return area_difference(comparison, champion)
        return decision_difference(comparison, champion, endpoint)

    return {"candidate": _told(candidate), "difference": _told(difference)}


def _told(measure: Callable[[], Estimate]) -> dict[str, Any]:
    try:
        return asdict(measure())
    except MetricError as error:
        return {"missing": str(error)}


def _followed(comparison: Comparison) -> dict[str, Any]:
    """How often aided readers copied the champion, and whether blind and all labels say the same of the decisions."""
    champion = comparison.champion
    if champion is None:
        return {"copied": {"missing": "there was no champion to follow"}, "warning": None}
    ours, theirs = (comparison.agrees(model) for model in (comparison.candidate, champion))
    found = exposure.on_both(
        ours.astype(np.float64) - theirs,
        theirs,
        _read_blind(comparison),
        margin=rule_of(comparison, decisions_of(comparison)[0]).margin,
        groups=comparison.sealed.groups,
        level=comparison.level,
    )
    missing = {"missing": "too few labels of both kinds, or blind readers always agree with the champion"}
    return {"copied": missing if found.copied is None else asdict(found.copied), "warning": found.warning}
