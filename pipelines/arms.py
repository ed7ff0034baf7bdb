"""The arms of the worklist: for each a reason to want a case confirmed, and the order it would ask in.

Invariant: an order is a pure function of a pool that is sorted by case id; equals go by case id.

References: Ash et al., ICLR 2020 (BADGE); Scheffer et al., IDA 2001 (margin); Sener and Savarese, ICLR 2018 (core-set);
Seung et al., COLT 1992 (disagreement).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines import diversity

Arm = Literal["blind", "random", "uncertain", "diverse", "unlike", "coverage", "disagreement"]
ARMS: tuple[Arm, ...] = get_args(Arm)

SHORTLIST = 4000
"""Arms that compare cases with each other look at so many of the most promising."""
PICKS = 1000
"""So many they pick; after these they go on by their plain order."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The share of each arm among the places that the blind arm leaves; they sum to 1.

    An arm that has nothing (left) to say gives its places to the others, in proportion.
    """

    random: float = 0.0
    uncertain: float = 0.0
    diverse: float = 0.0
    unlike: float = 0.0
    coverage: float = 0.0
    disagreement: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError where they are not shares of a whole."""
        values = asdict(self).values()
        if min(values) < 0.0 or abs(sum(values) - 1.0) > 1e-9:
            raise ValueError(f"shares are not below 0 and sum to 1, but these are {asdict(self)}")

    @property
    def ask_models(self) -> bool:
        """Whether an arm with a share wants to know what the champion says of the cases."""
        return self.uncertain + self.diverse + self.unlike + self.disagreement > 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opinion:
    """What one model says of the pool."""

    scores: NDArray[np.float32]
    """(N, K) in [0, 1], rows summing to 1."""
    predicted: NDArray[np.int64]
    """(N,) the class decided for, by arg-max or at the operating point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """The unconfirmed cases of a line, one row each, in any order."""

    case_ids: NDArray[np.int64]
    sites: NDArray[Any]
    """(N,) text."""
    age_days: NDArray[np.float64]
    """(N,) since the case came."""
    lots: NDArray[np.float64]
    """(N,) uniform in [0, 1), from a keyed hash of the case."""
    classes: tuple[str, ...]
    confirmed: Mapping[str, int]
    """Confirmed cases by site."""
    champion: Opinion | None = None
    second: Opinion | None = None
    """A candidate that waits beside the champion."""
    embeddings: NDArray[np.float32] | None = None
    """(N, d) the champion's view of each image."""
    known_embeddings: NDArray[np.float32] | None = None
    """(M, d) the same of confirmed cases."""
    known_sites: NDArray[Any] | None = None
    """(M,) text."""

    def of(self, rows: Rows) -> Pool:
        """Return the pool of these rows, in their order."""

        def said(opinion: Opinion | None) -> Opinion | None:
            return opinion and Opinion(scores=opinion.scores[rows], predicted=opinion.predicted[rows])

        return replace(
            self,
            case_ids=self.case_ids[rows],
            sites=np.asarray(self.sites)[rows].astype(str),
            age_days=self.age_days[rows],
            lots=self.lots[rows],
            champion=said(self.champion),
            second=said(self.second),
            embeddings=None if self.embeddings is None else self.embeddings[rows],
        )


def by_lot(pool: Pool, rows: Rows) -> Rows:
    """In the order of their lots: at random, as far as anybody can tell."""
    return rows[np.argsort(pool.lots[rows], kind="stable")]


def _uncertain(pool: Pool, rows: Rows) -> Rows:
    """Least margin between the two likeliest classes first; of those alike to two decimals, the oldest."""
    if pool.champion is None:
        return rows[:0]
    return rows[np.lexsort((-pool.age_days[rows], np.round(margins(pool.champion)[rows], 2)))]


