"""What the checks of data quality find, what they cost, and how often they are wrong, on real radiographs.

    python -m benchmarks.quality search [--n 1000000]      # hashes: all pairs, and newcomers against all
    python -m benchmarks.quality copies                    # precision and recall for made copies, by radius
    python -m benchmarks.quality suspects [--cases 2400] [--seeds 0] [--flips .05 .1 .2] [--sites B C D E]
    python -m benchmarks.quality shifts                    # alarms on no shift, and on shifted sites

Radiographs are PneumoniaMNIST (Kermany et al., Cell 2018; Yang et al., Scientific Data 2023; CC BY 4.0).
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.stream import protocol_of
from pipelines import chest_xrays, hamming, network, perceptual, predict, shift, suspects, train
from pipelines.metrics import auroc

ROOT = Path(__file__).resolve().parent.parent
Picture = NDArray[np.uint8]
LIKENESS = 0.95


def search(n: int) -> None:
    """Time the search, in seconds of one core, on even hashes and on ones whose bits hang together as radiographs'."""
    rng = np.random.default_rng(0)
    even = rng.integers(1, 2**64, size=n, dtype=np.uint64)
    print("hashes             radius      pairs   all pairs s   100 new s   10,000 new s")
    for name, hashes in (("even", even), ("like radiographs", _like_radiographs(n, rng=rng))):
        for radius in (2, 4, 6, 8):
            if name != "even" and radius == 8:
                continue  # tens of millions of pairs: the search refuses to list them
            started = time.process_time()
            found = hamming.all_pairs(hashes, radius=radius)
            whole = time.process_time() - started
            new = []
            for count in (100, 10_000):
                started = time.process_time()
                hamming.newcomers(hashes, new=np.arange(count), radius=radius)
                new.append(time.process_time() - started)
            print(
                f"{name:<18} {radius:>6} {len(found):>10,} {whole:>13.1f} {new[0]:>11.2f} {new[1]:>14.1f}", flush=True
            )


def copies() -> None:
    """Make copies of radiographs and look for them among all; the false alarms are pairs of different radiographs."""
    pictures = _radiographs()
    thumbs = np.stack([perceptual.thumbnail(picture) for picture in pictures])
    hashes = perceptual.hash_thumbnails(thumbs)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(pictures))[:1000]
    pairs = len(pictures) * (len(pictures) - 1) // 2
    print(f"{len(pictures)} radiographs, {pairs:,} pairs; 1,000 copies of each kind")
    print("radius  pairs of different radiographs: within   called copies at likeness .90   .92   .94   .95   .96")
    every = hamming.all_pairs(hashes, radius=12)
    same = (pictures[every.first] == pictures[every.second]).all(axis=(1, 2))
    different = every.where(~same)
    alike = np.concatenate([perceptual.likeness(thumbs[a], thumbs[b]) for a, b in _chunks(different)])
    for radius in (2, 4, 6, 8, 10, 12):
        near = different.distance <= radius
        called = [int((alike[near] >= least).sum()) for least in (0.90, 0.92, 0.94, 0.95, 0.96)]
        print(
            f"{radius:>6}  {int(near.sum()):>38,}   {called[0]:>29}" + "".join(f" {count:>5}" for count in called[1:])
        )
    print(f"{int(same.sum())} pairs have the same pixels, all at distance {int(every.distance[same].max())}")
    print("\nfound (hash within the radius / and likeness .95)   4           6           8")
    for name, copy in _copying(rng).items():
        made = np.stack([perceptual.thumbnail(copy(pictures[row])) for row in chosen])
        distance = np.bitwise_count(perceptual.hash_thumbnails(made) ^ hashes[chosen])
        looked = perceptual.likeness(thumbs[chosen], made) >= LIKENESS
        cells = [f"{np.mean(distance <= r):.3f} / {np.mean((distance <= r) & looked):.3f}" for r in (4, 6, 8)]
        print(f"  {name:<40} " + "   ".join(cells), flush=True)


