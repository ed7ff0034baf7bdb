"""Grades learnt as grades, and as mere classes: the same pictures, network, budget and seeds, by either task.

The pictures are drawn (16 x 16, grey): a soft opacity whose size and density follow a severity, among noise that looks
a little like it. The severity is cut into five grades, as unequally frequent as those of diabetic retinopathy, and one
case in seven is graded one off, as readers do. Test answers are right.

    python -m benchmarks.grades --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import ordinal, predict, train
from pipelines.metrics import macro_auroc_estimate
from pipelines.protocol import Protocol, from_document

SHARES = (0.45, 0.10, 0.22, 0.13, 0.10)
ONE_OFF = 1.0 / 7.0
SIDE = 16
COLUMNS = ("kappa", "kappa, arg-max", "distance", "distance, arg-max", "accuracy", "AUROC", "log-loss")


def protocol(task: str, *, epochs: int = 15) -> Protocol:
    """A line of five grades, learnt by either task."""
    kappa = {"gates": {"kappa": {"floor": 0.5, "margin": 0.1}}} if task == "ordinal" else {}
    return from_document(
        {
            "line": "drawn-grades",
            "title": "Drawn grades",
            "intended_use": "To measure what grades gain by being learnt as grades.",
            "classes": [f"grade-{k}" for k in range(len(SHARES))],
            "task": task,
            "input": {"channels": 1, "rows": SIDE, "columns": SIDE},
            "recipe": {"epochs": epochs, "threads": 1},
            **kappa,
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


def measure(task: str, *, seed: int) -> dict[str, float]:
    """Train once and score 2,000 test cases; one row of the table."""
    asked, test = protocol(task), drawn(2000, seed=1000, one_off=0.0)
    found = train.fit(drawn(600, seed=seed), drawn(300, seed=seed), protocol=asked, strategy="full", seed=seed)
    scores = predict.Model(found.module, found.metadata).scores(test.images)
    row = {"AUROC": macro_auroc_estimate(test.labels, scores).value}
    row["log-loss"] = float(-np.log(scores[np.arange(len(scores)), test.labels]).mean())
    for name, decided in (("", ordinal.decided(scores)), (", arg-max", scores.argmax(axis=1))):
        kappa = ordinal.kappa_estimate(test.labels, decided, grades=len(SHARES))
        row |= {f"kappa{name}": kappa.value, f"distance{name}": float(np.abs(decided - test.labels).mean())}
    return row | {"accuracy": float((ordinal.decided(scores) == test.labels).mean())}


def main(arguments: list[str]) -> int:
    """Print both rows, mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description="grades learnt as grades, and as mere classes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args(arguments)
    print("task     " + "  ".join(f"{name:>17}" for name in COLUMNS))
    for task in ("nominal", "ordinal"):
        rows = [measure(task, seed=seed) for seed in options.seeds]
        cells = [[row[name] for row in rows] for name in COLUMNS]
        told = [f"{np.mean(cell):.3f} ± {np.std(cell, ddof=1) if len(cell) > 1 else 0.0:.3f}" for cell in cells]
        print(f"{task}  " + "  ".join(f"{text:>17}" for text in told), flush=True)
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
