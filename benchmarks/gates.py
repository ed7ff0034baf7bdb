"""Measure what statistics cost: a whole comparison on 10,000 sealed cases, and each kernel against what others use.

Times are of the processor, so that a busy machine does not show.

The others are DeLong as MLstatkit and confidenceinterval have it, and a bootstrap that loops over scikit-learn's AUROC;
each has to give the same numbers to 1e-6 (the loop: on the same resamples). confidenceinterval is not among our
dependencies, for it pins an old setuptools; where it cannot be imported (`pip install --no-deps`) its row is left out.

    OMP_NUM_THREADS=1 python -m benchmarks.gates [--cases 10000] [--resamples 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from api.console import report as page
from pipelines import evidence, gates, metrics, paired
from pipelines.comparison import Comparison, Placement, Scored, Sealed
from pipelines.protocol import from_document
from pipelines.types import Digest, Estimate

SUBGROUPS, APPROVED = 20, 5
LOOPED = 40
"""Resamples of the loop that are timed; all of them would take minutes."""
PROTOCOL = {
    "line": "bench",
    "title": "A line to measure by",
    "intended_use": "To measure what the gates cost on numbers that a computer has made.",
    "classes": ["normal", "pneumonia"],
    "input": {"channels": 1, "rows": 28, "columns": 28},
    "gates": {"subgroups": {"attributes": ["site"], "critical": ["site=s00", "site=s01"], "minimum_cases": 50}},
}

Floats = NDArray[np.float64]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2000)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = (rng.random(asked.cases) < 0.3).astype(np.int64)
    patients = rng.integers(0, asked.cases * 2 // 3, asked.cases)
    shared = rng.normal(size=asked.cases)
    models = [model(f"{k:x}", labels, shared, skill=1.0 + 0.02 * k, rng=rng) for k in range(APPROVED + 2)]
    whole(labels, patients, models)
    print("\n| kernel | ours ms | theirs ms | times as fast | largest difference |")
    print("|---|---|---|---|---|")
    first, second = models[0].scores[:, 1], models[1].scores[:, 1]
    delong(labels, first, second)
    bootstrap(labels, first, second, patients, resamples=asked.resamples)
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def model(name: str, labels: NDArray[np.int64], shared: Floats, *, skill: float, rng: np.random.Generator) -> Scored:
    """A calibrated model, correlated with the others."""
    reading = skill * (2 * labels - 1) + 0.8 * shared + 0.6 * rng.normal(size=len(labels))
    positive = 1.0 / (1.0 + np.exp(-2.0 * skill * reading))
    scores = np.stack([1.0 - positive, positive], axis=1)
    decided = (positive >= 0.5).astype(np.int64)
    return Scored(digest=Digest(name * 64), scores=scores, decided=decided, threshold=0.5)


def whole(labels: NDArray[np.int64], patients: NDArray[np.int64], models: list[Scored]) -> None:
    """Time every gate on one comparison: champion, models approved before it, subgroups, calibration."""
    sites = np.array([f"s{k:02d}" for k in range(SUBGROUPS)])[np.arange(len(labels)) % SUBGROUPS]
    groups = np.array([f"p{k}" for k in patients])
    comparison = Comparison(
        protocol=from_document(PROTOCOL),
        sealed=Sealed(
            labels=labels,
            groups=groups,
            traits={"site": sites},
            case_ids=np.arange(len(labels)),
            batches=np.arange(len(labels)) * 15 // len(labels) + 1,
        ),
        candidate=models[-1],
        champion=models[-2],
        approved=tuple(models[:-2]),
        opinions=(),
        placements=tuple(
            Placement(image_digest=str(k), group=group, split="sealed_test") for k, group in enumerate(groups.tolist())
        ),
    )
    seconds, report = best(lambda: gates.decide(comparison, dataset_digest=Digest("d" * 64)))
    drawing, points = best(lambda: evidence.gather(comparison))
    document = {**report.document(), "evidence": points}
    writing, text = best(lambda: page.standalone(document, digest="d" * 64, number=1, made_at="now"))
    print(
        f"The whole report: gates {seconds:.2f} s, points of its plots {drawing:.2f} s, page {writing:.2f} s, "
        f"{len(json.dumps(document)) / 1024:.0f} KiB of JSON, {len(text) / 1024:.0f} KiB of HTML"
    )
    print(
        f"Every gate on {len(labels)} cases of {len(np.unique(patients))} patients, {SUBGROUPS} sites, "
        f"{APPROVED} earlier models: {seconds:.2f} s on one core, verdict {report.verdict}"
    )


def delong(labels: NDArray[np.int64], first: Floats, second: Floats) -> None:
    """Hold the paired DeLong difference and its error against two other implementations."""
    from MLstatkit import Delong_test  # noqa: PLC0415 - it takes a second to import

    ours, found = best(lambda: metrics.paired_auroc_difference(labels, first, second))
    theirs, answer = best(lambda: Delong_test(labels, first, second, return_ci=False), times=3)
    z, _, area, other = answer[:4]
    error = (found.high - found.low) / 2.0 / stats.norm.ppf(0.975)
    gap = max(abs(found.value - (area - other)), abs(error - abs((area - other) / z)))
    row("paired DeLong / MLstatkit", ours, theirs, gap)
    try:
        from confidenceinterval.delong import delong_roc_variance  # noqa: PLC0415 - an oracle that may be absent
    except ImportError:
        return
    ours, one = best(lambda: metrics.auroc_estimate(labels, first))
    theirs, (area, variance) = best(lambda: delong_roc_variance(labels, first), times=3)
    error = (one.high - one.value) / stats.norm.ppf(0.975)
    row("DeLong / confidenceinterval", ours, theirs, max(abs(one.value - area), abs(error - np.sqrt(variance))))


def bootstrap(
    labels: NDArray[np.int64], first: Floats, second: Floats, patients: NDArray[np.int64], *, resamples: int
) -> None:
    """Hold the clustered bootstrap against a loop over the same resamples."""
    ours, _ = best(lambda: resampled(labels, first, second, patients, resamples=resamples), times=1)
    clusters, counts = np.unique(patients, return_inverse=True)[1], len(np.unique(patients))
    drawn = np.hstack(list(paired._draws(counts, resamples=LOOPED, rng=np.random.default_rng(0)))).astype(int)
    began = time.process_time()
    draws = []
    for one in drawn.T:
        rows = np.repeat(np.arange(len(labels)), one[clusters])
        draws.append(roc_auc_score(labels[rows], first[rows]) - roc_auc_score(labels[rows], second[rows]))
    theirs = (time.process_time() - began) / LOOPED * resamples
    found = resampled(labels, first, second, patients, resamples=LOOPED)
    value = metrics.auroc(labels, first) - metrics.auroc(labels, second)
    low, high = np.quantile(draws, [0.025, 0.975])
    gap = max(abs(found.low - min(low, value)), abs(found.high - max(high, value)))
    row(f"clustered bootstrap, {resamples} / loop over scikit-learn", ours, theirs, gap)


def resampled(
    labels: NDArray[np.int64], first: Floats, second: Floats, patients: NDArray[np.int64], *, resamples: int
) -> Estimate:
    """Bootstrap the AUROC difference over patients, from the same seed each time."""
    return paired.bootstrap_auroc_difference(
        labels, first, second, groups=patients, rng=np.random.default_rng(0), resamples=resamples
    )


def best(work: Callable[[], Any], *, times: int = 5) -> tuple[float, Any]:
    """Return the shortest of some runs in seconds, and what the last one found."""
    found, answer = [], None
    for _ in range(times):
        began = time.process_time()
        answer = work()
        found.append(time.process_time() - began)
    assert answer is not None, "at least one run"
    return min(found), answer


def row(name: str, ours: float, theirs: float, gap: float) -> None:
    """Print one line of the table."""
    print(f"| {name} | {ours * 1000:.1f} | {theirs * 1000:.1f} | {theirs / ours:.0f} | {gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