def suspect_labels(*, count: int, seeds: list[int], flips: list[float], sites: list[str]) -> None:
    """Flip labels and rank: by the champion's disagreement, by cross-fitting from nothing, and from the champion.

    `flips` are shares over all of `count` cases, on which the champion was trained as they are given. With a site, the
    champion knows two thirds of the cases, all right, and the rest come from that site, 30 % of them flipped.
    """
    found = chest_xrays.find(cache=Path("there-is-none"))
    print("setting                     seed  ranking                  AUROC  precision  gradients a case  seconds")
    for seed in seeds:
        rng = np.random.default_rng(100 + seed)
        rows = rng.permutation(len(found.train_labels))[:count]
        pictures, truth = found.train_images[rows], found.train_labels[rows]
        for share in flips:
            given = np.where(rng.random(count) < share, 1 - truth, truth)
            _compare(f"{share:.0%} flipped", Flipped(pictures=pictures, truth=truth, given=given, known=0), seed=seed)
        for site in sites:
            known, moved = count * 2 // 3, pictures.copy()
            moved[known:] = [SITES[site](picture, rng) for picture in pictures[known:]]
            given = np.where((np.arange(count) >= known) & (rng.random(count) < 0.30), 1 - truth, truth)
            _compare(
                f"30 % at new site {site}", Flipped(pictures=moved, truth=truth, given=given, known=known), seed=seed
            )


def shifts() -> None:
    """Count alarms at p < .01 and distance > .05: new cases, shifted as sites are, against 200 as they are."""
    pictures = _radiographs()
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {"none": lambda p, _: p, **SITES}
    print("new cases  shift  tried  alarms  p < .01  mean distance  largest  most moved")
    for n in (40, 100):
        for name, moved in kinds.items():
            looks = []
            for _ in range(40 if name == "none" else 8):
                order = rng.permutation(len(pictures))
                sides = pictures[order[:200]], [moved(picture, rng) for picture in pictures[order[200 : 200 + n]]]
                before, after = (np.stack([shift.image_features(picture) for picture in side]) for side in sides)
                looks.append(shift.look(before, after, rng=rng))
            small = [look.p < 0.01 for look in looks]
            alarms = sum(look.p < 0.01 and look.distance > 0.05 for look in looks)
            names, distances = [look.moved for look in looks], [look.distance for look in looks]
            print(
                f"{n:>9}  {name:<5} {len(looks):>6} {alarms:>7} {sum(small):>8} {np.mean(distances):>14.3f} "
                f"{max(distances):>8.3f}  {max(set(names), key=names.count)}",
                flush=True,
            )


def main(arguments: list[str]) -> int:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("table", choices=("search", "copies", "suspects", "shifts"))
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--flips", type=float, nargs="*", default=[0.05, 0.10, 0.20])
    parser.add_argument("--sites", nargs="*", choices=list(SITES), default=list(SITES))
    options = parser.parse_args(arguments)
    if options.table != "search" and not chest_xrays.find(cache=Path("there-is-none")).real:
        print(f"there are no real radiographs at {chest_xrays.SHARED}", file=sys.stderr)
        return 2
    if options.table == "search":
        search(options.n)
    elif options.table == "copies":
        copies()
    elif options.table == "suspects":
        suspect_labels(count=options.cases, seeds=options.seeds, flips=options.flips, sites=options.sites)
    else:
        shifts()
    return 0


def _radiographs() -> NDArray[np.uint8]:
    found = chest_xrays.find(cache=Path("there-is-none"))
    return np.concatenate([found.train_images, found.val_images, found.test_images])


def _chunks(pairs: hamming.Pairs) -> Any:
    for start in range(0, len(pairs), 4096):
        yield pairs.first[start : start + 4096], pairs.second[start : start + 4096]


