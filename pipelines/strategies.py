"""From what a candidate starts, which cases it sees how often, and what else holds it: a small plan a strategy.

Invariant: a plan is a pure function of the training rows, the champion's dataset number and the recipe, and says the
cost before it is paid, in sample-gradients (one case forwards and backwards; a case shown to the teacher only, or only
for BatchNorm, counts a third). Only `ewc` needs more of the last model than its weights; N is the size of the training
split, n that of what is new since the champion's dataset version, E and U the recipe's `epochs` and `update_epochs`.

| strategy | starts from | sees | sample-gradients |
|---|---|---|---|
| `full` | nothing | everything, classes evenly: the reference and the first model | E N |
| `auto` | champion | everything, (site, class) evenly, at least a quarter of it new [8] | .21 E min(N, 6 n) |
| `warm` | champion | everything, (site, class) evenly [1] | 3 N |
| `replay` | champion | half new, half archive, (site, class) evenly [2, 3] | 2 U n |
| `derpp` | champion | the same with 200 kept cases, held to the champion's logits on them [4] | 2⅓ U n |
| `gdumb` | nothing | 500 kept cases, (site, class) evenly [5] | 500 E |
| `lwf` | champion | what is new, held to the champion's answers on it; needs no old image [6] | 1⅓ U n |
| `ewc` | champion | what is new, each weight held as it mattered before; needs no old image [10] | U n + 256 |
| `interpolate` | champion | what is new; then halfway back to the champion [7] | U n |
| `analytic` | champion | everything once, forwards; only the last layer is solved anew [9] | N / 3 |
| `finetune` | champion | what is new: the lower bound, never promoted | U n |

[1] TiC-CLIP, Garg et al., ICLR 2024. [2] Prabhu et al., CVPR 2023. [3] Ibrahim et al., TMLR 2024: re-warm, re-decay.
[4] DER++, Buzzega et al., NeurIPS 2020. [5] Prabhu et al., ECCV 2020. [6] Li and Hoiem, ECCV 2016. [7] WiSE-FT,
Wortsman et al., CVPR 2022, with BatchNorm re-estimated. [8] Found by measurement: docs/decisions/0013.
[9] ACIL, Zhuang et al., NeurIPS 2022: for new classes, and sites without a fast machine. [10] Kirkpatrick et al.,
PNAS 2017; its Fisher information lies beside the weights, by digest (`pipelines.consolidate`).

DER++ here asks the champion for its logits at each update, instead of keeping those of the day a case came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import several
from pipelines.recipe import Recipe
from pipelines.types import Strategy

SMALLEST_STRATUM = 8
"""A (site, class) with fewer cases is treated as this large: one case is not rehearsed dozens of times."""
LARGEST_COST = 0.5
"""An update costs at most this share of a training from nothing, in sample-gradients."""
FEWEST_STEPS = 16
"""Batches an epoch, as far as batches of 16 allow: small data sets get smaller batches rather than too few steps."""
UPDATE_STEPS = 80
"""Batches of a whole update, in the same sense: few long epochs are no reason for fewer steps."""
WARM_EPOCHS = 3
FORWARD_ONLY = 1.0 / 3.0
"""What a case costs that is only looked at, in sample-gradients: a backward pass costs about two forward passes."""
AUTO_COST, AUTO_ARCHIVE, AUTO_NEW, AUTO_EPOCHS = 0.2125, 6, 0.25, 4
"""`auto`: its cost as a share of a training from nothing, the archive that still raises it (in times of what is new),
the least share of new cases, and in how many epochs it looks at tune."""
ANALYTIC_RIDGE = 1e-3
EWC_STRENGTH = 300.0
"""Bayes' rule asks for 1 (Laplace's approximation), which holds hardly anything; found by measurement, learning log."""
FISHER_CASES = 256
"""Cases by which it is measured how much each weight matters, a gradient each."""
DERPP_MEMORY, GDUMB_MEMORY = 200, 500
"""Cases kept by the two strategies for small memories."""
BLEND_CASES = 512
"""Cases looked at to re-estimate BatchNorm, drawn over (site, class) evenly."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Rows of the training split to draw from, the chance of each, and how many draws an epoch takes."""

    rows: Rows
    weights: NDArray[np.float64]
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """The champion as teacher: `weight` times the distance of the network's answers from its own is added to the loss.

    `distance` is cross-entropy between softened answers, or the mean square between logits. `pools` says for cases of
    which pools.
    """

    weight: float
    distance: Literal["answers", "logits"]
    pools: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blending:
    """Mixtures of candidate and champion weights to choose from on tune, by the candidate's share; 1 is it alone.

    BatchNorm is re-estimated for each mixture on the cases that `pool` draws.
    """

    shares: tuple[float, ...]
    pool: Pool


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
    teaching: Teaching | None = None
    blending: Blending | None = None
    elastic: float | None = None
    """Not None: each weight is held to the champion's by this much times its Fisher information, summed over cases."""
    consolidates: Pool | None = None
    """Cases, drawn after the last epoch, by which the Fisher information is measured that the next update may need."""
    carries: bool = False
    """Whether that is added to what the champion brings: not where all old cases are measured again."""
    ridge: float | None = None
    """Not None: nothing is learned, and the last layer is solved on one epoch's draws with this penalty."""
    members: int = 1
    """Networks that learn side by side, each from every draw."""
    notes: tuple[str, ...] = ()

    @property
    def draws(self) -> int:
        """Cases drawn in one epoch."""
        return sum(pool.draws for pool in self.pools)

    @property
    def sample_gradients(self) -> int:
        """Sample-gradients of the whole run: its cost."""
        looked_at = 0 if self.teaching is None else sum(self.pools[k].draws for k in self.teaching.pools) * self.epochs
        if self.ridge is not None:
            looked_at += self.draws
        if self.blending is not None:
            looked_at += self.blending.pool.draws * len(self.blending.shares)
        measured = 0 if self.consolidates is None else self.consolidates.draws
        return self.members * (self.draws * self.epochs + measured + round(FORWARD_ONLY * looked_at))

    @property
    def batches(self) -> int:
        """Batches an epoch, all within one of the same size: BatchNorm never meets a leftover of one."""
        return max(1, min(round(self.draws / self.batch_size), self.draws // 2))

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, … of the whole run: a linear warm-up, then a cosine."""
        steps = self.batches * self.epochs
        warm_up = max(1.0, self.warm_up_share * steps)
        if step + 1 < warm_up:
            return self.peak_learning_rate * (step + 1) / warm_up
        done = (step + 1 - warm_up) / max(1.0, steps - warm_up)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.peak_learning_rate * (self.final_share + (1.0 - self.final_share) * cosine)

    @property
    def taught(self) -> Rows:
        """Rows of the training split on which the champion is the teacher."""
        pools = () if self.teaching is None else self.teaching.pools
        return np.concatenate([np.arange(0), *(self.pools[k].rows for k in pools)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a plan is made from: labels and strata (N,) of the training split, rows that are new, and the archive's."""

    labels: Rows
    strata: Rows
    """(N,) number of the (site, class) of each case."""
    weights: NDArray[np.float64]
    """(N,) how often a case is drawn, beside others of its stratum."""
    new: Rows
    archive: Rows
    recipe: Recipe


def plan(
    strategy: Strategy,
    *,
    labels: NDArray[Any],
    sites: NDArray[Any],
    label_since: NDArray[np.int64],
    base_number: int | None,
    recipe: Recipe,
    weights: NDArray[np.float64] | None = None,
) -> Plan:
    """Plan a run over the training split: `labels`, `sites`, `label_since` (N,), one entry a case.

    Of `labels` (N, K) bool, several findings a case, the rarest that it has is what it is drawn by.

    `weights` (N,) above 0 say how often a case is drawn beside others of its stratum; all alike if None.

    `base_number` is the dataset version the champion was trained on, None if there is no champion to start from. A case
    is new if it has had its label only since a later version, so a corrected label counts as new. Without a champion,
    or without anything new, every strategy is `full`, and the plan's notes say so.
    """
    labels = labels if labels.ndim == 1 else several.rarest(labels)
    new = np.flatnonzero(label_since > base_number) if base_number is not None else np.arange(0)
    _, site_codes = np.unique(sites.astype(str), return_inverse=True)
    known = Known(
        labels=labels,
        strata=site_codes * (int(labels.max()) + 1) + labels,
        weights=np.ones(len(labels)) if weights is None else weights,
        new=new,
        archive=np.setdiff1d(np.arange(len(labels)), new),
        recipe=recipe,
    )
    notes: tuple[str, ...] = ()
    if strategy != "full" and base_number is None:
        notes = (f"{strategy}: no champion to start from, trained from nothing on every case",)
    elif strategy != "full" and len(new) == 0:
        notes = (f"{strategy}: no case is new since dataset version {base_number}, trained from nothing",)
    planned = replace(_full(known), notes=notes) if notes else PLANS[strategy](known)
    planned = replace(planned, members=recipe.members)
    return _consolidating(planned, known=known) if "ewc" in (strategy, *recipe.declared) else planned


def epoch_order(pools: tuple[Pool, ...], *, rng: np.random.Generator) -> Rows:
    """Draw one epoch: rows (draws,) of the training split, the pools mixed evenly from the first batch to the last.

    Systematic sampling from a shuffled pool: a row expected k.f times comes k or k + 1 times, in random order.
    """
    drawn, keys = [], []
    for pool in pools:
        places = rng.permutation(len(pool.rows))  # else weights that repeat themselves could meet the steps' rhythm
        ladder = np.cumsum(pool.weights[places] / pool.weights.sum())
        steps = (np.arange(pool.draws) + rng.random()) / pool.draws
        picks = places[np.minimum(np.searchsorted(ladder, steps, "right"), len(places) - 1)]
        drawn.append(rng.permutation(pool.rows[picks]))
        keys.append((np.arange(pool.draws) + rng.random(pool.draws)) / pool.draws)
    return np.concatenate(drawn)[np.argsort(np.concatenate(keys), kind="stable")]


def _full(known: Known) -> Plan:
    return _from_nothing(np.arange(len(known.labels)), strata=known.labels, known=known)


def _gdumb(known: Known) -> Plan:
    kept = _memory(np.arange(len(known.labels)), strata=known.strata, size=GDUMB_MEMORY)
    return _from_nothing(kept, strata=known.strata, known=known)


def _finetune(known: Known) -> Plan:
    return _update((_fresh(known),), epochs=known.recipe.update_epochs, known=known)


def _interpolate(known: Known) -> Plan:
    return replace(_finetune(known), blending=_blending(known, shares=(0.5,)))


def _lwf(known: Known) -> Plan:
    return replace(_finetune(known), teaching=Teaching(weight=1.0, distance="answers", pools=(0,)))


def _ewc(known: Known) -> Plan:
    return replace(_finetune(known), elastic=EWC_STRENGTH / len(known.new))


def _replay(known: Known) -> Plan:
    return _update(_rehearsal(known, archive=known.archive), epochs=known.recipe.update_epochs, known=known)


def _derpp(known: Known) -> Plan:
    kept = _memory(known.archive, strata=known.strata[known.archive], size=DERPP_MEMORY)
    pools = _rehearsal(known, archive=kept)
    planned = _update(pools, epochs=known.recipe.update_epochs, known=known)
    if len(kept) == 0 or known.recipe.replay_share == 0.0:  # no old case is drawn to be held to the champion's logits
        return planned
    return replace(planned, teaching=Teaching(weight=0.5, distance="logits", pools=(len(pools) - 1,)))


def _auto(known: Known) -> Plan:
    stored = min(len(known.labels), AUTO_ARCHIVE * len(known.new))
    draws = max(2, round(AUTO_COST * known.recipe.epochs * stored / AUTO_EPOCHS))
    every = _pool(np.arange(len(known.labels)), strata=known.strata, draws=draws, known=known)
    share = every.weights[known.new].sum() / every.weights.sum()  # of new cases, where all are drawn evenly
    if len(known.archive) == 0 or share >= AUTO_NEW:
        return _update((every,), epochs=AUTO_EPOCHS, known=known)
    fresh = replace(_fresh(known), draws=max(1, round(AUTO_NEW * draws)))
    rehearsed = _pool(known.archive, strata=known.strata, draws=draws - fresh.draws, known=known)
    return _update((fresh, rehearsed), epochs=AUTO_EPOCHS, known=known)


def _warm(known: Known) -> Plan:
    every = _pool(np.arange(len(known.labels)), strata=known.strata, draws=len(known.labels), known=known)
    return _update((every,), epochs=WARM_EPOCHS, known=known)


def _analytic(known: Known) -> Plan:
    every = _pool(np.arange(len(known.labels)), strata=known.strata, draws=len(known.labels), known=known)
    return replace(_update((every,), epochs=1, known=known), epochs=0, ridge=ANALYTIC_RIDGE)


PLANS: Mapping[Strategy, Callable[[Known], Plan]] = {
    "full": _full,
    "auto": _auto,
    "warm": _warm,
    "replay": _replay,
    "derpp": _derpp,
    "gdumb": _gdumb,
    "lwf": _lwf,
    "ewc": _ewc,
    "interpolate": _interpolate,
    "analytic": _analytic,
    "finetune": _finetune,
}
"""How each strategy plans, given a champion and something new."""


def _from_nothing(rows: Rows, *, strata: Rows, known: Known) -> Plan:
    pool = _pool(rows, strata=strata, draws=len(rows), known=known)
    return Plan(
        start="nothing",
        pools=(pool,),
        epochs=known.recipe.epochs,
        batch_size=_batch_size(pool.draws, recipe=known.recipe),
        peak_learning_rate=known.recipe.learning_rate,
    )


def _update(pools: tuple[Pool, ...], *, epochs: int, known: Known) -> Plan:
    """A run from the champion, at half the peak rate and no more than its share of a training from nothing."""
    recipe = known.recipe
    wanted = epochs * sum(pool.draws for pool in pools)
    affordable = LARGEST_COST * recipe.epochs * len(known.labels) / wanted
    pools = tuple(replace(pool, draws=max(1, int(pool.draws * min(1.0, affordable)))) for pool in pools)
    drawn = sum(pool.draws for pool in pools)
    return Plan(
        start="champion",
        pools=pools,
        epochs=epochs,
        batch_size=_batch_size(drawn, epochs * drawn / UPDATE_STEPS, recipe=recipe),
        peak_learning_rate=recipe.learning_rate / 2.0,
    )


def _fresh(known: Known) -> Pool:
    return _pool(known.new, strata=known.labels, draws=max(2, len(known.new)), known=known)  # BatchNorm needs two


def _rehearsal(known: Known, *, archive: Rows) -> tuple[Pool, ...]:
    """What is new, and beside it the archive in the recipe's share; only one of the two where that is 0 or 1."""
    share, fresh = known.recipe.replay_share, _fresh(known)
    if len(archive) == 0 or share == 0.0:
        return (fresh,)
    draws = fresh.draws if share == 1.0 else max(1, round(fresh.draws * share / (1.0 - share)))
    rehearsed = _pool(archive, strata=known.strata, draws=draws, known=known)
    return (rehearsed,) if share == 1.0 else (fresh, rehearsed)


def _blending(known: Known, *, shares: tuple[float, ...]) -> Blending:
    every = np.arange(len(known.labels))
    pool = _pool(every, strata=known.strata, draws=min(BLEND_CASES, len(every)), known=known)
    return Blending(shares=shares, pool=pool)


def _consolidating(planned: Plan, *, known: Known) -> Plan:
    """The plan, and how much each weight matters measured afterwards, on what it has learned from."""
    rows = np.unique(np.concatenate([pool.rows for pool in planned.pools]))
    pool = _pool(rows, strata=known.strata, draws=min(FISHER_CASES, len(rows)), known=known)
    again = len(known.archive) > 0 and bool(np.isin(known.archive, rows).all())
    return replace(planned, consolidates=pool, carries=planned.start == "champion" and not again)


def _memory(rows: Rows, *, strata: Rows, size: int) -> Rows:
    """Keep `size` of `rows` (N,), as evenly over their strata (N,) as these allow: the newest of each."""
    _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    rank = np.empty(len(rows), dtype=np.int64)
    for stratum, count in enumerate(counts):
        rank[inverse == stratum] = np.arange(count)[::-1]
    return np.sort(rows[np.lexsort((rows, rank))[:size]])


def _pool(rows: Rows, *, strata: Rows, draws: int, known: Known) -> Pool:
    """Draw from `rows`, evenly over `strata` (N,) that are not too small, and within each by the cases' weights."""
    weights = known.weights[rows]
    _, inverse, cases = np.unique(strata[rows], return_inverse=True, return_counts=True)
    mass = np.bincount(inverse, weights=weights) / np.minimum(1.0, cases / SMALLEST_STRATUM)
    return Pool(rows=rows, weights=weights / mass[inverse], draws=draws)


def _batch_size(draws: int, most: float = math.inf, *, recipe: Recipe) -> int:
    return int(min(recipe.batch_size, max(16, min(draws // FEWEST_STEPS, most))))
