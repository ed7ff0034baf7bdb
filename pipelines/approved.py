"""Against every model that was ever approved: a chain of "not much worse" must not walk away from where it began.

Invariant: a candidate is acceptable only if it is shown to be non-inferior on every endpoint to every approved model
it is held against, and better than the champion on at least one endpoint declared before. The tests are joined by
intersection and union, so that each keeps the whole level and none needs correction; one that is missing fails.

References: Feng, Emerson, Simon, Biometrics 2021, 77:31 (bio-creep, aACP-BAC); Berger, Technometrics 1982 (IUT).

    python -m pipelines.simulate bio-creep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.paired import MINIMUM_CASES, Judged, non_inferior, superior
from pipelines.types import Estimate, Verdict

WINDOW = 15
LOOKS = 5
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Whether a candidate may take its place among the approved; one judgement a comparison, by (endpoint, model)."""

    verdict: Verdict
    reason: str
    comparisons: Mapping[tuple[str, str], Judged]
    improvements: Mapping[str, Judged]


def local_level(alpha: float, *, window: int = WINDOW, looks: int = LOOKS) -> float:
    """Return the level of one candidate so that at most `alpha` bad approvals are expected in any `window` of them.

    alpha / (window + looks): a candidate may still be looked at `looks` rounds after it was made (aACP-BAC).
    """
    if window < 1 or looks < 0 or not 0.0 < alpha < 1.0:
        raise ValueError("a window of at least 1, looks of at least 0 and alpha in (0, 1) are needed")
    return alpha / (window + looks)


def held_against(approved: Sequence[T], *, window: int = WINDOW) -> tuple[T, ...]:
    """Choose from `approved`, oldest first, whom a candidate must not fall below: original and last `window`."""
    if window < 1:
        raise ValueError("a candidate is held against the original and at least one more")
    return (*approved[:1], *approved[1:][-window:])


def acceptable(
    differences: Mapping[str, Mapping[str, Estimate]],
    *,
    margins: Mapping[str, float],
    improvements: Mapping[str, Estimate] | None = None,
    minimum: int = MINIMUM_CASES,
) -> Acceptance:
    """Judge a candidate against all approved models on all endpoints.

    `differences` holds, by endpoint and then by model, candidate minus that model at `level` = 1 - 2 alpha; every
    endpoint of `margins` needs the same models. `improvements` holds the differences from the champion on the endpoints
    of which one must be better; None asks for no improvement, none at all fails.
    """
    models = sorted({model for found in differences.values() for model in found})
    if not margins or not models:
        return Acceptance(
            verdict="fail",
            reason="there is nothing to hold the candidate against: no endpoint, or no approved model",
            comparisons={},
            improvements={},
        )
    comparisons = {
        (endpoint, model): _against(differences.get(endpoint, {}).get(model), model, margin=margin, minimum=minimum)
        for endpoint, margin in margins.items()
        for model in models
    }
    reasons = [f"{endpoint}: {one.reason}" for (endpoint, _), one in comparisons.items() if one.verdict != "pass"]
    verdicts = {one.verdict for one in comparisons.values()}
    better = {name: superior(found, minimum=minimum) for name, found in (improvements or {}).items()}
    if improvements is not None:
        verdict = _any(better)
        verdicts.add(verdict)
        reasons += [] if verdict == "pass" else [_no_improvement(better)]
    return Acceptance(
        verdict="fail" if "fail" in verdicts else "insufficient" if "insufficient" in verdicts else "pass",
        reason="; ".join(reasons) or f"not worse than any of {len(models)} approved models",
        comparisons=comparisons,
        improvements=better,
    )


def _against(difference: Estimate | None, model: str, *, margin: float, minimum: int) -> Judged:
    if difference is None:
        return Judged(verdict="fail", reason=f"not compared with {model}")
    return non_inferior(difference, margin=margin, against=model, minimum=minimum)


def _any(better: Mapping[str, Judged]) -> Verdict:
    verdicts = {one.verdict for one in better.values()}
    return "pass" if "pass" in verdicts else "insufficient" if "insufficient" in verdicts else "fail"


def _no_improvement(better: Mapping[str, Judged]) -> str:
    if not better:
        return "improvement: no endpoint was measured"
    return "no improvement: " + ", ".join(f"{name} {one.reason}" for name, one in better.items())
