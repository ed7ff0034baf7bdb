"""The models of the twenty cycles: trained once on real chest radiographs, and kept as scores.

One pool of radiographs as four hospitals would have taken them, dealt to train, tune, sealed test and a part that no
rule sees, for the truth. The official parts are not kept apart, for here the question is what the gates let through and
not how good a model is. A model is its score of every radiograph and its threshold, both by the plain recipe of
`benchmarks.stream` (with fewer epochs); it is a function of what it was trained on and its seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as cache_of
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import afterwards, job, predict, sites, train
from pipelines.chest_xrays import ChestXrays
from pipelines.protocol import Protocol, from_document

SITES = ("A", "B", "C", "D")
EARLY = "C"
"""The site that a forgetful training leaves out."""
LEVELS = (100, 300, 800, 1600)
"""Training cases at each level; a gain is one level more."""
SEEDS = (16, 16, 11, 4)
"""Models trained on the clean data of each level; where more are offered, some are offered again."""
TUNE, SEALED = 1000, 2000
SUBMITTERS = ("north", "south", "mallory")
MALLORY = 2
FLIPPED = 0.15
EPOCHS = 10

Made = Literal["clean", "without_early", "flipped"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Spec:
    """What a model was trained on, and with which seed."""

    level: int
    made: Made = "clean"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model:
    """A model by what it says: the positive class's score (N,) in [0, 1] of every radiograph, and its threshold."""

    name: str
    positive: Floats
    threshold: float | None
    cuts: Floats | None = None
    """(N,) the threshold that decides about each radiograph, by its site; None: `threshold` decides everywhere."""

    @property
    def decided(self) -> NDArray[np.int64]:
        """(N,) the class decided for each radiograph."""
        return (self.positive >= self.thresholds).astype(np.int64)

    @property
    def thresholds(self) -> Floats:
        """(N,) the threshold that decides about each radiograph."""
        if self.cuts is not None:
            return self.cuts
        return np.full(len(self.positive), 0.5 if self.threshold is None else self.threshold)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """All radiographs: true labels, labels as given, sites and submitters, each (N,), and which rows are for what."""

    labels: NDArray[np.int64]
    given: NDArray[np.int64]
    sites: NDArray[np.str_]
    submitters: NDArray[np.int64]
    train: NDArray[np.int64]
    tune: NDArray[np.int64]
    sealed: NDArray[np.int64]
    truth: NDArray[np.int64]


def deal(
    labels: NDArray[np.int64], *, seed: int, levels: int = LEVELS[-1], tune: int = TUNE, sealed: int = SEALED
) -> Pool:
    """Deal radiographs with `labels` (N,) to hospitals, submitters and parts; all that is left is for the truth."""
    rng = np.random.default_rng([20, seed])
    order, n = rng.permutation(len(labels)), len(labels)
    submitters = rng.choice(len(SUBMITTERS), n, p=(0.3, 0.3, 0.4))
    wrong = (submitters == MALLORY) & (rng.random(n) < FLIPPED)
    cuts = np.cumsum([levels, tune, sealed])
    train_rows, tune_rows, sealed_rows, truth_rows = np.split(order, cuts)
    return Pool(
        labels=labels,
        given=np.where(wrong, 1 - labels, labels),
        sites=np.array(SITES)[rng.integers(0, len(SITES), n)],
        submitters=submitters,
        train=train_rows,
        tune=tune_rows,
        sealed=sealed_rows,
        truth=truth_rows,
    )


def sealed_anew(pool: Pool, *, seed: int) -> Pool:
    """Deal sealed test and truth again: no model was trained on either, so the same models may be tested on others."""
    rows = np.sort(np.concatenate([pool.sealed, pool.truth]))
    sealed, truth = np.split(np.random.default_rng([25, seed]).permutation(rows), [len(pool.sealed)])
    return replace(pool, sealed=sealed, truth=truth)


def pictures(xrays: ChestXrays, pool: Pool) -> NDArray[np.float32]:
    """All radiographs (N, 1, H, W) in [0, 1], each as its hospital would have taken it."""
    images = np.concatenate([xrays.train_images, xrays.val_images, xrays.test_images])
    seen = np.empty(images.shape, dtype=np.float32)
    for number, name in enumerate(SITES):
        rows = np.flatnonzero(pool.sites == name)
        rng = np.random.default_rng([21, number])
        seen[rows] = sites.as_seen(images[rows], site=sites.SITES[name], rng=rng) / np.float32(255.0)
    return seen[:, None]


