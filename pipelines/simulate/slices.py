"""Subgroups: how often an equal model is stopped, and how often one that harms a subgroup is let through."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines import subgroups
from pipelines.paired import mean_difference, non_inferior
from pipelines.simulate.table import Row, Table, share
from pipelines.types import Verdict

SLICES, CRITICAL, MARGIN, OVERALL, ALPHA, DISCORDANCE, HARM = 12, 2, 0.05, 0.02, 0.05, 0.06, 0.08
EXPECTED = {100: 0.994, 200: 0.74, 400: 0.08}


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Judge equal and harmful models by both rules, with slices of several sizes."""
    rows: list[Row] = []
    for size, expected in EXPECTED.items():
        equal = [_cases(size, harmed=None, rng=rng) for _ in range(repeats)]
        watched = [_cases(size, harmed=SLICES - 1, rng=rng) for _ in range(repeats)]
        critical = [_cases(size, harmed=0, rng=rng) for _ in range(repeats)]
        stopped = [not _all_pass(one, size=size) for one in equal]
        rows.append(share("all 12 must pass", f"equal model stopped, {size} a slice", stopped, expected=expected))
        answers = [_tiers(one, size=size) for one in equal]
        rows.append(share("tiers", f"equal model not passed, {size} a slice", [a != "pass" for a in answers]))
        rows.append(share("tiers", f"equal model failed, {size} a slice", [a == "fail" for a in answers]))
        for name, harmful in (("watched", watched), ("critical", critical)):
            let = [_tiers(one, size=size) == "pass" for one in harmful]
            rows.append(share("tiers", f"{HARM:g} worse in a {name} slice let through, {size} a slice", let))
            overall = [_overall(one) == "pass" for one in harmful]
            rows.append(share("overall only", f"{HARM:g} worse in a {name} slice let through, {size} a slice", overall))
    return Table(
        title="Subgroups (G9)",
        setting=(
            f"{SLICES} slices, {CRITICAL} of them critical with margin {MARGIN:g}, overall margin {OVERALL:g}, "
            f"alpha {ALPHA:g}, {DISCORDANCE:g} of cases decided differently."
        ),
        repeats=repeats,
        rows=tuple(rows),
    )


def _cases(size: int, *, harmed: int | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Candidate minus champion, -1, 0 or 1, `size` cases a slice; one slice may be `HARM` worse."""
    step = np.where(np.arange(SLICES) == harmed, -HARM, 0.0).repeat(size)
    differ = DISCORDANCE + np.abs(step)
    drawn = rng.random(SLICES * size)
    return np.where(drawn < (differ + step) / 2.0, 1.0, np.where(drawn < differ, -1.0, 0.0))


def _members(size: int) -> list[NDArray[np.bool_]]:
    return list(np.arange(SLICES).repeat(size) == np.arange(SLICES)[:, None])


def _all_pass(differences: NDArray[np.float64], *, size: int) -> bool:
    return all(
        non_inferior(mean_difference(differences[one], level=1.0 - 2.0 * ALPHA), margin=MARGIN).verdict == "pass"
        for one in _members(size)
    )


def _overall(differences: NDArray[np.float64]) -> Verdict:
    estimate = mean_difference(differences, level=1.0 - 2.0 * ALPHA)
    return non_inferior(estimate, margin=OVERALL).verdict


def _tiers(differences: NDArray[np.float64], *, size: int) -> Verdict:
    if (overall := _overall(differences)) != "pass":
        return overall
    slices = [
        subgroups.Slice(name=str(k), members=one, tier="critical" if k < CRITICAL else "watched")
        for k, one in enumerate(_members(size))
    ]
    return subgroups.judge(differences, slices, margin=MARGIN, alpha=ALPHA).verdict
