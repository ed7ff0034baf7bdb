"""Labels that come late, and labels that come for some: what a naive PPV and sensitivity say, and what is true."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines import maturity
from pipelines.simulate.table import Row, Table, mean

PREVALENCE, SENSITIVITY, SPECIFICITY = 0.10, 0.85, 0.90
WITHIN_30_DAYS = {1: 0.8, 0: 0.1}
CASES = 20_000
TRUE_PPV = PREVALENCE * SENSITIVITY / (PREVALENCE * SENSITIVITY + (1 - PREVALENCE) * (1 - SPECIFICITY))


def simulate(*, repeats: int, rng: np.random.Generator) -> Table:
    """Estimate PPV from late labels and sensitivity from selective verification, `repeats` times."""
    late = np.array([_late(rng=rng) for _ in range(repeats)])
    rows: list[Row] = [
        mean("naive: whatever has a label at 30 days", "PPV", late[:, 0], expected=0.883),
        mean("all labels, years later (truth)", "PPV", late[:, 1], expected=0.486),
        mean("mature cases only", "PPV", late[:, 2], expected=TRUE_PPV),
        mean("weighted by 1 / F(age), F known", "PPV", late[:, 3], expected=TRUE_PPV),
        mean("weighted by 1 / F(age), F estimated", "PPV", late[:, 4], expected=TRUE_PPV),
    ]
    verified = np.array([_verified(rng=rng) for _ in range(repeats)])
    rows += [
        mean("naive: verified cases only", "sensitivity", verified[:, 0]),
        mean("weighted by 1 / P(verified)", "sensitivity", verified[:, 1], expected=SENSITIVITY),
        mean("naive: verified cases only", "specificity", verified[:, 2]),
        mean("weighted by 1 / P(verified)", "specificity", verified[:, 3], expected=SPECIFICITY),
        mean("verified share", "shown beside both", verified[:, 4]),
    ]
    return Table(
        title="Label delay and verification (G8)",
        setting=(
            f"Prevalence {PREVALENCE:g}, sensitivity {SENSITIVITY:g}, specificity {SPECIFICITY:g}; within 30 days "
            f"{WITHIN_30_DAYS[1]:g} of positives and {WITHIN_30_DAYS[0]:g} of negatives have a label; {CASES} cases."
        ),
        repeats=repeats,
        rows=tuple(rows),
    )


def _late(*, rng: np.random.Generator) -> list[float]:
    """PPV as five ways of handling late labels have it."""
    truth, called = _decisions(rng=rng)
    scale = {k: -30.0 / np.log(1.0 - share) for k, share in WITHIN_30_DAYS.items()}
    delay = rng.exponential(np.where(truth, scale[1], scale[0]))
    thirty = delay <= 30.0
    age = rng.uniform(0.0, 1460.0, CASES)  # a service of four years, with cases of every age
    here = delay <= age
    found = {
        k: maturity.arrivals(delay[here & (truth == bool(k))], age[here & (truth == bool(k))]) for k in WITHIN_30_DAYS
    }
    known = {
        k: maturity.Arrivals(days=np.arange(1.0, 1461.0), shares=-np.expm1(-np.arange(1.0, 1461.0) / scale[k]))
        for k in scale
    }
    old_enough = here & (age >= maturity.maturity_day({str(k): one for k, one in found.items()}))
    kept = here & (age >= 1.0) & called
    shares = [
        truth[thirty & called].mean(),
        truth[called].mean(),
        truth[old_enough & called].mean(),
    ]
    for classes in (known, found):
        young = np.array(
            [classes[int(k)].at(np.array([a]))[0] > 0.05 for k, a in zip(truth[kept], age[kept], strict=True)]
        )
        rows = np.flatnonzero(kept)[young]
        weights = maturity.delay_weights(age[rows], truth[rows].astype(int), classes)
        shares.append(maturity.weighted_share(truth[rows], weights).value)
    return [float(value) for value in shares]


def _verified(*, rng: np.random.Generator) -> list[float]:
    """Naive and weighted sensitivity and specificity where suspicious cases are verified more often, by site."""
    truth, _ = _decisions(rng=rng)
    score = np.where(truth, rng.beta(5.0, 1.6, CASES), rng.beta(1.6, 5.0, CASES))
    low, high = np.quantile(score[truth], 1.0 - SENSITIVITY), np.quantile(score[~truth], SPECIFICITY)
    site = rng.integers(0, 3, CASES)
    raw = rng.random(CASES) < np.minimum(0.08 + 0.9 * np.minimum((score * 5).astype(int), 4) / 4.0, 0.95) * (
        1.0 - 0.2 * site
    )
    weights = maturity.verification_weights(raw, score, site).weights
    everyone = raw.astype(np.float64)
    return [
        maturity.weighted_share(score[truth] >= low, everyone[truth]).value,
        maturity.weighted_share(score[truth] >= low, weights[truth]).value,
        maturity.weighted_share(score[~truth] < high, everyone[~truth]).value,
        maturity.weighted_share(score[~truth] < high, weights[~truth]).value,
        float(raw.mean()),
    ]


def _decisions(*, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    truth = rng.random(CASES) < PREVALENCE
    return truth, rng.random(CASES) < np.where(truth, SENSITIVITY, 1.0 - SPECIFICITY)
