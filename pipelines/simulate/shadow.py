"""A shadow that is looked at after every case: false passes at the margin, and how many cases a pass takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines import shadow
from pipelines.metrics import normal_quantile
from pipelines.simulate.table import Row, Table, median, share

MARGIN, ALPHA, DISCORDANCE, HORIZON = 0.02, 0.05, 0.06, 5000
FIRST, PEEK = 100, 20
MEDIANS = {0.0: 1068.0, 0.01: 428.0, 0.02: 252.0}


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Follow `repeats` shadows of each kind for up to `HORIZON` cases."""
    rows: list[Row] = []
    at_margin = [differences(-MARGIN, rng=rng) for _ in range(repeats)]
    passed = [shadow.follow(one, margin=MARGIN, alpha=ALPHA).verdict == "pass" for one in at_margin]
    rows.append(share("e-process, every case", "false pass at the margin", passed, expected=0.025))
    rows.append(
        share("z-test, every 20 cases", "false pass at the margin", [_peeked(one) for one in at_margin], expected=0.316)
    )
    once = [bool(_z(one)[-1] > normal_quantile(1.0 - ALPHA)) for one in at_margin]
    rows.append(share("z-test, once at the end", "false pass at the margin", once))
    for better, expected in MEDIANS.items():
        times = []
        for _ in range(repeats):
            at = shadow.follow(differences(better, rng=rng), margin=MARGIN, alpha=ALPHA).passed_at
            times.append(np.inf if at is None else at)
        rows.append(median("e-process, every case", f"median cases, better by {better:g}", times, expected=expected))
        rows.append(share("e-process, every case", f"pass within {HORIZON}, better by {better:g}", np.isfinite(times)))
    return Table(
        title="Shadow (G6)",
        setting=f"Margin {MARGIN:g}, alpha {ALPHA:g}, {DISCORDANCE:g} decided differently, {HORIZON} cases at most.",
        repeats=repeats,
        rows=tuple(rows),
    )


def differences(better: float, *, rng: np.random.Generator, n: int = HORIZON) -> NDArray[np.float64]:
    """Draw candidate minus champion on `n` cases, -1, 0 or 1, with mean `better`."""
    gain, loss = (DISCORDANCE + better) / 2.0, (DISCORDANCE - better) / 2.0
    return rng.choice([1.0, 0.0, -1.0], n, p=[gain, 1.0 - gain - loss, loss])


def _z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The z statistic of "not worse by the margin" at every look, the first after `FIRST` cases."""
    n = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / n
    variance = np.maximum(np.cumsum(values**2) / n - mean**2, 1e-12)
    looks = slice(FIRST - 1, None, PEEK)
    seen = np.cumsum(values != 0.0)[looks] > 0
    return np.asarray(np.where(seen, ((mean + MARGIN) / np.sqrt(variance / n))[looks], 0.0), dtype=np.float64)


def _peeked(values: NDArray[np.float64]) -> bool:
    return bool((_z(values) > normal_quantile(1.0 - ALPHA)).any())
