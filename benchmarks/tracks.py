"""The streams: in which order what arrives, and what it is tested on.

An arrival is one batch of confirmed cases of one site. Every track is a function of the radiographs, a seed and an
order of sites; patients are never shared between train, tune and test, nor between arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines import sites
from pipelines.chest_xrays import ChestXrays
from pipelines.train import Cases

FLIPPED_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """What one site brings to train and tune on, and what it is tested with ever after."""

    site: str
    train: Cases
    tune: Cases
    test: Cases
    classes: tuple[str, ...] = ()
    """All that are known from this day on, where classes arrive; empty: the protocol's."""


Track = Callable[[ChestXrays, int, str], Sequence[Arrival]]


def six_sites(xrays: ChestXrays, seed: int, order: str) -> list[Arrival]:
    """PneumoSites-6: six sites, one batch each. Each tunes on a sixth of val, for no patient has two hospitals."""
    return _arrivals(sites.deal(xrays, seed=seed), order=order)


def tiny(xrays: ChestXrays, seed: int, order: str) -> list[Arrival]:
    """A quarter of PneumoSites-6, for the tests."""
    return _arrivals(sites.deal(xrays, seed=seed, share=0.25), order=order)


def flipped_labels(xrays: ChestXrays, seed: int, order: str) -> list[Arrival]:
    """PneumoSites-6 whose third site gets 30 % of its labels wrong, in train and tune; its test set is right."""
    return with_flipped_labels(six_sites(xrays, seed, order), seed=seed)


def coming_back(xrays: ChestXrays, seed: int, order: str) -> list[Arrival]:
    """PneumoSites-6 in halves: every site brings one, then every site comes back with the other."""
    halves = [_parts(arrival, 2) for arrival in six_sites(xrays, seed, order)]
    return _numbered([half[k] for k in range(2) for half in halves])


def long(xrays: ChestXrays, seed: int, order: str) -> list[Arrival]:
    """PneumoSites-6 in 40 batches of about 100, the sites in turns that the seed shuffles, but for the first."""
    pieces = [_parts(arrival, 7 if k < 4 else 6) for k, arrival in enumerate(six_sites(xrays, seed, order))]
    rest = [piece for k, own in enumerate(pieces) for piece in own[1 if k == 0 else 0 :]]
    turns = np.random.default_rng([seed, 40]).permutation(len(rest))
    return _numbered([pieces[0][0], *(rest[turn] for turn in turns)])


TRACKS: Mapping[str, Track] = {
    "six_sites": six_sites,
    "tiny": tiny,
    "flipped_labels": flipped_labels,
    "coming_back": coming_back,
    "long": long,
}


def with_flipped_labels(arrivals: Sequence[Arrival], *, seed: int) -> list[Arrival]:
    """The same arrivals, 30 % of the third one's labels to train and tune on wrong."""
    rng, wrong = np.random.default_rng([seed, 30]), arrivals[2]
    third = replace(wrong, train=_flipped(wrong.train, rng=rng), tune=_flipped(wrong.tune, rng=rng))
    return [*arrivals[:2], third, *arrivals[3:]]


def joined(parts: Sequence[Cases]) -> Cases:
    """All cases of several arrivals, in their order."""
    return Cases(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sites=np.concatenate([part.sites for part in parts]),
        label_since=np.concatenate([part.label_since for part in parts]),
    )


def _arrivals(dealt: Mapping[str, sites.SiteCases], *, order: str) -> list[Arrival]:
    if len(set(order)) != len(order) or not order or set(order) - set(dealt):
        raise ValueError(f"an order names sites out of {''.join(dealt)}, each at most once, and {order!r} does not")
    arrivals = []
    for number, name in enumerate(order, start=1):
        hand = dealt[name]
        own = slice(list(dealt).index(name), None, len(dealt))
        arrivals.append(
            Arrival(
                site=name,
                train=_cases(hand.train_images, hand.train_labels, site=name, since=number),
                tune=_cases(hand.val_images[own], hand.val_labels[own], site=name, since=number),
                test=_cases(hand.test_images, hand.test_labels, site=name, since=number),
            )
        )
    return arrivals


def _parts(arrival: Arrival, count: int) -> list[Arrival]:
    """Cut what an arrival brings to train and tune on into parts of nearly equal size; the test stays whole."""
    return [
        Arrival(
            site=arrival.site,
            train=_every(arrival.train, k, count),
            tune=_every(arrival.tune, k, count),
            test=arrival.test,
        )
        for k in range(count)
    ]


def _every(cases: Cases, start: int, step: int) -> Cases:
    """Every `step`-th case of each class, from the `start`-th on."""
    rank = np.empty(len(cases.labels), dtype=np.int64)
    for label in np.unique(cases.labels):
        rank[cases.labels == label] = np.arange(np.sum(cases.labels == label))
    rows = np.flatnonzero(rank % step == start)
    return Cases(
        images=cases.images[rows],
        labels=cases.labels[rows],
        sites=cases.sites[rows],
        label_since=cases.label_since[rows],
    )


def _numbered(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """The arrivals with the numbers of their updates, 1, 2, …, as those since which the labels are known."""

    def since(cases: Cases, number: int) -> Cases:
        return replace(cases, label_since=np.full(len(cases.labels), number))

    return [
        replace(arrival, train=since(arrival.train, number), tune=since(arrival.tune, number))
        for number, arrival in enumerate(arrivals, start=1)
    ]


def _cases(images: NDArray[np.uint8], labels: NDArray[np.int64], *, site: str, since: int) -> Cases:
    return Cases(
        images=images[:, None].astype(np.float32) / 255.0,
        labels=labels,
        sites=np.full(len(labels), site),
        label_since=np.full(len(labels), since),
    )


def _flipped(cases: Cases, *, rng: np.random.Generator) -> Cases:
    wrong = rng.random(len(cases.labels)) < FLIPPED_SHARE
    return replace(cases, labels=np.where(wrong, 1 - cases.labels, cases.labels))
