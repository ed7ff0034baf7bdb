"""Bio-creep: 50 candidates, each a little worse than the champion of its time, judged on fresh cases.

What each rule approves, how far the champion ends up below the original, and whether an honest gain still gets through.

Reference: Feng, Emerson, Simon, Biometrics 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.approved import acceptable, held_against, local_level
from pipelines.paired import mean_difference
from pipelines.simulate.table import Row, Table, mean, share

CANDIDATES, CASES, ALPHA, MARGIN = 50, 1000, 0.05, 0.02
ACCURACY, STEP, DISCORDANCE = 0.85, -0.01, 0.06

Right = NDArray[np.bool_]
Rule = Callable[[NDArray[np.float64]], bool]
"""(M, N) candidate minus each approved model, the original first and the champion last -> approved?"""


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Run every rule over `repeats` sequences of candidates."""
    rules = _rules()
    expected: Mapping[str, float | None] = {
        "point estimate > champion": 4.9,
        "non-inferior to champion only": 18.1,
        "champion + original": 2.0,
        "every approved model, alpha / T": 0.9,
    }
    rows: list[Row] = []
    for name, (rule, needs_all) in rules.items():
        approvals = [_sequence(rule, needs_all=needs_all, rng=rng) for _ in range(repeats)]
        awaited = expected.get(name)
        rows.append(mean(name, "approvals", approvals, expected=awaited))
        drift = [STEP * count for count in approvals]
        rows.append(mean(name, "drift from the original", drift, expected=awaited and round(STEP * awaited, 3)))
        gains = [rule(_differences(_chain([0.03], rng=rng))) for _ in range(repeats)]
        rows.append(share(name, "a candidate .03 better is approved", gains))
    return Table(
        title="Bio-creep (G2)",
        setting=(
            f"{CANDIDATES} candidates, each {-STEP:g} worse in accuracy than the champion, {CASES} fresh cases each, "
            f"{DISCORDANCE:g} of cases decided differently, margin {MARGIN:g}, alpha {ALPHA:g}."
        ),
        repeats=repeats,
        rows=tuple(rows),
    )


def _rules() -> dict[str, tuple[Rule, bool]]:
    """Each rule, and whether it looks at approved models before the champion."""
    return {
        "point estimate > champion": (lambda found: bool(found[-1].mean() > 0.0), False),
        "non-inferior to champion only": (lambda found: _all(found[-1:], level=ALPHA), False),
        "champion + original": (lambda found: _all(found[[0, -1]], level=ALPHA), True),
        "every approved model, alpha / T": (lambda found: _all(found, level=ALPHA / CANDIDATES), True),
        "every approved model, alpha / (W + D)": (lambda found: _all(found, level=local_level(ALPHA)), True),
        "the same, and better than the champion": (lambda found: _improved(found, level=local_level(ALPHA)), True),
    }


def _all(found: NDArray[np.float64], *, level: float) -> bool:
    estimates = {
        str(place): mean_difference(one, level=1.0 - 2.0 * level) for place, one in enumerate(held_against(list(found)))
    }
    return acceptable({"accuracy": estimates}, margins={"accuracy": MARGIN}).verdict == "pass"


def _improved(found: NDArray[np.float64], *, level: float) -> bool:
    estimates = {str(place): mean_difference(one, level=1.0 - 2.0 * level) for place, one in enumerate(found)}
    champion = estimates[str(len(found) - 1)]
    judged = acceptable({"accuracy": estimates}, margins={"accuracy": MARGIN}, improvements={"accuracy": champion})
    return judged.verdict == "pass"


def _sequence(rule: Rule, *, needs_all: bool, rng: np.random.Generator) -> int:
    """Submit the candidates one after the other; returns how many were approved."""
    approved = 0
    for _ in range(CANDIDATES):
        steps = [STEP] * (approved + 1) if needs_all else [STEP]
        start = ACCURACY if needs_all else ACCURACY + STEP * approved
        approved += rule(_differences(_chain(steps, start=start, rng=rng)))
    return approved


def _chain(steps: list[float], *, rng: np.random.Generator, start: float = ACCURACY) -> Right:
    """Whether each of a chain of models is right on fresh cases, (1 + len(steps), CASES).

    Each model decides `DISCORDANCE` of the cases differently from the one before it, and is more accurate by its step.
    """
    right = np.empty((len(steps) + 1, CASES), dtype=bool)
    right[0] = rng.random(CASES) < start
    accuracy = start
    for place, step in enumerate(steps, start=1):
        spoils, mends = (DISCORDANCE - step) / 2.0 / accuracy, (DISCORDANCE + step) / 2.0 / (1.0 - accuracy)
        flips = rng.random(CASES) < np.where(right[place - 1], spoils, mends)
        right[place] = right[place - 1] ^ flips
        accuracy += step
    return right


def _differences(right: Right) -> NDArray[np.float64]:
    return np.asarray(right[-1].astype(np.float64) - right[:-1], dtype=np.float64)
