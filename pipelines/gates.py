"""The gates: whether a candidate has earned the right to replace the champion.

Invariant: fail closed. A gate passes only where the requirement has been shown on the sealed test; where there are too
few cases to show it the verdict is `insufficient`, where it is not met `fail`, and a gate that cannot be computed fails
with the reason in words. `decide` is a pure function: the same cases and scores give the same report.

References: DeLong et al., Biometrics 1988; McNemar, Psychometrika 1947; Holm, Scand J Stat 1979; Feng, Emerson, Simon,
Biometrics 2021 (every approved model); non-inferiority margins as in FDA, "Non-Inferiority Clinical Trials", 2016.

    python -m pipelines.gates JOB_DIR        # config.json in; result.json out
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import blind, data_gates, envelope, harms, job, metrics, screen, several_gates
from pipelines.approved import acceptable
from pipelines.comparison import Comparison
from pipelines.endpoints import (
    Decision,
    Measure,
    among,
    area,
    area_difference,
    decisions_of,
    difference,
    measured,
    measures_of,
    right,
    rule_of,
    share,
)
from pipelines.gate_rules import Margin
from pipelines.protocol import from_document
from pipelines.types import Digest, Estimate, GateReport, GateResult, Verdict, digest_of

SCHEMA_VERSION = 2
"""Of the report's document: 2 added `sealed_test` and `evidence`."""
SPEND_NOTHING = frozenset(
    {
        *("minimum_cases", "screen", "envelope", "strategy", "leakage", "submitters"),
        *("missing_patients", "unreadable_images", "near_duplicates", "prior_shift"),
    }
)
"""Gates that no score of a sealed case can change: what they say costs nothing of the sealed test."""


def decide(comparison: Comparison, *, dataset_digest: Digest, before_use: bool = False) -> GateReport:
    """Run every gate that the protocol asks for and join the verdicts: pass only if all pass.

    `before_use` runs only those that spend nothing, before a level of the sealed test is spent on a candidate.
    """
    comparison = blind.deciding(comparison)
    protocol, champion = comparison.protocol, comparison.champion
    gates = [*_gates_for(comparison), *data_gates.required(comparison, dataset_digest=dataset_digest)]
    if before_use:
        gates = [(name, gate) for name, gate in gates if name in SPEND_NOTHING]
    results = tuple(_closed(name, gate, comparison) for name, gate in gates)
    if before_use and (verdict := _joined(results)) != "pass":
        results = (*results, _nothing_spent(verdict))
    return GateReport(
        schema_version=SCHEMA_VERSION,
        line=protocol.line,
        candidate_digest=comparison.candidate.digest,
        champion_digest=None if champion is None else champion.digest,
        dataset_digest=dataset_digest,
        protocol_digest=protocol.digest,
        verdict=_joined(results),
        results=results,
        sealed_test=comparison.use,
        summary={
            "sealed_test": comparison.counts,
            "patients": len(np.unique(comparison.sealed.groups)),
            "alpha": comparison.alpha,
            "candidate_threshold": comparison.candidate.threshold,
            "champion_threshold": None if champion is None else champion.threshold,
            **_thresholds(comparison),
            "data_quality": None if comparison.quality is None else comparison.quality.document(),
            "not_passed": [row.name for row in results if row.verdict != "pass"],
        },
    )


def main(arguments: list[str]) -> int:
    """Score the sealed test with candidate and champion and decide, as a job directory describes."""
    job.hide_pandas()
    return job.run(arguments, work=_work)


Gate = Callable[[Comparison], GateResult]


def _gates_for(comparison: Comparison) -> list[tuple[str, Gate]]:
    gates: list[tuple[str, Gate]] = [("minimum_cases", _minimum_cases)]
    if comparison.champion is not None and comparison.protocol.gates.screen is not None:
        gates.append(("screen", screen.gate))
    gates += [(name, partial(_measured, measure=name)) for name in measures_of(comparison)]
    if comparison.champion is not None and comparison.protocol.gates.require_improvement:
        gates.append(("improvement", _improvement))
    decided = several_gates.decided if comparison.protocol.several else _decided
    gates += [(name, partial(decided, endpoint=name)) for name in decisions_of(comparison)]
    if comparison.champion is not None and comparison.protocol.several:
        gates.append(("findings", several_gates.harm))
    if comparison.approved:
        gates.append(("approved_models", _approved_models))
    if comparison.champion is not None and comparison.protocol.gates.subgroups is not None:
        gates.append(("subgroups", harms.slices))
    if comparison.protocol.envelope is not None:
        gates.append(("envelope", envelope.gate))
    if comparison.fine_tuned:
        gates.append(("strategy", _strategy))
    return [
        *gates,
        ("calibration", harms.calibration),
        ("leakage", data_gates.leakage),
        ("submitters", data_gates.submitters),
    ]


