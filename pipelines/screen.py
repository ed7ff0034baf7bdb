"""The screen: whether a candidate is worth a look at the sealed test, asked of the tune split.

Invariant: no case of the sealed test is looked at here. The tune split is of other patients, and every model was chosen
on it, so what it says is too kind and proves nothing; it only decides what is submitted. A candidate that it stops has
spent nothing, and one that it lets through has to show everything anew. A tune split that is worn out by many looks
lets more through than it should, which costs levels of the sealed test and never makes a bad candidate pass it.

Reference: Feng et al., UAI 2022 (screen on data of one's own, submit rarely).

    python -m pipelines.simulate test-reuse
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pipelines import blind
from pipelines.comparison import Comparison
from pipelines.endpoints import area, area_difference
from pipelines.metrics import MetricError
from pipelines.types import GateResult, Verdict


def gate(comparison: Comparison) -> GateResult:
    """Hold candidate against champion on the tune split, at the confidence that the protocol asks for.

    Raises MetricError where nobody scored that split, or a class is missing from it.
    """
    rules, tuned = comparison.protocol.gates, comparison.tuned
    assert rules.screen is not None, "the protocol asks for a screen"
    if tuned is None:
        raise MetricError("nobody scored the tune split")
    level = {"level": 1.0 - rules.screen.confidence}
    seen = blind.deciding(
        replace(comparison, sealed=tuned.cases, candidate=tuned.candidate, champion=tuned.champion, use=level)
    )
    requirement = (
        f"on the tune split AUROC above the champion's (one-sided, confidence {rules.screen.confidence:g}), "
        "before the sealed test is used"
    )
    if few := _few(seen):
        kind = " read blind" if rules.evidence == "blind" else ""
        reason = f"only {few} in the tune split{kind}, at least {rules.minimum_cases_per_class} of each are needed"
        return GateResult(name="screen", requirement=requirement, verdict="insufficient", reason=reason)
    champion = seen.champion
    assert champion is not None, "there is a screen only with a champion"
    difference = area_difference(seen, champion)
    verdict: Verdict = "pass" if difference.low > 0.0 else "insufficient" if difference.value > 0.0 else "fail"
    reason = {
        "pass": "better than the champion on the tune split: worth a look at the sealed test",
        "insufficient": "looks better than the champion, but the tune split does not show it well enough",
        "fail": "not better than the champion on the very cases that it was tuned on",
    }[verdict]
    return GateResult(
        name="screen",
        requirement=requirement,
        verdict=verdict,
        reason=reason,
        candidate=area(seen, seen.candidate),
        champion=area(seen, champion),
        difference=difference,
    )


def _few(seen: Comparison) -> str:
    """Name the classes of which the tune split has too few cases, "" where it has enough of each."""
    counts, rules = Counter(seen.sealed.labels.tolist()), seen.protocol.gates
    return ", ".join(
        f"{counts.get(index, 0)} of {name}"
        for index, name in enumerate(seen.protocol.classes)
        if counts.get(index, 0) < rules.minimum_cases_per_class
    )
