"""The streams: in which order what arrives, and what it is tested on.

An arrival is one batch of confirmed cases of one site. Every track is a function of the radiographs, a seed and an
order of sites; patients are never shared between train, tune and test, nor between arrivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


TRACKS: Mapping[str, Track] = {"six_sites": six_sites, "tiny": tiny, "flipped_labels": flipped_labels}


def with_flipped_labels(arrivals: Sequence[Arrival], *, seed: int) -> list[Arrival]:
    """The same arrivals, 30 % of the third one's labels to train and tune on wrong."""
    rng, wrong = np.random.default_rng([seed, 30]), arrivals[2]
    third = Arrival(
        site=wrong.site, train=_flipped(wrong.train, rng=rng), tune=_flipped(wrong.tune, rng=rng), test=wrong.test
    )
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


def _cases(images: NDArray[np.uint8], labels: NDArray[np.int64], *, site: str, since: int) -> Cases:
    return Cases(
        images=images[:, None].astype(np.float32) / 255.0,
        labels=labels,
        sites=np.full(len(labels), site),
        label_since=np.full(len(labels), since),
    )


def _flipped(cases: Cases, *, rng: np.random.Generator) -> Cases:
    wrong = rng.random(len(cases.labels)) < FLIPPED_SHARE
    return Cases(
        images=cases.images,
        labels=np.where(wrong, 1 - cases.labels, cases.labels),
        sites=cases.sites,
        label_since=cases.label_since,
    )