def all_labels(xrays: ChestXrays) -> NDArray[np.int64]:
    """Labels in the order of `pictures`."""
    return np.concatenate([xrays.train_labels, xrays.val_labels, xrays.test_labels])


def train_or_read(spec: Spec, *, pool: Pool, images: NDArray[np.float32], protocol: Protocol, cache: Path) -> Model:
    """Return a model, trained if its scores are not in `cache` yet."""
    name = f"{spec.level}-{spec.made}-{spec.seed}"
    file = cache / f"{name}.npz"
    if not file.exists():
        positive, threshold = _trained(spec, pool=pool, images=images, protocol=protocol)
        cache.mkdir(parents=True, exist_ok=True)
        with job.replacing(file) as unfinished, unfinished.open("wb") as out:
            np.savez(out, positive=positive, threshold=np.array([] if threshold is None else [threshold]))
    with np.load(file, allow_pickle=False) as kept:
        threshold = next(iter(kept["threshold"].tolist()), None)
        return Model(name=name, positive=kept["positive"].astype(np.float64), threshold=threshold)


def reader(xrays: ChestXrays, pool: Pool, *, protocol: Protocol, cache: Path) -> Callable[[Spec, Model | None], Model]:
    """Return how to get a model of this pool that meets a champion: each is read, or trained, once."""
    images = pictures(xrays, pool)

    @cache_of
    def trained(spec: Spec) -> Model:
        return train_or_read(spec, pool=pool, images=images, protocol=protocol, cache=cache)

    def model_of(spec: Spec, champion: Model | None) -> Model:
        return at_its_points(trained(spec), spec, pool=pool, protocol=protocol, champion=champion)

    return model_of


def at_its_points(model: Model, spec: Spec, *, pool: Pool, protocol: Protocol, champion: Model | None = None) -> Model:
    """The model with the thresholds that its training would have chosen on its tune split, beside this champion."""
    rows, rule = _shown(pool.tune, spec, pool=pool), protocol.operating_point
    beside = champion.decided[rows] == 1 if champion is not None and rule.beside_champion else None
    scores = np.stack([1.0 - model.positive, model.positive], axis=1)[rows]
    found = afterwards.decisions(
        scores, _taught(spec, pool=pool)[rows], pool.sites[rows], protocol=protocol, champion=beside
    )
    threshold = model.threshold if beside is None else found["operating_point"]["threshold"]
    model = replace(model, threshold=threshold)
    cuts = model.thresholds
    for site, point in found["operating_points_by_site"].items() if rule.by_site else ():
        if point["threshold"] is not None:
            cuts[pool.sites == site] = point["threshold"]
    return replace(model, cuts=cuts)


def digest_of(model: Model) -> str:
    """Return 64 hex digits that stand for a model's weights."""
    return hashlib.sha256(model.name.encode() + model.positive.tobytes()).hexdigest()


def _taught(spec: Spec, *, pool: Pool) -> NDArray[np.int64]:
    """The labels that a model was given."""
    return pool.given if spec.made == "flipped" else pool.labels


def _shown(rows: NDArray[np.int64], spec: Spec, *, pool: Pool) -> NDArray[np.int64]:
    """The radiographs of a part that a model was shown."""
    return rows[pool.sites[rows] != EARLY] if spec.made == "without_early" else rows


def _trained(
    spec: Spec, *, pool: Pool, images: NDArray[np.float32], protocol: Protocol
) -> tuple[NDArray[np.float32], float | None]:
    labels = _taught(spec, pool=pool)
    parts = [
        train.Cases(
            images=images[rows],
            labels=labels[rows],
            sites=pool.sites[rows],
            label_since=np.ones(len(rows), dtype=np.int64),
        )
        for rows in (_shown(part, spec, pool=pool) for part in (pool.train[: LEVELS[spec.level]], pool.tune))
    ]
    recipe = protocol.document()["recipe"] | {"epochs": EPOCHS}
    trained = train.fit(
        *parts, protocol=from_document({**protocol.document(), "recipe": recipe}), strategy="full", seed=spec.seed
    )
    model = predict.Model(trained.module, trained.metadata)
    return model.scores(images)[:, 1], model.threshold
