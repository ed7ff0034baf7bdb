"""The gates of a line of several findings that ask about each of them by itself.

Invariant: nothing is averaged away. The floors of sensitivity and specificity hold for every finding, at its own
operating point; the margins are held by their means over the findings, because an equal model would hardly pass every
one of them, and a finding on which the candidate is shown to be worse than the champion stops it (docs/decisions/0025).

References: Berger, Technometrics 1982 (every floor at the whole alpha); Holm, Scand J Stat 1979.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from pipelines import metrics, subgroups
from pipelines.comparison import Comparison
from pipelines.endpoints import (
    Decision,
    among,
    area,
    area_difference,
    decision_difference,
    decisions_of,
    right,
    rule_of,
    share,
)
from pipelines.paired import mean_difference
from pipelines.types import Estimate, GateResult, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class _Floor:
    """Whether one finding clears the floor, and if not why; `measured` None: there is no operating point."""

    finding: str
    verdict: Verdict
    reason: str
    measured: Estimate | None


def areas(comparison: Comparison) -> dict[str, Any]:
    """Return the candidate's AUROC on each finding, as the details of a gate whose verdict rests on their mean."""
    found = {name: area(view, view.candidate) for name, view in comparison.questions().items()}
    return {"findings": [{"finding": name, "candidate": asdict(one)} for name, one in found.items()]}


def decided(comparison: Comparison, *, endpoint: Decision) -> GateResult:
    """Hold each finding's share of right decisions against the floor, and their mean against the champion's."""
    rule, champion = rule_of(comparison, endpoint), comparison.champion
    floors = [
        _floor(view, endpoint=endpoint, floor=rule.floor, finding=name) for name, view in comparison.questions().items()
    ]
    requirement = f"on every finding at least {rule.floor:g} at its operating point"
    reasons, verdicts = [one.reason for one in floors if one.verdict != "pass"], [one.verdict for one in floors]
    details: dict[str, Any] = {
        "findings": [
            {"finding": one.finding, "verdict": one.verdict, "candidate": one.measured and asdict(one.measured)}
            for one in floors
        ]
    }
    if any(one.measured is None for one in floors):
        return GateResult(
            name=endpoint, requirement=requirement, verdict="fail", reason="; ".join(reasons), details=details
        )
    difference = None
    if champion is not None:
        difference = decision_difference(comparison, champion, endpoint)
        requirement += f", and in the mean not worse than the champion by {rule.margin:g}"
        if difference.value < -rule.margin:
            verdicts.append("fail")
            reasons.append(f"in the mean worse than the champion by {-difference.value:.3f}")
        elif difference.low < -rule.margin:
            verdicts.append("insufficient")
            reasons.append(f"in the mean it may be {-difference.low:.3f} worse than the champion")
    return GateResult(
        name=endpoint,
        requirement=requirement,
        verdict="fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass",
        reason="; ".join(reasons) or "shown on every finding",
        candidate=share(comparison, comparison.candidate, endpoint),
        champion=None if champion is None else share(comparison, champion, endpoint),
        difference=difference,
        details=details,
    )


def harm(comparison: Comparison) -> GateResult:
    """Look for a finding on which the candidate is worse than the champion: by AUROC, sensitivity or specificity.

    One-sided tests at the protocol's alpha, Holm over all of them: a smaller level of the sealed test asks for more
    evidence of the candidate, and must not ask for more evidence of harm.
    """
    comparison = replace(comparison, use=None)
    tests = [{"finding": name, **test} for name, view in comparison.questions().items() for test in _tests(view)]
    answers = metrics.holm([test["p_value"] for test in tests], alpha=comparison.protocol.gates.alpha)
    rows = [
        test | {"difference": asdict(test["difference"]), "local_alpha": local, "harmed": harmed}
        for test, (harmed, local) in zip(tests, answers, strict=True)
    ]
    found = [
        f"{row['finding']}: {row['endpoint']} worse than the champion's by {-row['difference']['value']:.3f} on "
        f"{row['difference']['n']} cases"
        for row in rows
        if row["harmed"]
    ]
    return GateResult(
        name="findings",
        requirement="no finding on which AUROC, sensitivity or specificity is shown to be worse than the champion's",
        verdict="fail" if found else "pass",
        reason="; ".join(found) or "no finding is shown to be harmed",
        details={"tests": rows},
    )


def _floor(view: Comparison, *, endpoint: Decision, floor: float, finding: str) -> _Floor:
    if view.candidate.threshold is None:
        reason = f"{finding} has no operating point: no threshold met the rule on the tune split"
        return _Floor(finding=finding, verdict="fail", reason=reason, measured=None)
    measured = share(view, view.candidate, endpoint)
    value, low = f"{finding}: {measured.value:.3f}", measured.low
    if measured.value < floor:
        return _Floor(
            finding=finding, verdict="fail", reason=f"{value} is below the floor {floor:g}", measured=measured
        )
    if low < floor:
        reason = f"{value} clears {floor:g}, but on {measured.n} cases it may be {low:.3f}"
        return _Floor(finding=finding, verdict="insufficient", reason=reason, measured=measured)
    return _Floor(finding=finding, verdict="pass", reason="shown", measured=measured)


def _tests(view: Comparison) -> list[dict[str, Any]]:
    """Difference and one-sided p-value of "not worse" on each endpoint of one finding."""
    champion = view.champion
    assert champion is not None, "harm is harm compared with a champion"
    area = area_difference(view, champion)
    error = (area.high - area.low) / 2.0 / metrics.normal_quantile(0.5 + area.level / 2.0)
    p_value = float(special.ndtr(area.value / error)) if error > 0.0 else 1.0
    tests: list[dict[str, Any]] = [{"endpoint": "AUROC", "difference": area, "p_value": p_value}]
    for endpoint in decisions_of(view):
        counted = among(view, endpoint)
        gained = right(view, view.candidate, endpoint).astype(np.float64) - right(view, champion, endpoint)
        found = mean_difference(gained[counted], groups=view.sealed.groups[counted], level=view.level)
        p_value = subgroups.harm_p_value(gained[counted], found)
        tests.append({"endpoint": endpoint, "difference": found, "p_value": p_value})
    return tests
