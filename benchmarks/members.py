"""What several networks that answer as one gain over one network, for the same cost and for as much each.

PneumoniaMNIST, 28 x 28: trained on 2,000 cases of the official train split, epoch and temperature chosen on 700 others
of it, measured on the official val split, which nothing was chosen on. The official test stays closed.

    python -m benchmarks.members --seeds 0
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.pneumonia import DATA, cases
from benchmarks.stream import protocol_of
from pipelines import predict, train
from pipelines.metrics import auroc, ece

LEARNT, CHOSEN_ON = 2000, 700
VARIANTS = ((1, 12), (3, 4), (3, 12))
"""Members, and epochs of each: one network, three for its cost, three of its kind."""


def some(every: train.Cases, rows: np.ndarray) -> train.Cases:
    """The cases in these rows."""
    return train.Cases(
        images=every.images[rows],
        labels=every.labels[rows],
        sites=every.sites[rows],
        label_since=every.label_since[rows],
    )


def main(arguments: list[str]) -> int:
    """Print one row for each variant and seed; exit code 2 without the data."""
    parser = argparse.ArgumentParser(description="several networks as one, beside one network")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    if not options.data.exists():
        print(f"{options.data} is not there: name a PneumoniaMNIST .npz file with --data", file=sys.stderr)
        return 2
    with np.load(options.data, allow_pickle=False) as file:
        arrays = dict(file)
    every, val = cases(arrays, split="train"), cases(arrays, split="val")
    print("seed  members  epochs    AUROC  log-loss     ECE  sample-gradients  seconds")
    for seed in options.seeds:
        order = np.random.default_rng(seed).permutation(len(every.labels))
        learnt, chosen_on = some(every, order[:LEARNT]), some(every, order[LEARNT : LEARNT + CHOSEN_ON])
        for members, epochs in VARIANTS:
            protocol = protocol_of(f"full,members={members},epochs={epochs}")
            begun = time.monotonic()
            made = train.fit(learnt, chosen_on, protocol=protocol, strategy="full", seed=seed)
            seconds = time.monotonic() - begun
            scores = predict.Model(made.module, made.metadata).scores(val.images)
            truth, loss = val.labels == 1, float(-np.log(scores[np.arange(len(scores)), val.labels]).mean())
            print(
                f"{seed:>4}  {members:>7}  {epochs:>6}  {auroc(truth, scores[:, 1]):>7.4f}  {loss:>8.4f}"
                f"  {ece(truth, scores[:, 1]):>6.4f}  {made.metadata['sample_gradients']:>16,}  {seconds:>7.0f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
