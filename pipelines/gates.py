"""The gates: whether a candidate has earned the right to replace the champion.

Invariant: fail closed. A gate passes only where the requirement has been shown on the sealed test; where there are too
few cases to show it the verdict is `insufficient`, where it is not met `fail`, and a gate that cannot be computed fails
with the reason in words. `decide` is a pure function: the same cases and scores give the same report.

References: DeLong et al., Biometrics 1988; McNemar, Psychometrika 1947; Holm, Scand J Stat 1979; non-inferiority
margins as in FDA, "Non-Inferiority Clinical Trials", 2016.

    python -m pipelines.gates JOB_DIR        # config.json in; result.json out
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import job, metrics
from pipelines.comparison import Comparison, Placement, Scored
from pipelines.protocol import Margin, from_document
from pipelines.types import Digest, Estimate, GateReport, GateResult, Verdict, digest_of

SCHEMA_VERSION = 1


def decide(comparison: Comparison, *, dataset_digest: Digest) -> GateReport:
    """Run every gate that the protocol asks for and join the verdicts: pass only if all pass."""
    protocol, champion = comparison.protocol, comparison.champion
    results = tuple(row for name, gate in _gates_for(comparison) for row in [_closed(name, gate, comparison)])
    verdicts = {row.verdict for row in results}
    counts = Counter(comparison.sealed.labels.tolist())
    return GateReport(
        schema_version=SCHEMA_VERSION,
        line=protocol.line,
        candidate_digest=comparison.candidate.digest,
        champion_digest=None if champion is None else champion.digest,
        dataset_digest=dataset_digest,
        protocol_digest=protocol.digest,
        verdict="fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass",
        results=results,
        summary={
            "sealed_test": {name: counts.get(index, 0) for index, name in enumerate(protocol.classes)},
            "patients": len(np.unique(comparison.sealed.groups)),
            "alpha": protocol.gates.alpha,
            "candidate_threshold": comparison.candidate.threshold,
            "champion_threshold": None if champion is None else champion.threshold,
            "not_passed": [row.name for row in results if row.verdict != "pass"],
        },
    )


def main(arguments: list[str]) -> int:
    """Score the sealed test with candidate and champion and decide, as a job directory describes."""
    return job.run(arguments, work=_work)


Gate = Callable[[Comparison], GateResult]


def _gates_for(comparison: Comparison) -> list[tuple[str, Gate]]:
    gates: list[tuple[str, Gate]] = [("minimum_cases", _minimum_cases), ("auroc", _auroc)]
    if comparison.champion is not None and comparison.protocol.gates.require_improvement:
        gates.append(("improvement", _improvement))
    if comparison.protocol.positive is None:
        gates.append(("accuracy", _accuracy))
    else:
        gates += [("sensitivity", _sensitivity), ("specificity", _specificity)]
    if comparison.fine_tuned:
        gates.append(("strategy", _strategy))
    return [*gates, ("calibration", _calibration), ("leakage", _leakage), ("submitters", _submitters)]


def _closed(name: str, gate: Gate, comparison: Comparison) -> GateResult:
    """Run one gate; whatever goes wrong in it is a failed gate, with the reason in words."""
    try:
        result = gate(comparison)
        digest_of(asdict(result))  # refuses NaN, and anything else that a report cannot hold
    except Exception as error:  # noqa: BLE001 - fail closed: no error in a gate may let a candidate through
        reason = f"could not be measured: {error}"
        if not isinstance(error, metrics.MetricError):
            reason = f"could not be measured ({type(error).__name__}): {error}"
        return GateResult(name=name, requirement="can be measured", verdict="fail", reason=reason)
    return result


def _minimum_cases(comparison: Comparison) -> GateResult:
    minimum = comparison.protocol.gates.minimum_cases_per_class
    counts = Counter(comparison.sealed.labels.tolist())
    few = [
        f"{counts.get(index, 0)} of {name}"
        for index, name in enumerate(comparison.protocol.classes)
        if counts.get(index, 0) < minimum
    ]
    return GateResult(
        name="minimum_cases",
        requirement=f"at least {minimum} sealed-test cases of each class",
        verdict="insufficient" if few else "pass",
        reason=f"only {', '.join(few)}" if few else "enough cases of each class",
        details={name: counts.get(index, 0) for index, name in enumerate(comparison.protocol.classes)},
    )


def _auroc(comparison: Comparison) -> GateResult:
    rule = comparison.protocol.gates.auroc
    champion = None if comparison.champion is None else _area(comparison, comparison.champion)
    difference = None if comparison.champion is None else _area_difference(comparison, comparison.champion)
    candidate = _area(comparison, comparison.candidate)
    return _floor_and_margin("auroc", rule, candidate=candidate, champion=champion, difference=difference)


def _strategy(_comparison: Comparison) -> GateResult:
    return GateResult(
        name="strategy",
        requirement="an update has seen past cases, or was held to the champion",
        verdict="fail",
        reason="`finetune` forgets the sites it does not see: it is for comparison, and never promoted",
    )


def _improvement(comparison: Comparison) -> GateResult:
    assert comparison.champion is not None, "there is something to improve on only with a champion"
    difference = _area_difference(comparison, comparison.champion)
    verdict: Verdict = "pass" if difference.low > 0.0 else "insufficient" if difference.value > 0.0 else "fail"
    reason = {
        "pass": "better than the champion",
        "insufficient": "looks better, but this many cases do not show it",
        "fail": "not better than the champion",
    }[verdict]
    return GateResult(
        name="improvement",
        requirement=f"AUROC above the champion's (one-sided, alpha {comparison.protocol.gates.alpha:g})",
        verdict=verdict,
        reason=reason,
        candidate=_area(comparison, comparison.candidate),
        champion=_area(comparison, comparison.champion),
        difference=difference,
    )


def _accuracy(comparison: Comparison) -> GateResult:
    every = np.ones(len(comparison.sealed.labels), dtype=bool)
    right = [
        None if model is None else model.decided == comparison.sealed.labels
        for model in (comparison.candidate, comparison.champion)
    ]
    # A protocol without a positive class has its one floor for decisions under `sensitivity`.
    return _decisions(
        "accuracy", comparison.protocol.gates.sensitivity, right=right, among=every, comparison=comparison
    )


def _sensitivity(comparison: Comparison) -> GateResult:
    return _at_operating_point(
        "sensitivity", comparison.protocol.gates.sensitivity, positives=True, comparison=comparison
    )


def _specificity(comparison: Comparison) -> GateResult:
    return _at_operating_point(
        "specificity", comparison.protocol.gates.specificity, positives=False, comparison=comparison
    )


def _at_operating_point(name: str, rule: Margin, *, positives: bool, comparison: Comparison) -> GateResult:
    if comparison.candidate.threshold is None:
        return GateResult(
            name=name,
            requirement=f"{name} at the operating point at least {rule.floor:g}",
            verdict="fail",
            reason="the candidate has no operating point: no threshold met the rule on the tune split",
        )
    index = comparison.protocol.positive_index
    right = [
        None if model is None else (model.decided == index) == positives
        for model in (comparison.candidate, comparison.champion)
    ]
    among = comparison.truth if positives else ~comparison.truth
    return _decisions(name, rule, right=right, among=among, comparison=comparison)


def _decisions(
    name: str, rule: Margin, *, right: list[NDArray[np.bool_] | None], among: NDArray[np.bool_], comparison: Comparison
) -> GateResult:
    """Hold the share of right decisions `among` some cases against the floor, and against the champion's."""
    first, second = right
    assert first is not None, "a candidate always has decisions"
    n = int(among.sum())
    candidate = metrics.clopper_pearson(int(first[among].sum()), n, level=comparison.level)
    if second is None:
        return _floor_and_margin(name, rule, candidate=candidate, champion=None, difference=None)
    test = metrics.mcnemar(first[among], second[among], groups=comparison.sealed.groups[among], level=comparison.level)
    return _floor_and_margin(
        name,
        rule,
        candidate=candidate,
        champion=metrics.clopper_pearson(int(second[among].sum()), n, level=comparison.level),
        difference=test.difference,
        details={
            "only_candidate_right": test.only_candidate,
            "only_champion_right": test.only_champion,
            "mcnemar_exact_p": test.p_value,
        },
    )


