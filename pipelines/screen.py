"""The screen: whether a candidate is worth a look at the sealed test, asked of the tune split.

Invariant: no case of the sealed test is looked at here. The tune split is of other patients, and every model was chosen
on it, so what it says is too kind and proves nothing; it only decides what is submitted. A candidate that it stops has
spent nothing, and one that it lets through has to show everything anew. A tune split that is worn out by many looks
lets more through than it should, which costs levels of the sealed test and never makes a bad candidate pass it.

Reference: Feng et al., UAI 2022 (screen on data of one's own, submit rarely).

    python -m pipelines.simulate test-reuse
"""

from __future__ import annotations

from dataclasses import replace

from pipelines import blind, harms, several_gates
from pipelines.comparison import Comparison
from pipelines.endpoints import area, area_difference
from pipelines.metrics import MetricError
from pipelines.types import GateResult, Verdict


def gate(comparison: Comparison) -> GateResult:
    """Ask that the candidate beats the champion on the tune split, and that no slice nor its calibration is harmed.

    Better at the protocol's confidence; harm stops where it is shown, not where too few cases could show it. Raises
    MetricError where nobody scored that split.
    """
    rules, seen = comparison.protocol.gates, _on_tune(comparison)
    assert rules.screen is not None, "the protocol asks for a screen"
    assert seen.champion is not None, "there is a screen only with a champion"
    requirement = (
        f"on the tune split AUROC above the champion's (one-sided, confidence {rules.screen.confidence:g}) and no harm "
        "shown, before the sealed test is used"
    )
    if few := _few(seen):
        kind = " read blind" if rules.evidence == "blind" else ""
        reason = f"only {few} in the tune split{kind}, at least {rules.minimum_cases_per_class} of each are needed"
        return GateResult(name="screen", requirement=requirement, verdict="insufficient", reason=reason)
    difference = area_difference(seen, seen.champion)
    better: Verdict = "pass" if difference.low > 0.0 else "insufficient" if difference.value > 0.0 else "fail"
    reasons = {
        "pass": [],
        "insufficient": ["looks better than the champion, but the tune split does not show it well enough"],
        "fail": ["not better than the champion on the tune split"],
    }[better]
    harmed = [one for one in _harms(seen) if one.verdict == "fail"]
    return GateResult(
        name="screen",
        requirement=requirement,
        verdict="fail" if harmed else better,
        reason="; ".join([*reasons, *(f"{one.name} on the tune split: {one.reason}" for one in harmed)])
        or "better than the champion on the tune split: worth a look at the sealed test",
        candidate=area(seen, seen.candidate),
        champion=area(seen, seen.champion),
        difference=difference,
    )


def _on_tune(comparison: Comparison) -> Comparison:
    """The same comparison on the tune split, on those of its labels that may decide, at the screen's level."""
    rules, tuned = comparison.protocol.gates, comparison.tuned
    if tuned is None or rules.screen is None:
        raise MetricError("nobody scored the tune split")
    level = {"level": 1.0 - rules.screen.confidence}
    return blind.deciding(
        replace(comparison, sealed=tuned.cases, candidate=tuned.candidate, champion=tuned.champion, use=level)
    )


def _harms(seen: Comparison) -> list[GateResult]:
    found = [harms.calibration(seen), *([several_gates.harm(seen)] if seen.protocol.several else [])]
    return found if seen.protocol.gates.subgroups is None else [harms.slices(seen), *found]


def _few(seen: Comparison) -> str:
    """Name the classes of which the tune split has too few cases, "" where it has enough of each."""
    minimum = seen.protocol.gates.minimum_cases_per_class
    return ", ".join(f"{count} of {name}" for name, count in seen.counts.items() if count < minimum)
