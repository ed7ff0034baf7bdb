"""The envelope of allowed changes: what a candidate may be another in than its champion, said in advance.

Invariant: a candidate outside is stopped with the clause named, whatever it measures; what is not known of it is
outside.

Reference: FDA, "Predetermined Change Control Plan", final guidance, 2024-12 ("description of modifications").
"""

from __future__ import annotations

from pipelines.comparison import Comparison
from pipelines.metrics import MetricError
from pipelines.protocol import Envelope
from pipelines.types import GateResult


def gate(comparison: Comparison) -> GateResult:
    """Hold what a candidate is against each clause of the protocol's envelope."""
    allowed = comparison.protocol.envelope
    if allowed is None:
        raise MetricError("the protocol sets no envelope")
    broken = [words for words in (_strategy(allowed, comparison), *_sizes(allowed, comparison)) if words]
    return GateResult(
        name="envelope",
        requirement=f"within the envelope of the protocol: {_told(allowed)}",
        verdict="fail" if broken else "pass",
        reason="; ".join(broken) or "every change is one that the protocol allows",
    )


def _strategy(allowed: Envelope, comparison: Comparison) -> str | None:
    strategy = comparison.made.get("strategy")
    if strategy in allowed.strategies or comparison.champion is None:
        return None
    return f"envelope.strategies: {strategy} is not one of {', '.join(allowed.strategies)}"


def _sizes(allowed: Envelope, comparison: Comparison) -> list[str | None]:
    parameters, most = comparison.made.get("parameters"), allowed.maximum_parameters
    words: list[str | None] = []
    if most is not None and (parameters is None or parameters > most):
        words.append(f"envelope.maximum_parameters: {parameters} are more than {most}")
    furthest, champion = allowed.maximum_threshold_change, comparison.champion
    if furthest is not None and champion is not None:
        first, second = comparison.candidate.threshold, champion.threshold
        if first is None or second is None or abs(first - second) > furthest:
            words.append(f"envelope.maximum_threshold_change: {second} to {first} is more than {furthest:g}")
    return words


def _told(allowed: Envelope) -> str:
    parts = [f"strategies {', '.join(allowed.strategies)}"]
    if allowed.maximum_parameters is not None:
        parts.append(f"at most {allowed.maximum_parameters} parameters")
    if allowed.maximum_threshold_change is not None:
        parts.append(f"a threshold within {allowed.maximum_threshold_change:g} of the champion's")
    return ", ".join(parts)