def _calibration(comparison: Comparison) -> GateResult:
    rule = comparison.protocol.gates.calibration
    candidate = _calibration_error(comparison, comparison.candidate)
    champion = None if comparison.champion is None else _calibration_error(comparison, comparison.champion)
    reasons = []
    if candidate.value > rule.maximum_ece:
        reasons.append(f"calibration error {candidate.value:.3f} is above {rule.maximum_ece:g}")
    if champion is not None and candidate.value > champion.value + rule.margin:
        reasons.append(f"calibration error {candidate.value:.3f} is more than {rule.margin:g} above the champion's")
    return GateResult(
        name="calibration",
        requirement=f"calibration error at most {rule.maximum_ece:g}, and at most {rule.margin:g} above the champion's",
        verdict="fail" if reasons else "pass",
        reason="; ".join(reasons) or "calibrated well enough",
        candidate=candidate,
        champion=champion,
    )


def _leakage(comparison: Comparison) -> GateResult:
    if not comparison.placements:
        raise metrics.MetricError("the dataset version lists no cases")
    shared = {
        what: sorted(
            {value for value, splits in _splits_of(comparison.placements, attribute).items() if len(splits) > 1}
        )
        for what, attribute in (("images", "image_digest"), ("patients", "group"))
    }
    found = [f"{len(values)} {what} in more than one split" for what, values in shared.items() if values]
    return GateResult(
        name="leakage",
        requirement="no image and no patient in two splits",
        verdict="fail" if found else "pass",
        reason="; ".join(found) or "every image and every patient is in one split only",
        details={"cases": len(comparison.placements), **{what: values[:20] for what, values in shared.items()}},
    )


