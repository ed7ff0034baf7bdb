"""The gates on data: whether what a candidate learnt from is what its protocol asks for.

Invariant: fail closed. A protocol with a `data_quality` section asks for a quality report of the very dataset version
that the candidate is measured on, made under these very rules; without one, or with a line missing or not measured,
each of these gates fails. They hold the report's values against the protocol, and do not rely on its verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines import metrics
from pipelines.comparison import Comparison, Placement
from pipelines.findings import matrix
from pipelines.gate_rules import DataQuality
from pipelines.metrics import MetricError
from pipelines.protocol import Protocol
from pipelines.quality_report import QualityLine, QualityReport
from pipelines.types import Digest, GateResult

Gate = Callable[[Comparison], GateResult]


def required(comparison: Comparison, *, dataset_digest: Digest) -> list[tuple[str, Gate]]:
    """Return one gate for each requirement of the protocol's `data_quality`; none where it has no such section."""
    rules = comparison.protocol.data_quality
    if rules is None:
        return []
    gates: dict[str, Callable[[QualityReport, DataQuality], GateResult]] = {
        "missing_patients": _missing_patients,
        "unreadable_images": _unreadable_images,
        "near_duplicates": _near_duplicates,
        "prior_shift": _prior_shift,
    }
    if rules.near_duplicates.action == "report":
        del gates["near_duplicates"]

    def bound(gate: Callable[[QualityReport, DataQuality], GateResult]) -> Gate:
        return lambda comparison: gate(_report(comparison, rules=rules, dataset_digest=dataset_digest), rules)

    return [(name, bound(gate)) for name, gate in gates.items()]


def leakage(comparison: Comparison) -> GateResult:
    """Fail where an image or a patient is in two splits, whatever the protocol."""
    if not comparison.placements:
        raise MetricError("the dataset version lists no cases")
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


def submitters(comparison: Comparison) -> GateResult:
    """Test each submitter's new labels against the champion and against other evidence, Holm over all the tests.

    Of several findings each by itself: hardly two readers give the same answer to all of many questions.
    """
    asked = comparison.protocol
    rule = asked.gates.submitters
    tests: list[tuple[str, str, int, int]] = []  # submitter, against what, disagreements, n
    unjudged: dict[str, int] = {}
    for submitter in sorted({opinion.submitter for opinion in comparison.opinions}):
        mine = [opinion for opinion in comparison.opinions if opinion.submitter == submitter]
        for against, pairs in (
            *_said("the champion", [(o.finding, o.champion) for o in mine if o.champion is not None], asked),
            *_said(
                "stronger evidence on the same cases",
                [(o.finding, o.others) for o in mine if o.others is not None],
                asked,
            ),
        ):
            if len(pairs) >= rule.minimum_labels:
                tests.append((submitter, against, sum(a != b for a, b in pairs), len(pairs)))
            else:
                unjudged[submitter] = len(mine)
    p_values = [metrics.binomial_tail(k, n, rate=rule.maximum_disagreement) for _, _, k, n in tests]
    answers = metrics.holm(p_values, alpha=comparison.protocol.gates.alpha)
    found, rows = [], []
    for (submitter, against, k, n), p_value, (rejected, local) in zip(tests, p_values, answers, strict=True):
        low = metrics.clopper_pearson(k, n, level=1.0 - 2.0 * local).low
        told = {"submitter": submitter, "against": against, "disagreements": k, "labels": n, "p": p_value}
        rows.append(told | {"lower_bound": low, "local_alpha": local, "refused": rejected})
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


def _said(against: str, pairs: Sequence[tuple[str, str]], asked: Protocol) -> list[tuple[str, list[tuple[Any, Any]]]]:
    """What was said against what, of several findings each by itself."""
    if not asked.several:
        return [(against, list(pairs))]
    ours, theirs = (matrix([pair[side] for pair in pairs], asked.classes) for side in (0, 1))
    return [
        (f"{against} on {name}", list(zip(ours[:, k].tolist(), theirs[:, k].tolist(), strict=True)))
        for k, name in enumerate(asked.classes)
    ]


def _missing_patients(report: QualityReport, rules: DataQuality) -> GateResult:
    maximum = rules.maximum_missing_patient_share
    words = f"at most {maximum:.0%} of the cases without a patient"
    return _held("missing_patients", _line(report, "missing_patient"), maximum=maximum, words=words)


def _unreadable_images(report: QualityReport, rules: DataQuality) -> GateResult:
    maximum = rules.maximum_unreadable_share
    words = f"at most {maximum:.0%} of the confirmed cases with an image that cannot be read"
    return _held("unreadable_images", _line(report, "unreadable_images"), maximum=maximum, words=words)


def _near_duplicates(report: QualityReport, rules: DataQuality) -> GateResult:
    rule = rules.near_duplicates
    words = f"no image in two splits, nor a copy (within {rule.radius} bits, likeness {rule.minimum_likeness:g})"
    lines = [_line(report, f"{kind}_duplicates_across_splits") for kind in ("exact", "near")]
    return _held("near_duplicates", max(lines, key=_value), maximum=0.0, words=words)


def _prior_shift(report: QualityReport, rules: DataQuality) -> GateResult:
    maximum, line = rules.maximum_prior_shift, _line(report, "prior_shift")
    words = f"the classes' shares changed by at most {maximum:g} since the version before"
    if report.previous_digest is None:
        return GateResult(name="prior_shift", requirement=words, verdict="pass", reason="there is no version before")
    return _held("prior_shift", line, maximum=maximum, words=words)


def _report(comparison: Comparison, *, rules: DataQuality, dataset_digest: Digest) -> QualityReport:
    report = comparison.quality
    if report is None:
        raise MetricError("there is no quality report of the dataset version: make it first")
    if report.dataset_digest != dataset_digest:
        raise MetricError(f"the quality report is of another dataset version ({report.dataset_digest[:12]})")
    if dict(report.rules) != rules.model_dump(mode="json"):
        raise MetricError("the quality report was made under other rules than this protocol's: make it anew")
    return report


def _held(name: str, line: QualityLine, *, maximum: float, words: str) -> GateResult:
    value = _value(line)
    return GateResult(
        name=name,
        requirement=words,
        verdict="fail" if value > maximum else "pass",
        reason=line.reason,
        details={"value": value, "maximum": maximum, "n": line.n, "cases": list(line.examples)},
    )


def _line(report: QualityReport, name: str) -> QualityLine:
    try:
        return report.named(name)
    except KeyError as error:
        raise MetricError(str(error.args[0])) from error


def _value(line: QualityLine) -> float:
    if line.value is None or line.n == 0:
        raise MetricError(f"{line.name} was not measured: {line.reason}")
    return line.value


def _splits_of(placements: tuple[Placement, ...], attribute: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for placement in placements:
        found.setdefault(getattr(placement, attribute), set()).add(placement.split)
    return found
