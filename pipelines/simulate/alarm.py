"""The alarm on the champion: false alarms in a year of weekly looks, and how many weeks harm goes on unseen."""

from __future__ import annotations

import numpy as np

from pipelines import alarm
from pipelines.metrics import normal_quantile
from pipelines.simulate.table import Row, Table, median, share

LIMIT, HARM, IN_ORDER, ALPHA = 0.15, 0.25, 0.12, 0.05
WEEKS, LABELS = 52, 20


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Watch `repeats` champions for a year each."""
    rows: list[Row] = []
    for risk, name, expected in (
        (LIMIT, "at the limit", (0.285, 0.02)),
        (IN_ORDER, f"risk {IN_ORDER:g}", (None, None)),
    ):
        years = rng.random((repeats, WEEKS * LABELS)) < risk
        weekly = [_week_of_z_alarm(year) for year in years]
        betting = [_week_of_alarm(year) for year in years]
        rows.append(share("weekly z-test", f"false alarm, {name}", np.isfinite(weekly), expected=expected[0]))
        rows.append(share("e-process", f"false alarm, {name}", np.isfinite(betting), expected=expected[1]))
    harmed = rng.random((repeats, WEEKS * LABELS)) < HARM
    late = rng.random((repeats, WEEKS * LABELS)) < np.repeat([IN_ORDER, HARM], WEEKS // 2 * LABELS)
    rows.append(
        median("e-process", f"weeks until harm of {HARM:g} is found", [_week_of_alarm(y) for y in harmed], expected=6.0)
    )
    rows.append(
        share("e-process", f"harm of {HARM:g} found within a year", [np.isfinite(_week_of_alarm(y)) for y in harmed])
    )
    waited = [_week_of_alarm(year) - WEEKS // 2 for year in late]
    rows.append(median("e-process", "weeks, harm that begins after half a year", waited))
    return Table(
        title="Alarm on the champion (G7)",
        setting=f"{LABELS} labels a week for {WEEKS} weeks, limit {LIMIT:g}, alpha {ALPHA:g}.",
        repeats=repeats,
        rows=tuple(rows),
    )


def _week_of_alarm(wrong: np.ndarray) -> float:
    at = alarm.watch(wrong.astype(np.float64), limit=LIMIT, alpha=ALPHA).raised_at
    return np.inf if at is None else float(np.ceil(at / LABELS))


def _week_of_z_alarm(wrong: np.ndarray) -> float:
    """The first week in which the mean so far is significantly above the limit."""
    n = np.arange(1, WEEKS + 1) * LABELS
    mean = np.cumsum(wrong)[LABELS - 1 :: LABELS] / n
    over = np.flatnonzero(mean - normal_quantile(1.0 - ALPHA) * np.sqrt(LIMIT * (1.0 - LIMIT) / n) > LIMIT)
    return float(over[0] + 1) if len(over) else np.inf