def _joined(results: Sequence[GateResult]) -> Verdict:
    verdicts = {row.verdict for row in results}
    return "fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass"


def _nothing_spent(verdict: Verdict) -> GateResult:
    return GateResult(
        name="sealed_test",
        requirement="what is asked before the sealed test is used is in order",
        verdict=verdict,
        reason="not looked at, and nothing of it was spent: mend what the other lines name, and train again",
    )


def _closed(name: str, gate: Gate, comparison: Comparison) -> GateResult:
    """Run one gate; whatever goes wrong in it is a failed gate, with the reason in words."""
    try:
        result = blind.too_few(name, comparison) or gate(comparison)
        digest_of(asdict(result))  # refuses NaN, and anything else that a report cannot hold
    except Exception as error:  # noqa: BLE001 - fail closed: no error in a gate may let a candidate through
        reason = f"could not be measured: {error}"
        if not isinstance(error, metrics.MetricError):
            reason = f"could not be measured ({type(error).__name__}): {error}"
        return GateResult(name=name, requirement="can be measured", verdict="fail", reason=reason)
    return result


def _minimum_cases(comparison: Comparison) -> GateResult:
    minimum = comparison.protocol.gates.minimum_cases_per_class
    few = [f"{count} of {name}" for name, count in comparison.counts.items() if count < minimum]
    return GateResult(
        name="minimum_cases",
        requirement=f"at least {minimum} sealed-test cases of each class",
        verdict="insufficient" if few else "pass",
        reason=f"only {', '.join(few)}" if few else "enough cases of each class",
        details=comparison.counts,
    )


def _measured(comparison: Comparison, *, measure: Measure) -> GateResult:
    """Hold AUROC, or the kappa of grades, against the floor, and against the champion's."""
    champion = comparison.champion
    return _floor_and_margin(
        measure,
        rule_of(comparison, measure),
        candidate=measured(comparison, comparison.candidate, measure),
        champion=None if champion is None else measured(comparison, champion, measure),
        difference=None if champion is None else difference(comparison, champion, measure),
        details=several_gates.areas(comparison) if comparison.protocol.several else None,
    )


def _strategy(_comparison: Comparison) -> GateResult:
    return GateResult(
        name="strategy",
        requirement="an update has seen past cases, or was held to the champion",
        verdict="fail",
        reason="`finetune` forgets the sites it does not see: it is for comparison, and never promoted",
    )


def _improvement(comparison: Comparison) -> GateResult:
    assert comparison.champion is not None, "there is something to improve on only with a champion"
    difference = area_difference(comparison, comparison.champion)
    verdict: Verdict = "pass" if difference.low > 0.0 else "insufficient" if difference.value > 0.0 else "fail"
    reason = {
        "pass": "better than the champion",
        "insufficient": "looks better, but this many cases do not show it",
        "fail": "not better than the champion",
    }[verdict]
    return GateResult(
        name="improvement",
        requirement=f"AUROC above the champion's (one-sided, alpha {comparison.alpha:g})",
        verdict=verdict,
        reason=reason,
        candidate=area(comparison, comparison.candidate),
        champion=area(comparison, comparison.champion),
        difference=difference,
    )


def _decided(comparison: Comparison, *, endpoint: Decision) -> GateResult:
    """Hold the share of right decisions against the floor, and against the champion's."""
    rule, counted = rule_of(comparison, endpoint), among(comparison, endpoint)
    if endpoint != "accuracy" and comparison.candidate.threshold is None:
        return GateResult(
            name=endpoint,
            requirement=f"{endpoint} at the operating point at least {rule.floor:g}",
            verdict="fail",
            reason="the candidate has no operating point: no threshold met the rule on the tune split",
        )
    candidate = share(comparison, comparison.candidate, endpoint)
    if comparison.champion is None:
        return _floor_and_margin(endpoint, rule, candidate=candidate, champion=None, difference=None)
    first = right(comparison, comparison.candidate, endpoint)[counted]
    second, groups = right(comparison, comparison.champion, endpoint)[counted], comparison.sealed.groups[counted]
    test = metrics.mcnemar(first, second, groups=groups, level=comparison.level)
    return _floor_and_margin(
        endpoint,
        rule,
        candidate=candidate,
        champion=share(comparison, comparison.champion, endpoint),
        difference=test.difference,
        details={
            "only_candidate_right": test.only_candidate,
            "only_champion_right": test.only_champion,
            "mcnemar_exact_p": test.p_value,
        },
    )


