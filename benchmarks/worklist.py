"""Does it pay to choose what is confirmed next? Arms of the worklist against random, in rounds, on six sites.

A champion knows 200 cases of site A. The pool is half of what all six sites of the stream bring. Each round an arm
names 100 cases, they are confirmed, and a model is trained from nothing on all that is confirmed (a fifth of it chooses
epoch and temperature), for eight epochs. Measured after each round: AUROC on three tenths of the official test set as
each site would have taken it, mean over sites and worst site. Pool, first cases, lots and training seed are the same
for every arm of a seed, so differences are paired.

    OMP_NUM_THREADS=1 nice -n 19 python -m benchmarks.worklist --out FILE.jsonl [--seeds 0 1 2] [--arms random ...]
    python -m benchmarks.worklist --out FILE.jsonl --report
    python -m benchmarks.worklist --speed

Seeds and arms that FILE.jsonl holds already are passed over, so that it may be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stream import protocol_of
from pipelines import chest_xrays, embed, predict, sites, train, worklist
from pipelines.arms import Opinion, Pool, Shares
from pipelines.metrics import auroc
from pipelines.protocol import Protocol

ROOT = Path(__file__).resolve().parent.parent
FIRST, ROUND, ROUNDS, EPOCHS = 200, 100, 3, 8
POOL_SHARE = 0.5
"""Of what each site brings in the stream."""
SEALED_SHARE = 0.3
"""Of the official test set, in each of its six shapes."""
LEVELS = (0.85, 0.88, 0.90)
ARMS: dict[str, Shares] = {
    "random": worklist.RANDOM,
    "uncertain": Shares(uncertain=1.0),
    "diverse": Shares(diverse=1.0),
    "coverage": Shares(coverage=1.0),
    "unlike": Shares(unlike=1.0),
    "combined": worklist.LEARNING,
    "stratified": Shares(coverage=0.8, random=0.2),
}


class World:
    """One seed: who confirms what is in the pool, and what the models are measured on."""

    def __init__(self, *, seed: int) -> None:
        dealt = sites.deal(chest_xrays.find(cache=ROOT / ".cache"), seed=seed)
        rng = np.random.default_rng([seed, 7])
        self.images = np.concatenate([_scaled(site.train_images) for site in dealt.values()])
        self.labels = np.concatenate([site.train_labels for site in dealt.values()])
        self.sites = np.repeat(list(dealt), [len(site.train_labels) for site in dealt.values()])
        self.lots = rng.random(len(self.labels))
        self.first = rng.permutation(np.flatnonzero(self.sites == "A"))[:FIRST]
        self.chooses = rng.random(len(self.labels)) < 0.2  # epoch and temperature; a case never changes sides
        self.champion: predict.Model | None = None
        self.pool = np.flatnonzero(rng.random(len(self.labels)) < POOL_SHARE)
        tested = len(dealt["A"].test_labels)
        rows = np.sort(np.random.default_rng(0).permutation(tested)[: round(tested * SEALED_SHARE)])
        self.sealed = {name: (_scaled(site.test_images[rows]), site.test_labels[rows]) for name, site in dealt.items()}


def run(world: World, shares: Shares, *, protocol: Protocol, seed: int, wait: Path | None) -> list[dict[str, Any]]:
    """Confirm round by round as `shares` ask; returns a row for each round, the champion's first."""
    confirmed, rows, before = world.first, [], None
    for number in range(ROUNDS + 1):
        while wait is not None and wait.exists():
            time.sleep(5)
        if number == 0 and world.champion is not None:
            model = world.champion
        else:
            model = _trained(world, confirmed, protocol=protocol, seed=seed)
        world.champion = world.champion or model  # the first is the same for every arm
        by_site = {
            name: auroc(labels == 1, model.scores(images)[:, 1]) for name, (images, labels) in world.sealed.items()
        }
        rows.append({
            "confirmed": len(confirmed), "mean": float(np.mean(list(by_site.values()))), "worst": min(by_site.values()),
            "by_site": by_site, "sites": dict(Counter(world.sites[confirmed].tolist())),
            "pneumonia": float((world.labels[confirmed] == 1).mean()),
        })  # fmt: skip
        if number < ROUNDS:
            chosen = _chosen(world, confirmed, shares, model=model, before=before)
            confirmed, before = np.concatenate([confirmed, chosen]), model
    return rows


def _chosen(
    world: World, confirmed: NDArray[np.int64], shares: Shares, *, model: predict.Model, before: predict.Model | None
) -> NDArray[np.int64]:
    left = np.setdiff1d(world.pool, confirmed)
    if shares == worklist.RANDOM:
        return left[np.argsort(world.lots[left])][:ROUND]  # as `rank` would, and no model need look
    scores, embeddings = embed.look(model, world.images[left])
    second = None if before is None else before.scores(world.images[left])
    pool = Pool(
        case_ids=left,
        sites=world.sites[left],
        age_days=np.zeros(len(left)),
        lots=world.lots[left],
        classes=model.classes,
        confirmed=Counter(world.sites[confirmed].tolist()),
        champion=Opinion(scores=scores, predicted=scores.argmax(axis=1)),
        second=None if second is None else Opinion(scores=second, predicted=second.argmax(axis=1)),
        embeddings=embeddings,
        known_embeddings=embed.look(model, world.images[confirmed])[1],
        known_sites=world.sites[confirmed],
    )
    return worklist.rank(pool, blind_fraction=0.0, shares=shares).case_ids[:ROUND]


