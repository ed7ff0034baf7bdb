"""Grades decided by the median of their probabilities, and by the likeliest of them: the same models.

The pictures are drawn (16 x 16, grey): a soft opacity whose size and density follow a severity, among noise that looks
a little like it. The severity is cut into five grades, as unequally frequent as those of diabetic retinopathy, and one
case in seven is graded one off, as readers do. Test answers are right.

    python -m benchmarks.grades --cases 600 --epochs 15 --seeds 0 1 2 3 4
    python -m benchmarks.grades --cases 150 --epochs 25 --seeds 0 1 2 3 4 5
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import ordinal, predict, train
from pipelines.metrics import macro_auroc_estimate
from pipelines.protocol import from_document

SHARES = (0.45, 0.10, 0.22, 0.13, 0.10)
ONE_OFF = 1.0 / 7.0
SIDE = 16
COLUMNS = ("kappa", "distance", "accuracy", "AUROC", "log-loss")
PROTOCOL = from_document(
    {
        "line": "drawn-grades",
        "title": "Drawn grades",
        "intended_use": "To measure what grades gain by being decided as grades.",
        "classes": [f"grade-{k}" for k in range(len(SHARES))],
        "task": "ordinal",
        "input": {"channels": 1, "rows": SIDE, "columns": SIDE},
        "recipe": {"epochs": 15, "threads": 1},
        "gates": {"kappa": {"floor": 0.5, "margin": 0.1}},
    }
)


def drawn(n: int, *, seed: int, one_off: float = ONE_OFF) -> train.Cases:
    """`n` pictures and their grades, a share `one_off` of which are one too low or too high."""
    rng = np.random.default_rng([seed, n])
    labels = np.sort(rng.choice(len(SHARES), n, p=SHARES))
    severity = (labels + rng.uniform(0.0, 1.0, n)) / len(SHARES)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pictures = rng.normal(0.3, 0.08, (n, SIDE, SIDE))
    for bright in (0.15, 0.20, 0.15):  # in everybody
        pictures += bright * _spots(y, x, width=np.full(n, 1.2), rng=rng)
    pictures += (0.1 + 0.5 * severity)[:, None, None] * _spots(y, x, width=1.0 + 2.0 * severity, rng=rng)
    graded = np.where(rng.random(n) < one_off, labels + rng.choice([-1, 1], n), labels).clip(0, len(SHARES) - 1)
    return train.Cases(
        images=pictures.clip(0.0, 1.0)[:, None].astype(np.float32),
        labels=graded.astype(np.int64),
        sites=np.full(n, "a"),
        label_since=np.ones(n, dtype=np.int64),
    )


def measure(*, seed: int, n: int, epochs: int) -> dict[str, list[float]]:
    """Train once and score 2,000 test cases; a row for each way to decide."""
    asked = PROTOCOL.model_copy(update={"recipe": PROTOCOL.recipe.model_copy(update={"epochs": epochs})})
    test, tune = drawn(2000, seed=1000, one_off=0.0), drawn(max(150, n // 2), seed=seed + 500)
    found = train.fit(drawn(n, seed=seed), tune, protocol=asked, strategy="full", seed=seed)
    scores = predict.Model(found.module, found.metadata).scores(test.images)
    area = macro_auroc_estimate(test.labels, scores).value
    loss = float(-np.log(scores[np.arange(len(scores)), test.labels]).mean())
    rows = {}
    for name, decided in (("median", ordinal.decided(scores)), ("likeliest", scores.argmax(axis=1))):
        kappa = ordinal.kappa_estimate(test.labels, decided, grades=len(SHARES)).value
        distance = float(np.abs(decided - test.labels).mean())
        rows[name] = [kappa, distance, float((decided == test.labels).mean()), area, loss]
    return rows


def main(arguments: list[str]) -> int:
    """Print both rows, mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description="grades decided by the median, and by the likeliest")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args(arguments)
    found = [measure(seed=seed, n=options.cases, epochs=options.epochs) for seed in options.seeds]
    print("decided by  " + "  ".join(f"{name:>14}" for name in COLUMNS))
    for name in found[0]:
        cells = zip(*(rows[name] for rows in found), strict=True)
        told = [f"{np.mean(cell):.3f} ± {np.std(cell, ddof=1) if len(cell) > 1 else 0.0:.3f}" for cell in cells]
        print(f"{name:<10}  " + "  ".join(f"{text:>14}" for text in told), flush=True)
    return 0


def _spots(y: NDArray[Any], x: NDArray[Any], *, width: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """A soft spot of height 1 somewhere in each of N pictures, (N, rows, columns)."""
    n = len(width)
    down, across = rng.uniform(3.0, SIDE - 4.0, (2, n, 1, 1))
    squares = (y - down) ** 2 + (x - across) ** 2
    spots: NDArray[Any] = np.exp(-squares / (2.0 * width[:, None, None] ** 2))
    return spots


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
