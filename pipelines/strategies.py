"""From what a candidate starts, and which cases it sees how often: `full`, `finetune`, `replay`.

Invariant: a plan is a pure function of the training rows, the champion's dataset number and the recipe, and says the
cost before it is paid: its sample-gradients do not grow with the archive for an update.

* `full` starts from nothing and sees every case, each class as often as the other.
* `finetune` starts from the champion and sees only what is new since the champion's dataset version.
* `replay` starts from the champion; each batch is part new cases, part archive, the archive drawn evenly over
  (site, class), so that a small site is rehearsed as much as a large one.

Reference: Prabhu et al., CVPR 2023 (uniform rehearsal under a compute budget); Ibrahim et al., TMLR 2024 (re-warm,
re-decay, replay); the budget and rates are those of docs/learning-log.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from pipelines.protocol import Recipe
from pipelines.types import Strategy

SMALLEST_STRATUM = 8
"""A (site, class) with fewer cases is treated as this large: one case is not rehearsed dozens of times."""
LARGEST_COST = 0.5
"""An update costs at most this share of a training from nothing, in sample-gradients."""
FEWEST_STEPS = 16
"""Batches an epoch, as far as batches of 16 allow: small data sets get smaller batches rather than too few steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rows of the training split to draw from, the chance of each, and how many draws an epoch takes."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One training run, decided before it starts."""

    start: Literal["nothing", "champion"]
    pools: tuple[Pool, ...]
    epochs: int
    batch_size: int
    peak_learning_rate: float
    warm_up_share: float = 0.1
    final_share: float = 0.02
    """The learning rate ends, after a cosine, at this share of its peak."""
    notes: tuple[str, ...] = ()

    @property
    def draws(self) -> int:
        """Sample-gradients of one epoch."""
        return sum(pool.draws for pool in self.pools)

    @property
    def sample_gradients(self) -> int:
        """Sample-gradients of the whole run: its cost."""
        return self.draws * self.epochs


def plan(
    strategy: Strategy,
    *,
    labels: NDArray[np.int64],
    sites: NDArray[Any],
    label_since: NDArray[np.int64],
    base_number: int | None,
    recipe: Recipe,
) -> Plan:
    """Plan a run over the training split: `labels`, `sites`, `label_since` (N,), one entry a case.

    `base_number` is the dataset version the champion was trained on, None if there is no champion to start from. A case
    is new if it has had its label only since a later version, so a corrected label counts as new. Without a champion,
    or without anything new, every strategy is `full`, and the plan's notes say so.
    """
    notes: list[str] = []
    new = np.flatnonzero(label_since > base_number) if base_number is not None else np.arange(0)
    if strategy != "full" and base_number is None:
        notes.append(f"{strategy}: no champion to start from, trained from nothing on every case")
    elif strategy != "full" and len(new) == 0:
        notes.append(f"{strategy}: no case is new since dataset version {base_number}, trained from nothing")
    if strategy == "full" or notes:
        every = _pool(np.arange(len(labels)), strata=labels, draws=len(labels))
        return Plan(
            start="nothing",
            pools=(every,),
            epochs=recipe.epochs,
            batch_size=_batch_size(every.draws, recipe=recipe),
            peak_learning_rate=recipe.learning_rate,
            notes=tuple(notes),
        )
    if strategy == "finetune":
        pools: tuple[Pool, ...] = (_pool(new, strata=labels[new], draws=len(new)),)
    elif strategy == "replay":
        pools = _rehearsal(new, labels=labels, sites=sites, recipe=recipe)
    else:
        assert_never(strategy)
    wanted = recipe.update_epochs * sum(pool.draws for pool in pools)
    affordable = LARGEST_COST * recipe.epochs * len(labels) / wanted
    pools = tuple(replace(pool, draws=max(1, int(pool.draws * min(1.0, affordable)))) for pool in pools)
    return Plan(
        start="champion",
        pools=pools,
        epochs=recipe.update_epochs,
        batch_size=_batch_size(sum(pool.draws for pool in pools), recipe=recipe),
        peak_learning_rate=recipe.learning_rate / 2.0,
    )


def epoch_order(pools: tuple[Pool, ...], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one epoch: rows (draws,) of the training split, the pools mixed evenly from the first batch to the last.

    Systematic sampling: a row expected k.f times comes k or k + 1 times, in random order.
    """
    drawn, keys = [], []
    for pool in pools:
        ladder = np.cumsum(pool.weights / pool.weights.sum())
        steps = (np.arange(pool.draws) + rng.random()) / pool.draws
        picks = np.minimum(np.searchsorted(ladder, steps, "right"), len(pool.rows) - 1)
        drawn.append(rng.permutation(pool.rows[picks]))
        keys.append((np.arange(pool.draws) + rng.random(pool.draws)) / pool.draws)
    return np.concatenate(drawn)[np.argsort(np.concatenate(keys), kind="stable")]


def _rehearsal(
    new: NDArray[np.int64], *, labels: NDArray[np.int64], sites: NDArray[Any], recipe: Recipe
) -> tuple[Pool, ...]:
    archive = np.setdiff1d(np.arange(len(labels)), new)
    fresh = _pool(new, strata=labels[new], draws=len(new))
    if len(archive) == 0 or recipe.replay_share == 0.0:
        return (fresh,)
    _, site_codes = np.unique(sites[archive].astype(str), return_inverse=True)
    strata = site_codes * (int(labels.max()) + 1) + labels[archive]
    if recipe.replay_share == 1.0:
        return (_pool(archive, strata=strata, draws=len(new)),)
    draws = round(len(new) * recipe.replay_share / (1.0 - recipe.replay_share))
    return (fresh, _pool(archive, strata=strata, draws=max(1, draws)))


def _pool(rows: NDArray[np.int64], *, strata: NDArray[np.int64], draws: int) -> Pool:
    """Draw evenly over strata (N,), and within each over its rows."""
    _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return Pool(rows=rows, weights=1.0 / np.maximum(counts, SMALLEST_STRATUM)[inverse], draws=draws)


def _batch_size(draws: int, *, recipe: Recipe) -> int:
    return min(recipe.batch_size, max(16, draws // FEWEST_STEPS))