def _trained(world: World, confirmed: NDArray[np.int64], *, protocol: Protocol, seed: int) -> predict.Model:
    choose = world.chooses[confirmed]
    parts = [
        train.Cases(
            images=world.images[rows],
            labels=world.labels[rows],
            sites=world.sites[rows],
            label_since=np.ones(len(rows), dtype=np.int64),
        )
        for rows in (np.sort(confirmed[~choose]), np.sort(confirmed[choose]))
    ]
    made = train.fit(parts[0], parts[1], protocol=protocol, strategy="full", seed=seed, threads=1)
    return predict.Model(made.module, made.metadata)


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables, and of each arm whether it beat random in the paired test."""
    runs = {(row["arm"], row["seed"]): row["rounds"] for row in rows}
    seeds = sorted({seed for _, seed in runs})
    for measure in ("mean", "worst"):
        print(f"\nSealed AUROC, {measure} of six sites, average of {len(seeds)} seeds\n")
        counts = [row["confirmed"] for row in next(iter(runs.values()))]
        print("| arm | " + " | ".join(map(str, counts)) + " | area | against random | p | wins |")
        print("|---|" + "---|" * (len(counts) + 4))
        for arm in dict.fromkeys(arm for arm, _ in runs):
            here = [seed for seed in seeds if (arm, seed) in runs and ("random", seed) in runs]
            curves = np.array([[row[measure] for row in runs[arm, seed]] for seed in here])
            base = np.array([[row[measure] for row in runs["random", seed]] for seed in here])
            apart = (curves - base)[:, 1:].mean(axis=1)
            p = "" if arm == "random" else f"{p_value(apart):.3f}"
            wins = "" if arm == "random" else f"{int((apart > 0).sum())} of {len(here)}"
            cells = " | ".join(f"{value:.3f}" for value in curves.mean(axis=0))
            print(f"| {arm} | {cells} | {curves[:, 1:].mean():.4f} | {apart.mean():+.4f} | {p} | {wins} |")
            if measure == "mean" and arm != "random":
                print(f"    {arm}: {', '.join(f'{value:+.4f}' for value in apart)}", file=sys.stderr)
    print("\nConfirmed cases until the mean over sites first reaches a level (seeds that got there)\n")
    print("| arm | " + " | ".join(f"{level:.2f}" for level in LEVELS) + " |\n|---|" + "---|" * len(LEVELS))
    for arm in dict.fromkeys(arm for arm, _ in runs):
        cells = []
        for level in LEVELS:
            first = [_reached(runs[arm, seed], level) for seed in seeds if (arm, seed) in runs]
            there = [count for count in first if count is not None]
            cells.append(f"{np.mean(there):.0f} ({len(there)} of {len(first)})" if there else f"- (0 of {len(first)})")
        print(f"| {arm} | " + " | ".join(cells) + " |")


def p_value(differences: NDArray[np.float64]) -> float:
    """The smallest alpha at which `worklist.earned` says yes, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2.0
        low, high = (low, middle) if worklist.earned(differences.tolist(), alpha=middle) else (middle, high)
    return high


def speed(*, n: int = 100_000, classes: int = 2) -> None:
    """Rank a pool of made-up cases with every arm at work."""
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    other = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    pool = Pool(
        case_ids=rng.permutation(n),
        sites=rng.choice([f"site-{k}" for k in range(6)], n),
        age_days=rng.random(n) * 100.0,
        lots=rng.random(n),
        classes=tuple(f"class-{k}" for k in range(classes)),
        confirmed={"site-0": 5000, "site-1": 12},
        champion=Opinion(scores=scores, predicted=scores.argmax(axis=1)),
        second=Opinion(scores=other, predicted=other.argmax(axis=1)),
        embeddings=rng.standard_normal((n, embed.WIDTH)).astype(np.float32),
        known_embeddings=rng.standard_normal((512, embed.WIDTH)).astype(np.float32),
        known_sites=rng.choice([f"site-{k}" for k in range(6)], 512),
    )
    every = Shares(random=0.2, uncertain=0.2, diverse=0.2, unlike=0.2, coverage=0.1, disagreement=0.1)
    for name, shares in {"every arm": every, "default": worklist.DEFAULT, "random": worklist.RANDOM}.items():
        begun = time.perf_counter()
        worklist.rank(pool, blind_fraction=0.05, shares=shares)
        print(f"{n:,} cases, {classes} classes, {name}: {time.perf_counter() - begun:.2f} s", flush=True)


def main(arguments: list[str]) -> int:
    """Measure what is not measured yet, then print the tables."""
    parser = argparse.ArgumentParser(description="arms of the worklist against random")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--report", action="store_true", help="print the tables of what is measured already")
    parser.add_argument("--speed", action="store_true", help="only how long the ranking of 100,000 cases takes")
    parser.add_argument("--wait", type=Path, help="pause while this file exists")
    options = parser.parse_args(arguments)
    if options.speed:
        speed()
        speed(classes=14)
        return 0
    if options.out is None:
        parser.error("--out FILE.jsonl is needed")
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    protocol = protocol_of(f"full,epochs={EPOCHS}")
    for seed in () if options.report else options.seeds:
        world = World(seed=seed)
        for arm in options.arms:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in known):
                continue
            begun = time.monotonic()
            rounds = run(world, ARMS[arm], protocol=protocol, seed=seed, wait=options.wait)
            row = {"arm": arm, "seed": seed, "seconds": round(time.monotonic() - begun, 1), "rounds": rounds}
            known.append(row)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"seed {seed} {arm}: {[round(one['mean'], 3) for one in rounds]} {row['seconds']} s", file=sys.stderr)
    report(known)
    return 0


def _reached(rounds: Sequence[Mapping[str, Any]], level: float) -> int | None:
    return next((int(row["confirmed"]) for row in rounds if row["mean"] >= level), None)


def _scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images[:, None].astype(np.float32) / np.float32(255.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