def _submitters(comparison: Comparison) -> GateResult:
    """Test each submitter's new labels against the champion and against other evidence, Holm over all the tests."""
    rule = comparison.protocol.gates.submitters
    tests: list[tuple[str, str, int, int]] = []  # submitter, against what, disagreements, n
    unjudged: dict[str, int] = {}
    for submitter in sorted({opinion.submitter for opinion in comparison.opinions}):
        mine = [opinion for opinion in comparison.opinions if opinion.submitter == submitter]
        for against, pairs in (
            ("the champion", [(o.finding, o.champion) for o in mine if o.champion is not None]),
            ("stronger evidence on the same cases", [(o.finding, o.others) for o in mine if o.others is not None]),
        ):
            if len(pairs) >= rule.minimum_labels:
                tests.append((submitter, against, sum(a != b for a, b in pairs), len(pairs)))
            elif against == "the champion":
                unjudged[submitter] = len(mine)
    p_values = [metrics.binomial_tail(k, n, rate=rule.maximum_disagreement) for _, _, k, n in tests]
    answers = metrics.holm(p_values, alpha=comparison.protocol.gates.alpha)
    found, rows = [], []
    for (submitter, against, k, n), p_value, (rejected, local) in zip(tests, p_values, answers, strict=True):
        low = metrics.clopper_pearson(k, n, level=1.0 - 2.0 * local).low
        rows.append({"submitter": submitter, "against": against, "disagreements": k, "labels": n, "p": p_value})
        rows[-1] |= {"lower_bound": low, "local_alpha": local, "refused": rejected}
        if rejected:
            found.append(f"{submitter} contradicts {against} in {k} of {n} new labels (at least {low:.0%})")
    judged = sorted({test[0] for test in tests})
    calm = f"{len(judged)} judged, {len(set(unjudged) - set(judged))} with too few labels to judge"
    return GateResult(
        name="submitters",
        requirement=(
            "no submitter's new labels contradict the champion, or stronger evidence on the same cases, "
            f"in more than {rule.maximum_disagreement:.0%}"
        ),
        verdict="fail" if found else "pass",
        reason="; ".join(found) + ": have these cases read again" if found else calm,
        details={"tests": rows, "not_judged": {name: n for name, n in unjudged.items() if name not in judged}},
    )


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


def _area(comparison: Comparison, model: Scored) -> Estimate:
    index, sealed = comparison.protocol.positive_index, comparison.sealed
    if index is None:
        return metrics.macro_auroc_estimate(sealed.labels, model.scores, groups=sealed.groups, level=comparison.level)
    return metrics.auroc_estimate(
        comparison.truth, model.scores[:, index], groups=sealed.groups, level=comparison.level
    )


def _area_difference(comparison: Comparison, champion: Scored) -> Estimate:
    index, sealed = comparison.protocol.positive_index, comparison.sealed
    first, second = comparison.candidate.scores, champion.scores
    if index is None:
        return metrics.paired_macro_auroc_difference(
            sealed.labels, first, second, groups=sealed.groups, level=comparison.level
        )
    return metrics.paired_auroc_difference(
        comparison.truth, first[:, index], second[:, index], groups=sealed.groups, level=comparison.level
    )


def _calibration_error(comparison: Comparison, model: Scored) -> Estimate:
    index, rng = comparison.protocol.positive_index, np.random.default_rng(0)
    if index is None:
        right = model.scores.argmax(axis=1) == comparison.sealed.labels
        return metrics.ece_estimate(right, model.scores.max(axis=1), rng=rng)
    return metrics.ece_estimate(comparison.truth, model.scores[:, index], rng=rng)


def _splits_of(placements: tuple[Placement, ...], attribute: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for placement in placements:
        found.setdefault(getattr(placement, attribute), set()).add(placement.split)
    return found


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    from pipelines import evaluate, report  # noqa: PLC0415 - torch comes with it, and `decide` needs none

    protocol = from_document(config["protocol"])
    comparison, dataset_digest = evaluate.gather(
        Path(config["dataset"]),
        protocol=protocol,
        candidate=config["candidate"],
        champion=config.get("champion"),
        keep_going=job.orphan_watch(),
        tell=lambda stage: job.append_progress(directory, {"stage": stage}),
    )
    verdict = decide(comparison, dataset_digest=dataset_digest)
    document = verdict.document()
    return {
        "report": document,
        "digest": digest_of(document),
        "text": report.render_text(verdict),
        "verdict": verdict.verdict,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