def _diverse(pool: Pool, rows: Rows) -> Rows:
    """BADGE within each site × predicted class, which take turns; then, or without embeddings, by margin."""
    order = _uncertain(pool, rows)
    if pool.champion is None:
        return order
    shortlist = order[:SHORTLIST]
    strata = _codes(pool.sites[shortlist]) * len(pool.classes) + pool.champion.predicted[shortlist]
    errors = pool.champion.scores - np.eye(len(pool.classes), dtype=np.float32)[pool.champion.predicted]
    found = np.unique(strata)
    turns, picked = [], []
    for stratum in found:
        members = np.sort(shortlist[strata == stratum])
        if pool.embeddings is None:
            chosen = shortlist[strata == stratum][: -(-PICKS // len(found))]
        else:
            count = -(-PICKS // len(found))
            chosen = members[
                diversity.gradients(errors[members], pool.embeddings[members], pool.lots[members], count=count)
            ]
        picked.append(chosen)
        turns.append(np.arange(len(chosen)))
    return _then(_in_turns(picked, turns), order)


def _unlike(pool: Pool, rows: Rows) -> Rows:
    """Farthest from what is confirmed at its site first, and from those picked before."""
    if pool.embeddings is None:
        return rows[:0]
    apart = _apart(pool, rows)
    finite = np.where(np.isinf(apart), np.finfo(np.float64).max, apart)
    order = rows[np.argsort(-finite, kind="stable")]
    shortlist = np.sort(order[:SHORTLIST])
    nearest = finite[np.searchsorted(rows, shortlist)]
    picks = diversity.farthest(pool.embeddings[shortlist], nearest, count=PICKS)
    return _then(shortlist[picks], order)


def _coverage(pool: Pool, rows: Rows) -> Rows:
    """From the site with the fewest confirmations first, counting those listed as if they were confirmed."""
    ordered = by_lot(pool, rows)
    counts = np.zeros(len(ordered))
    for site in np.unique(pool.sites[ordered]):
        here = np.flatnonzero(pool.sites[ordered] == site)
        counts[here] = pool.confirmed.get(str(site), 0) + np.arange(len(here))
    return ordered[np.lexsort((pool.sites[ordered], counts))]


def _disagreement(pool: Pool, rows: Rows) -> Rows:
    """Where the two models decide differently, those whose scores are farthest apart first."""
    if pool.champion is None or pool.second is None:
        return rows[:0]
    apart = rows[pool.champion.predicted[rows] != pool.second.predicted[rows]]
    distance = np.abs(pool.champion.scores[apart] - pool.second.scores[apart]).sum(axis=1) / 2.0
    return np.asarray(apart[np.argsort(-distance, kind="stable")], dtype=np.int64)


ORDERS: Mapping[Arm, Callable[[Pool, Rows], Rows]] = {
    "uncertain": _uncertain,
    "diverse": _diverse,
    "unlike": _unlike,
    "coverage": _coverage,
    "disagreement": _disagreement,
}


def margins(opinion: Opinion) -> NDArray[np.float64]:
    """Return how far the likeliest class is ahead of the next, (N,) in [0, 1]."""
    two = np.partition(opinion.scores.astype(np.float64), -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _apart(pool: Pool, rows: Rows) -> NDArray[np.float64]:
    """Squared distance of each row to the nearest confirmed case of its site; inf where none is known."""
    assert pool.embeddings is not None
    apart = np.full(len(rows), np.inf)
    if pool.known_embeddings is not None and pool.known_sites is not None:
        for site in np.unique(pool.known_sites):
            here = np.flatnonzero(pool.sites[rows] == site)
            known = pool.known_embeddings[pool.known_sites == site]
            apart[here] = diversity.distances(pool.embeddings[rows[here]], known)
    return apart


def _codes(values: NDArray[Any]) -> Rows:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _in_turns(parts: Sequence[Rows], turns: Sequence[Rows]) -> Rows:
    if not parts:
        return np.arange(0)
    return np.concatenate(parts)[np.argsort(np.concatenate(turns), kind="stable")]


def _then(first: Rows, order: Rows) -> Rows:
    """`first`, then the rest of `order`."""
    return np.concatenate([first, order[~np.isin(order, first)]]).astype(np.int64)
