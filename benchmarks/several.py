"""One line of several findings beside one binary line for each of them: the same network, cases and budget.

The plates are drawn (`pipelines.synthetic.plates`): an opacity, a ring and a band, each present or absent by itself,
the last one rarer. Every model learns from the same images; a binary one is told of its own finding only.

    python -m benchmarks.several --cases 400 --epochs 12 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines import metrics, predict, synthetic, train
from pipelines.protocol import Protocol, from_document

SHARES = (0.4, 0.4, 0.08)
TEST = 1500
COLUMNS = ("AUROC", "sens.", "spec.", "ECE")


def protocol(*, classes: tuple[str, ...], several: bool, epochs: int) -> Protocol:
    """A line that asks about these classes."""
    return from_document(
        {
            "line": "drawn-plates",
            "title": "Drawn plates",
            "intended_use": "To measure what several findings of one model cost each other.",
            "classes": list(classes),
            **({"task": "multilabel"} if several else {}),
            "input": {"channels": 1, "rows": 28, "columns": 28},
            "recipe": {"epochs": epochs, "threads": 1},
        }
    )


def drawn(n: int, *, seed: int) -> train.Cases:
    """`n` plates, and which findings each shows."""
    pictures, present = synthetic.plates(n, rng=np.random.default_rng([seed, n]), shares=SHARES)
    images = pictures[:, None].astype(np.float32) / 255.0
    return train.Cases(images=images, labels=present, sites=np.full(n, "a"), label_since=np.ones(n, dtype=np.int64))


def told(truth: Any, scores: Any, called: Any) -> list[float]:
    """AUROC, sensitivity, specificity and calibration error on one finding."""
    found = [metrics.auroc(truth, scores), metrics.sensitivity(truth, called).value]
    return [*found, metrics.specificity(truth, called).value, metrics.ece(truth, scores)]


def measure(*, seed: int, n: int, epochs: int) -> tuple[dict[str, list[list[float]]], dict[str, float]]:
    """Train the four models and score the test plates: rows by finding for both ways, and what each way cost."""
    names = synthetic.FINDINGS
    cases, tune, test = drawn(n, seed=seed), drawn(max(200, n // 2), seed=seed + 500), drawn(TEST, seed=1000)
    asked = protocol(classes=names, several=True, epochs=epochs)
    whole = train.fit(cases, tune, protocol=asked, strategy="full", seed=seed)
    model = predict.Model(whole.module, whole.metadata)
    scores = model.scores(test.images)
    called = model.decided(scores)
    rows = {"one line": [told(test.labels[:, k], scores[:, k], called[:, k]) for k in range(len(names))], "each": []}
    cost = {"one line": float(whole.metadata["sample_gradients"]), "each": 0.0}
    for k, name in enumerate(names):
        alone = protocol(classes=(f"no-{name}", name), several=False, epochs=epochs)
        parts = [replace(part, labels=part.labels[:, k].astype(np.int64)) for part in (cases, tune)]
        made = train.fit(*parts, protocol=alone, strategy="full", seed=seed)
        own = predict.Model(made.module, made.metadata)
        given = own.scores(test.images)
        rows["each"].append(told(test.labels[:, k], given[:, 1], own.decided(given).astype(bool)))
        cost["each"] += made.metadata["sample_gradients"]
    return rows, cost


def main(arguments: list[str]) -> int:
    """Print a row for each finding and way, mean and standard deviation over the seeds, and the ratio of the costs."""
    parser = argparse.ArgumentParser(description="one line of several findings beside a binary line for each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args(arguments)
    found = [measure(seed=seed, n=options.cases, epochs=options.epochs) for seed in options.seeds]
    print(f"{'finding':<10} {'by':<9}" + "  ".join(f"{name:>13}" for name in COLUMNS))
    for k, (name, share) in enumerate(zip(synthetic.FINDINGS, SHARES, strict=True)):
        for way in ("one line", "each"):
            values = np.array([rows[way][k] for rows, _ in found])
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(COLUMNS))
            cells = [
                f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(values.mean(axis=0), spread, strict=True)
            ]
            print(f"{name + f' {share:.0%}':<12} {way:<9}" + "  ".join(f"{text:>13}" for text in cells), flush=True)
    ratio = np.mean([cost["each"] / cost["one line"] for _, cost in found])
    print(f"sample-gradients of the binary lines together, in times of the one line: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