def _like_radiographs(n: int, *, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Hashes whose bits are set as often, and hang together as much, as those of real radiographs (Gaussian copula)."""
    hashes = perceptual.hash_thumbnails(np.stack([perceptual.thumbnail(picture) for picture in _radiographs()]))
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").astype(np.float64)
    together = np.sin(0.5 * np.pi * np.corrcoef(bits.T))  # from the correlation of signs to that of normals
    values, vectors = np.linalg.eigh(together)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    root /= np.sqrt((root**2).sum(axis=1, keepdims=True))
    cuts = -np.sqrt(2.0) * _inverse_erf(2.0 * bits.mean(axis=0) - 1.0)
    parts = []
    for start in range(0, n, 50_000):
        drawn = rng.standard_normal((min(50_000, n - start), 64)) @ root.T > cuts
        parts.append(np.ascontiguousarray(np.packbits(drawn, axis=1, bitorder="little")).view("<u8").reshape(-1))
    return np.concatenate(parts).astype(np.uint64)


def _inverse_erf(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import erfinv  # noqa: PLC0415 - for this table only

    found: NDArray[np.float64] = erfinv(values)
    return found


def _unit(picture: Picture) -> NDArray[np.float64]:
    return picture.astype(np.float64) / 255.0


def _bytes(values: NDArray[np.float64]) -> Picture:
    found: Picture = np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    return found


def _resized(picture: Picture, side: int, method: Image.Resampling = Image.Resampling.BICUBIC) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((side, side), method))


def _jpeg(picture: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _moved(picture: Picture, pixels: int, rng: np.random.Generator) -> Picture:
    """Move by so many pixels one way, and up to as many the other, the edge repeated."""
    steps = [pixels * int(rng.choice([-1, 1])), int(rng.integers(-pixels, pixels + 1))]
    rng.shuffle(steps)
    padded = np.pad(picture, pixels, mode="edge")
    rows, columns = picture.shape
    return padded[pixels + steps[0] : pixels + steps[0] + rows, pixels + steps[1] : pixels + steps[1] + columns]


def _copying(rng: np.random.Generator) -> dict[str, Callable[[Picture], NDArray[Any]]]:
    return {
        "sixteen bits": lambda p: p.astype(np.uint16) * 257,
        "enlarged to 103": lambda p: _resized(p, 103),
        "reduced to 20": lambda p: _resized(p, 20, Image.Resampling.BOX),
        "contrast × .7": lambda p: _bytes((_unit(p) - 0.5) * 0.7 + 0.5),
        "contrast × 1.3, clipped": lambda p: _bytes((_unit(p) - 0.5) * 1.3 + 0.5),
        "gamma .7": lambda p: _bytes(_unit(p) ** 0.7),
        "gamma 1.5": lambda p: _bytes(_unit(p) ** 1.5),
        "noise, SD .02": lambda p: _bytes(_unit(p) + rng.normal(0.0, 0.02, p.shape)),
        "noise, SD .05": lambda p: _bytes(_unit(p) + rng.normal(0.0, 0.05, p.shape)),
        "JPEG, quality 75": lambda p: _jpeg(p, 75),
        "JPEG, quality 40": lambda p: _jpeg(p, 40),
        "moved 2 of 448 pixels": lambda p: _moved(_resized(p, 448), 2, rng),
        "moved 1 of 28 pixels": lambda p: _moved(p, 1, rng),
        "moved 2 of 28 pixels": lambda p: _moved(p, 2, rng),
        "inverted": lambda p: 255 - p,
        "mirrored": lambda p: p[:, ::-1],
    }


def _site_b(picture: Picture, _rng: np.random.Generator) -> Picture:
    changed = 1.4 * (_unit(picture) ** 0.6 - 0.5) + 0.55
    return _bytes(changed + 0.8 * (changed - ndimage.gaussian_filter(changed, 1.0)))


def _site_c(picture: Picture, _rng: np.random.Generator) -> Picture:
    return _bytes((1.0 - _unit(picture)) ** 1.2)


def _site_d(picture: Picture, rng: np.random.Generator) -> Picture:
    changed = np.clip(0.65 * (ndimage.gaussian_filter(_unit(picture), 0.7) - 0.45) + 0.5, 0.0, 1.0)
    return _bytes(changed + rng.normal(size=picture.shape) * (0.02 + 0.05 * np.sqrt(changed)))


def _site_e(picture: Picture, rng: np.random.Generator) -> Picture:
    small = _resized(picture, 14, Image.Resampling.BOX) // 8 * 8
    large = _resized(small, 28, Image.Resampling.BILINEAR).copy()
    top, bottom, left, right = rng.integers(0, 6, size=4)
    large[:top], large[28 - bottom :], large[:, :left], large[:, 28 - right :] = 0, 0, 0, 0
    return large


SITES: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "B": _site_b,
    "C": _site_c,
    "D": _site_d,
    "E": _site_e,
}
"""Shifts B to E of PneumoSites-6: gamma and sharpening; inverted; blur, low contrast and noise; half size, 5 bit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flipped:
    """Cases with their true and their given labels; the first `known` are right and of the champion's own site."""

    pictures: NDArray[np.uint8]
    truth: NDArray[np.int64]
    given: NDArray[np.int64]
    known: int


def _compare(setting: str, flipped: Flipped, *, seed: int) -> None:
    """Print how well each ranking finds the flipped labels among the cases that are not known to be right."""
    protocol = protocol_of("full")
    n, given = len(flipped.given), flipped.given
    cases = train.Cases(
        images=flipped.pictures[:, None].astype(np.float32) / 255.0,
        labels=given,
        sites=np.where(np.arange(n) < (flipped.known or n), "A", "new"),
        label_since=np.ones(n, dtype=np.int64),
    )
    learnt = np.arange(flipped.known or n)
    learning, choosing = (
        train.Cases(
            images=cases.images[rows], labels=given[rows], sites=cases.sites[rows], label_since=cases.label_since[rows]
        )
        for rows in (learnt[learnt % 6 != 0], learnt[learnt % 6 == 0])
    )
    champion = train.fit(learning, choosing, protocol=protocol, strategy="full", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        data = network.save_weights(champion.module)
        (Path(folder) / "weights.safetensors").write_bytes(data)
        base = train.Base(
            weights=Path(folder) / "weights.safetensors",
            weights_digest=network.digest_of_bytes(data),
            architecture=network.architecture_for(protocol),
            dataset_number=1,
        )
        scores = predict.Model(champion.module, champion.metadata).scores(cases.images)
        doubt = 1.0 - scores[np.arange(n), given].astype(np.float64)
        print(f"{setting:<27} {seed:>4}  {'champion disagrees':<24} {_found(flipped, doubt)}", flush=True)
        for name, start in (("cross-fit from nothing", None), ("cross-fit from champion", base)):
            started = time.monotonic()
            fitted = suspects.cross_fit(cases, np.arange(n), protocol=protocol, base=start, seed=seed)
            doubt = 1.0 - suspects.rank(given, fitted.probabilities).quality
            cost = f"{fitted.sample_gradients / n:>16.1f}  {time.monotonic() - started:>7.0f}"
            print(f"{setting:<27} {seed:>4}  {name:<24} {_found(flipped, doubt)}  {cost}", flush=True)


def _found(flipped: Flipped, doubt: NDArray[np.float64]) -> str:
    """Means over the two given classes: AUROC of flipped against right, and precision among as many as were flipped."""
    areas, precisions = [], []
    for finding in (0, 1):
        rows = flipped.known + np.flatnonzero(flipped.given[flipped.known :] == finding)
        wrong = flipped.given[rows] != flipped.truth[rows]
        areas.append(auroc(wrong, np.clip(doubt[rows], 0.0, 1.0)))
        precisions.append(wrong[np.argsort(-doubt[rows], kind="stable")[: wrong.sum()]].mean())
    return f"{np.mean(areas):.3f}  {np.mean(precisions):>9.3f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