def _approved_models(comparison: Comparison) -> GateResult:
    """Hold the candidate against every model approved before the champion, on every endpoint."""
    endpoints = (*measures_of(comparison), *decisions_of(comparison))
    margins: dict[str, float] = {name: rule_of(comparison, name).margin for name in endpoints}
    differences: dict[str, dict[str, Estimate]] = {
        name: {model.digest[:12]: difference(comparison, model, name) for model in comparison.approved}
        for name in endpoints
    }
    judged = acceptable(differences, margins=margins)
    return GateResult(
        name="approved_models",
        requirement="not worse, by the margin of each endpoint, than the original and every model approved since",
        verdict=judged.verdict,
        reason=judged.reason,
        details={
            "comparisons": [
                {"endpoint": endpoint, "model": model, "verdict": one.verdict, "power": one.power}
                | ({} if one.difference is None else {"difference": asdict(one.difference)})
                for (endpoint, model), one in judged.comparisons.items()
            ]
        },
    )


def _thresholds(comparison: Comparison) -> dict[str, Any]:
    """The threshold of each of several findings, of both models."""
    if not comparison.protocol.several:
        return {}
    champion = comparison.champion
    return {
        "candidate_thresholds": dict(comparison.candidate.thresholds),
        "champion_thresholds": None if champion is None else dict(champion.thresholds),
    }


def _floor_and_margin(
    name: str,
    rule: Margin,
    *,
    candidate: Estimate,
    champion: Estimate | None,
    difference: Estimate | None,
    details: Mapping[str, Any] | None = None,
) -> GateResult:
    """Ask the lower bounds to clear floor and margin; where only the point value does, more cases are needed."""
    verdicts: list[Verdict] = [_shown(candidate, above=rule.floor)]
    reasons = {
        "pass": [],
        "insufficient": [
            f"{candidate.value:.3f} clears {rule.floor:g}, but on {candidate.n} cases it may be {candidate.low:.3f}"
        ],
        "fail": [f"{candidate.value:.3f} is below the floor {rule.floor:g}"],
    }[verdicts[0]]
    requirement = f"at least {rule.floor:g}"
    if difference is not None:
        requirement += f", and not worse than the champion by {rule.margin:g}"
        verdicts.append(_shown(difference, above=-rule.margin))
        reasons += {
            "pass": [],
            "insufficient": [f"on {difference.n} cases it may be {-difference.low:.3f} worse than the champion"],
            "fail": [f"worse than the champion by {-difference.value:.3f}"],
        }[verdicts[1]]
    return GateResult(
        name=name,
        requirement=requirement,
        verdict="fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass",
        reason="; ".join(reasons) or "shown",
        candidate=candidate,
        champion=champion,
        difference=difference,
        details=details or {},
    )


def _shown(estimate: Estimate, *, above: float) -> Verdict:
    if estimate.low >= above:
        return "pass"
    return "insufficient" if estimate.value >= above else "fail"


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    from pipelines import evaluate, evidence, report  # noqa: PLC0415 - torch comes with it, and `decide` needs none

    protocol, before_use = from_document(config["protocol"]), bool(config.get("before_use"))
    comparison, dataset_digest = evaluate.gather(
        Path(config["dataset"]),
        protocol=protocol,
        use=config.get("use"),
        candidate=config["candidate"],
        champion=config.get("champion"),
        approved=config.get("approved", ()),
        previous=Path(config["previous_dataset"]) if config.get("previous_dataset") else None,
        scored=not before_use,
        keep_going=job.orphan_watch(),
        tell=lambda stage: job.append_progress(directory, {"stage": stage}),
    )
    verdict = decide(comparison, dataset_digest=dataset_digest, before_use=before_use)
    job.append_progress(directory, {"stage": "drawing what the report shows"})
    shown = {"changed": dict(comparison.changed)} if before_use else evidence.gather(comparison)
    verdict = replace(verdict, evidence=shown)
    document = verdict.document()
    return {
        "report": document,
        "digest": digest_of(document),
        "text": report.render_text(verdict),
        "verdict": verdict.verdict,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
