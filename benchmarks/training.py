"""What the training loop costs beside a bare one, and what an update costs as the archive grows.

`overhead`: the same network, images, labels, batches and optimiser, trained by `pipelines.train.fit` and by the ten
lines below, in turns within one run; without augmentation on either side, tune kept to a few cases, for they are not
what is compared. What only we do counts as ours: the average of the weights, the look at tune, repeatable sums, a
progress row an epoch. What comes before the first batch and after the last epoch is a row of its own. `archive`: one
`auto` update with 640 new cases beside an archive of 1 to 100 times as many.

    OMP_NUM_THREADS=1 python -m benchmarks.training [overhead] [archive] [--rounds N] [--images N] [--largest TIMES]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.pneumonia import DATA, cases
from benchmarks.stream import PLAIN
from pipelines import network, strategies, train
from pipelines.protocol import Protocol, from_document, parse

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, NEW = 3, 640
ARCHIVES = (1, 3, 10, 30, 100)


def bare(data: train.Cases, *, protocol: Protocol, seed: int, batches: int) -> float:
    """Train with nothing around it, in so many batches an epoch; returns seconds an epoch."""
    torch.manual_seed(seed)
    module = network.build(network.architecture_for(protocol)).train().to(memory_format=torch.channels_last)
    recipe = protocol.recipe
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    rng = np.random.default_rng(seed)
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        order = rng.permutation(len(data.labels))
        for rows in np.array_split(order, batches):
            images = torch.from_numpy(data.images[rows]).to(memory_format=torch.channels_last)
            loss = functional.cross_entropy(module(images), torch.from_numpy(data.labels[rows]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return (time.perf_counter() - begun) / EPOCHS


def ours(data: train.Cases, tune: train.Cases, *, protocol: Protocol, seed: int, around: list[float]) -> float:
    """Train by `train.fit`; returns seconds an epoch, and adds to `around` those before and after all epochs."""
    begun = time.perf_counter()
    trained = train.fit(data, tune, protocol=protocol, strategy="full", seed=seed)
    epochs = float(sum(row["seconds"] for row in trained.history))
    around.append(time.perf_counter() - begun - epochs)
    return epochs / EPOCHS


def measure_overhead(every: train.Cases, *, rounds: int) -> None:
    """Print seconds an epoch of both, and the ratio's median and range."""
    protocol = _protocol(epochs=EPOCHS, augment=False)
    tune = _some(every, np.arange(64))
    few = _some(every, np.arange(128))
    batches = strategies.plan(
        "full",
        labels=every.labels,
        sites=every.sites,
        label_since=every.label_since,
        base_number=None,
        recipe=protocol.recipe,
    ).batches
    bare(few, protocol=protocol, seed=0, batches=2)  # imports, and the kernels' first use, are nobody's
    ours(few, tune, protocol=protocol, seed=0, around=[])
    pairs: list[list[float]] = []
    around: list[float] = []
    for seed in range(rounds):
        sides = [
            lambda: bare(every, protocol=protocol, seed=seed, batches=batches),  # noqa: B023 - called in this round
            lambda: ours(every, tune, protocol=protocol, seed=seed, around=around),  # noqa: B023
        ]
        turns = [(which, sides[which]()) for which in ((0, 1) if seed % 2 else (1, 0))]
        pairs.append([value for _, value in sorted(turns)])
    ratios = [mine / theirs for theirs, mine in pairs]
    print(f"\n{len(every.labels):,} images of 28 × 28, small_cnn, {batches} batches an epoch, one thread\n")
    print("| | bare loop | train.fit | ratio: median (lowest to highest) | n |\n|---|---|---|---|---|")
    theirs, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
    spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"| s an epoch | {theirs:.2f} | {mine:.2f} | {spread} | {rounds} |")
    print(f"| s before and after the epochs | | {statistics.median(around):.2f} | | {rounds} |", flush=True)


def measure_archive(every: train.Cases, *, largest: int) -> None:
    """Print what one `auto` update costs beside archives of growing size."""
    protocol = _protocol(randomise=0.5)
    rng = np.random.default_rng(0)
    tune = _some(every, rng.choice(len(every.labels), 128, replace=False))
    first = train.fit(_some(every, np.arange(NEW)), tune, protocol=_protocol(epochs=2), strategy="full", seed=0)
    print("\n| archive, cases | sample-gradients | planning, s | epochs, s | s for 1,000 sample-gradients | whole, s |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = network.save_weights(first.module)
        weights = Path(folder) / "champion.safetensors"
        weights.write_bytes(data)
        base = train.Base(
            weights=weights,
            weights_digest=network.digest_of_bytes(data),
            architecture=network.from_document(first.metadata["architecture"]),
            dataset_number=1,
        )
        for times in (times for times in ARCHIVES if times <= largest):
            both = _some(every, rng.integers(0, len(every.labels), NEW * (times + 1)), new=NEW)
            begun = time.perf_counter()
            plan = strategies.plan(
                "auto",
                labels=both.labels,
                sites=both.sites,
                label_since=both.label_since,
                base_number=1,
                recipe=protocol.recipe,
            )
            for epoch in range(plan.epochs):
                strategies.epoch_order(plan.pools, rng=np.random.default_rng(epoch))
            planning = time.perf_counter() - begun
            begun = time.perf_counter()
            trained = train.fit(both, tune, protocol=protocol, strategy="auto", seed=1, base=base)
            whole = time.perf_counter() - begun
            seconds = trained.metadata["seconds"]
            cost = plan.sample_gradients
            print(
                f"| {NEW * times:,} | {cost:,} | {planning:.3f} | {seconds:.1f} | {seconds / cost * 1000:.2f} "
                f"| {whole:.1f} |",
                flush=True,
            )


def main(arguments: list[str]) -> int:
    """Measure what was asked for, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[[], "overhead", "archive"])
    parser.add_argument("--data", type=Path, default=DATA, help="a PneumoniaMNIST .npz file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="of the overhead, at most so many [default: all 4,708]")
    parser.add_argument("--largest", type=int, default=ARCHIVES[-1], help="of the archives, in times of what is new")
    options = parser.parse_args(arguments)
    if not options.data.exists():
        print(f"{options.data} is not there: name a PneumoniaMNIST .npz file with --data", file=sys.stderr)
        return 2
    with np.load(options.data, allow_pickle=False) as file:
        every = cases(dict(file), split="train")
    torch.set_num_threads(1)
    if "overhead" in options.sections or not options.sections:
        some = _some(every, np.arange(min(options.images or len(every.labels), len(every.labels))))
        measure_overhead(some, rounds=options.rounds)
    if "archive" in options.sections or not options.sections:
        measure_archive(every, largest=options.largest)
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


def _protocol(**changes: Any) -> Protocol:
    text = (ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml").read_text(encoding="utf-8")
    document = parse(text).document()
    return from_document({**document, "recipe": {**document["recipe"], **PLAIN, **changes}})


def _some(every: train.Cases, rows: Any, *, new: int = 0) -> train.Cases:
    """Cases of these rows, the last `new` of them new in version 2."""
    since = np.ones(len(rows), dtype=np.int64)
    since[len(rows) - new :] += 1 if new else 0
    return train.Cases(images=every.images[rows], labels=every.labels[rows], sites=every.sites[rows], label_since=since)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
