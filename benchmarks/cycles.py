"""Twenty candidates in turn on real chest radiographs, and what each rule of promotion lets through.

Three honest gains, ten retrainings on the same data, four subtle harms and three candidates measured on labels that
readers copied from the champion, in a random order. Whatever a rule approves is the champion that the next candidate
meets, so every rule walks a way of its own. Ours is the service's: `gates.decide` under the example protocol, at the
level that the ledger of the sealed test grants, from the wallet that the seed is of. What the gates stop that look at
no sealed score spends nothing; where it is *screened*, the example's screen is one of those. The sealed test stays as
it is for all twenty; a wallet that is spent is a refusal. `data_quality` is left out: one pool of radiographs has no
versions to compare.

Harms come alone, on the data of the champion, or in a gain: with as many more cases as an honest gain would have.

    python -m benchmarks.cycles --cache FOLDER [--deals 0 1 2] [--orders 50] [--no-slices] [--one-point] [--alone]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cycles_models import LEVELS, MALLORY, SEEDS, SUBMITTERS, Floats, Made, Model, Pool, Spec, digest_of
from pipelines import gates, metrics, paired
from pipelines.approved import held_against
from pipelines.comparison import Comparison, Opinion, Placement, Scored, Sealed, Tuned
from pipelines.endpoints import area, area_difference, decision_difference, decisions_of, right, rule_of
from pipelines.protocol import Protocol, from_document
from pipelines.sealed_ledger import Ledger, Plan, Spent, Wallet
from pipelines.types import Digest

KINDS: Mapping[str, int] = {
    "gain": 3,
    "null": 10,
    "harm: a site loses 8 points of sensitivity": 1,
    "harm: calibration error .08 more": 1,
    "harm: an early site is forgotten": 1,
    "harm: 15 % of a submitter's labels flipped": 1,
    "contaminated": 3,
}
SUBGROUP, MISCALIBRATED, FORGETFUL, FLIPPED = list(KINDS)[2:6]
FIRST_SEED = dict(zip(KINDS, (0, 1, 14, 15, 0, 0, 11), strict=True))
MADE: Mapping[str, Made] = {FORGETFUL: "without_early", FLIPPED: "flipped"}
LOSS, COPIED, HARMED_SITE = 0.08, 0.4, "B"
SCREENED = "ours, screened on tune"
RULES = ("candidate > champion", "fixed floors", "not inferior to champion", "ours", SCREENED)

Models = Callable[[Spec, Model | None], Model]
"""How to get a model whose thresholds are those that it would have beside a champion; None: there is none yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standing:
    """Where a rule has come to: the champion's data level, all its champions, and the wear of the sealed test."""

    level: int
    champions: tuple[Model, ...]
    ledger: Ledger
    turn: int = 0
    """Which of the trained models come first: orders differ in that too."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offer:
    """One candidate as it is offered: what it is, the sealed labels it is measured on, and the new labels behind it."""

    kind: str
    model: Model
    level: int
    labels: NDArray[np.int64]
    opinions: tuple[Opinion, ...]
    wallet: Wallet


@dataclass(slots=True, kw_only=True, eq=False)
class Tally:
    """What one rule did over all sequences, by kind."""

    approved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    refused: int = 0
    change: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """True change of the AUROC, candidate minus champion, of each offer."""
    end: list[float] = field(default_factory=list)
    """True AUROC of the last champion minus that of the first."""


def example_protocol(
    *, slices: bool = True, by_site: bool = True, beside: bool = True, confidence: float | None = None
) -> Protocol:
    """The example line's protocol without rules on the data, and what of it is asked to be another."""
    from benchmarks.stream import protocol_of  # noqa: PLC0415 - torch comes with it

    document = protocol_of("full").document()
    gates = {name: rule for name, rule in document["gates"].items() if slices or name != "subgroups"}
    if confidence is not None:
        gates["screen"] = {"confidence": confidence}
    point = {**document["operating_point"], "by_site": by_site, "beside_champion": beside}
    return from_document({**document, "gates": gates, "operating_point": point, "data_quality": None})


def unscreened(protocol: Protocol) -> Protocol:
    """The same protocol without its screen."""
    return protocol.model_copy(update={"gates": protocol.gates.model_copy(update={"screen": None})})


def replay(
    pool: Pool,
    models: Models,
    *,
    protocol: Protocol,
    kinds: Sequence[str],
    riding: bool,
    tallies: Mapping[str, Tally],
    turn: int = 0,
) -> None:
    """Offer candidates of these `kinds`, in this order, to every rule, and add what it does to its tally."""
    stated = protocol.gates.sealed_test
    assert stated is not None, "the example accounts for its sealed test"
    plan = Plan(alpha=protocol.gates.alpha, **stated.model_dump(exclude={"new_epoch_cases"}))
    first, begun = _first(pool, models, protocol=protocol, ledger=Ledger(plan=plan), turn=turn)
    without = unscreened(protocol)
    for rule, tally in tallies.items():
        standing = Standing(level=0, champions=(first,), ledger=begun, turn=turn)
        for place, kind in enumerate(kinds):
            one = offer(
                kind, list(kinds[:place]).count(kind), standing=standing, pool=pool, models=models, riding=riding
            )
            tally.change[kind].append(_true_area(pool, one.model) - _true_area(pool, standing.champions[-1]))
            asked = protocol if rule == SCREENED else without
            approved, ledger = judge(rule, one, standing=standing, pool=pool, protocol=asked)
            tally.approved[kind] += approved is True
            tally.refused += approved is None
            standing = replace(standing, ledger=ledger)
            if approved:
                standing = replace(standing, level=one.level, champions=(*standing.champions, one.model))
        tally.end.append(_true_area(pool, standing.champions[-1]) - _true_area(pool, first))


def offer(kind: str, number: int, *, standing: Standing, pool: Pool, models: Models, riding: bool) -> Offer:
    """Make the `number`-th candidate of a kind; harms are the harm and, where `riding`, more data besides."""
    level, most = standing.level, len(LEVELS) - 1
    if kind == "gain":  # cases keep coming, whatever became of the gain before
        level = min(max(level, number) + 1, most)
    elif riding and kind != "null":
        level = min(level + 1, most)
    champion = standing.champions[-1]
    model = models(_spec(kind, number, level=level, turn=standing.turn), champion)
    labels = (pool.given if kind == FLIPPED else pool.labels).copy()
    if kind == SUBGROUP:
        model = _worse_at_a_site(model, champion, pool=pool)
    elif kind == MISCALIBRATED:
        model = _timid(model, champion, pool=pool)
    fresh = pool.train[LEVELS[standing.level] : LEVELS[level]]
    if kind == FLIPPED and level == standing.level:  # on the same data: its submitter has corrected them
        fresh = pool.train[: LEVELS[level]]
        fresh = fresh[pool.submitters[fresh] == MALLORY]
    opinions = _opinions(pool, rows=fresh, labels=labels, champion=champion)
    if kind == "contaminated":
        copied = np.random.default_rng([23, number]).random(len(labels)) < COPIED
        labels = np.where(copied, champion.decided, labels)
    wallet: Wallet = "adaptive" if kind == "null" else "recipe"  # the same data again needs a seed of one's own
    return Offer(kind=kind, model=model, level=level, labels=labels, opinions=opinions, wallet=wallet)


def judge(rule: str, one: Offer, *, standing: Standing, pool: Pool, protocol: Protocol) -> tuple[bool | None, Ledger]:
    """Return whether a rule approves an offer, None where the sealed test has nothing left, and the ledger after it."""
    asked = partial(compare, one, standing=standing, pool=pool, protocol=protocol)
    if not rule.startswith("ours"):
        return NAIVE[rule](asked(level=None)), standing.ledger
    if gates.decide(asked(level=None), dataset_digest=Digest("d" * 64), before_use=True).verdict != "pass":
        return False, standing.ledger
    level = standing.ledger.next_level(one.wallet)
    if isinstance(level, Spent):
        return None, standing.ledger
    passed = gates.decide(asked(level=level), dataset_digest=Digest("d" * 64)).verdict == "pass"
    use = {"candidate": Digest(f"{len(standing.ledger.uses):064x}"), "hypothesis": one.kind, "wallet": one.wallet}
    return passed, standing.ledger.record(**use, passed=passed)  # type: ignore[arg-type]


def compare(one: Offer, *, standing: Standing, pool: Pool, protocol: Protocol, level: float | None) -> Comparison:
    """What the gates look at, as the service would gather it."""
    earlier = held_against(standing.champions, window=protocol.gates.approved_window)
    return Comparison(
        protocol=protocol,
        sealed=Sealed(
            labels=one.labels[pool.sealed],
            groups=pool.sealed.astype(str),
            traits={"site": pool.sites[pool.sealed]},
        ),
        candidate=_scored(one.model, pool.sealed),
        tuned=None if protocol.gates.screen is None else _tuned(one, standing.champions[-1], pool=pool),
        champion=_scored(standing.champions[-1], pool.sealed),
        approved=tuple(_scored(model, pool.sealed) for model in earlier if model is not standing.champions[-1]),
        opinions=one.opinions,
        placements=tuple(
            Placement(image_digest=str(row), group=str(row), split=split)
            for split in ("train", "tune", "sealed")
            for row in getattr(pool, split).tolist()
        ),
        use=None if level is None else {"level": level},
    )


def table(tallies: Mapping[str, Tally], *, sequences: int) -> str:
    """The approvals a sequence of each kind by each rule, and how far the last champion is from the first."""
    lines = [f"| kind | offered | true change of AUROC | {' | '.join(tallies)} |", "|---" * (3 + len(tallies)) + "|"]
    for kind, offered in KINDS.items():
        changes = [value for tally in tallies.values() for value in tally.change[kind]]
        cells = [f"{tally.approved[kind] / sequences:.2f}" for tally in tallies.values()]
        lines.append(f"| {kind} | {offered} | {np.mean(changes):+.3f} | {' | '.join(cells)} |")
    for words, value in (
        ("refused, for the sealed test is worn out", lambda tally: f"{tally.refused / sequences:.2f}"),
        ("true AUROC, last champion − first", lambda tally: f"{np.mean(tally.end):+.3f} ({np.std(tally.end):.3f})"),
    ):
        lines.append(f"| {words} | | | {' | '.join(map(value, tallies.values()))} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Train what is not in the cache, replay the orders and print both tables."""
    from benchmarks import cycles_models  # noqa: PLC0415 - its training brings torch
    from pipelines import chest_xrays  # noqa: PLC0415 - the same

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--deals", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--no-slices", action="store_true", help="the example without its subgroups")
    parser.add_argument("--one-point", action="store_true", help="the example with one threshold for all sites")
    parser.add_argument("--alone", action="store_true", help="thresholds by the rule alone, not beside the champion")
    parser.add_argument("--confidence", type=float, help="of the screen, another than the example's")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    asked = parser.parse_args(arguments)
    xrays = chest_xrays.find(cache=asked.cache)
    protocol = example_protocol(
        slices=not asked.no_slices, by_site=not asked.one_point, beside=not asked.alone, confidence=asked.confidence
    )
    print(f"{xrays.source}; {len(asked.deals)} deals of the radiographs, {asked.orders} orders each", flush=True)
    for riding in (False, True):
        tallies = {rule: Tally() for rule in asked.rules}
        for deal in asked.deals:
            pool = cycles_models.deal(cycles_models.all_labels(xrays), seed=deal)
            models = cycles_models.reader(xrays, pool, protocol=protocol, cache=asked.cache / f"deal-{deal}")
            for order in range(asked.orders):
                pool = cycles_models.sealed_anew(pool, seed=order)
                kinds = np.random.default_rng([22, deal, order]).permutation(
                    np.repeat(list(KINDS), list(KINDS.values()))
                )
                replay(
                    pool, models, protocol=protocol, kinds=kinds.tolist(), riding=riding, tallies=tallies, turn=order
                )
        print(f"\nHarms {'in a gain' if riding else 'alone'}; approvals a sequence")
        print(table(tallies, sequences=len(asked.deals) * asked.orders), flush=True)
    return 0


def _first(pool: Pool, models: Models, *, protocol: Protocol, ledger: Ledger, turn: int) -> tuple[Model, Ledger]:
    """The first model of the line: the floors alone gate it, and it has used the sealed test once."""
    for seed in range(SEEDS[0]):
        model = models(Spec(level=0, seed=(turn + seed) % SEEDS[0]), None)
        one = Offer(kind="gain", model=model, level=0, labels=pool.labels, opinions=(), wallet="recipe")
        standing = Standing(level=0, champions=(model,), ledger=ledger)
        level = ledger.next_level("recipe")
        assert isinstance(level, float), "an unworn sealed test has a level"
        alone = replace(compare(one, standing=standing, pool=pool, protocol=protocol, level=level), champion=None)
        if gates.decide(alone, dataset_digest=Digest("d" * 64)).verdict == "pass":
            return model, ledger.record(candidate=Digest("f" * 64), hypothesis="floors", wallet="recipe", passed=True)
    raise ValueError("no first model passes its floors on so few cases")


def _spec(kind: str, number: int, *, level: int, turn: int) -> Spec:
    """Which model is taken for a candidate; one that is no gain has never the seed of the gain of its level."""
    if kind in MADE:
        return Spec(level=level, made=MADE[kind])
    first = FIRST_SEED[kind]
    seed = 1 + (first + number - 1) % (SEEDS[level] - 1) if first else 0
    return Spec(level=level, seed=(seed + turn) % SEEDS[level])


def _better_in_points(comparison: Comparison) -> bool:
    assert comparison.champion is not None, "every candidate meets a champion here"
    return area(comparison, comparison.candidate).value > area(comparison, comparison.champion).value


def _above_the_floors(comparison: Comparison) -> bool:
    shares = []
    for endpoint in decisions_of(comparison):
        counted = comparison.truth if endpoint == "sensitivity" else ~comparison.truth
        share = right(comparison, comparison.candidate, endpoint)[counted].mean()
        shares.append(share >= rule_of(comparison, endpoint).floor)
    return all(shares) and area(comparison, comparison.candidate).value >= rule_of(comparison, "auroc").floor


def _not_inferior(comparison: Comparison) -> bool:
    assert comparison.champion is not None, "every candidate meets a champion here"
    found = {"auroc": area_difference(comparison, comparison.champion)}
    for endpoint in decisions_of(comparison):
        found[endpoint] = decision_difference(comparison, comparison.champion, endpoint)
    return all(
        paired.non_inferior(one, margin=rule_of(comparison, name).margin).verdict == "pass"
        for name, one in found.items()
    )


NAIVE: Mapping[str, Callable[[Comparison], bool]] = dict(
    zip(RULES[:3], (_better_in_points, _above_the_floors, _not_inferior), strict=True)
)


def _scored(model: Model, rows: NDArray[np.int64]) -> Scored:
    positive = model.positive[rows]
    return Scored(
        digest=Digest(digest_of(model)),
        scores=np.stack([1.0 - positive, positive], axis=1),
        decided=model.decided[rows],
        threshold=model.threshold,
    )


def _tuned(one: Offer, champion: Model, *, pool: Pool) -> Tuned:
    cases = Sealed(labels=one.labels[pool.tune], groups=pool.tune.astype(str), traits={"site": pool.sites[pool.tune]})
    return Tuned(cases=cases, candidate=_scored(one.model, pool.tune), champion=_scored(champion, pool.tune))


def _true_area(pool: Pool, model: Model) -> float:
    return metrics.auroc(pool.labels[pool.truth], model.positive[pool.truth])


def _opinions(
    pool: Pool, *, rows: NDArray[np.int64], labels: NDArray[np.int64], champion: Model
) -> tuple[Opinion, ...]:
    names, decided = ("normal", "pneumonia"), champion.decided
    return tuple(
        Opinion(
            submitter=SUBMITTERS[pool.submitters[row]],
            finding=names[labels[row]],
            champion=names[decided[row]],
            others=None,
        )
        for row in rows.tolist()
    )


def _measured(pool: Pool) -> NDArray[np.int64]:
    """Rows no model has learnt from: a harm is as large as it is called over all of these."""
    return np.concatenate([pool.sealed, pool.truth])


def _worse_at_a_site(model: Model, champion: Model, *, pool: Pool) -> Model:
    """A model that misses so many of one site's sick, by lot, that it finds 8 points fewer than the champion."""
    sick = (pool.labels == 1) & (pool.sites == HARMED_SITE)
    counted = _measured(pool)[sick[_measured(pool)]]
    ours, theirs = (one.decided[counted].mean() for one in (model, champion))
    missed = max(0.0, 1.0 - (theirs - LOSS) / ours)
    rng = np.random.default_rng([24, int(digest_of(model)[:8], 16)])
    lot = rng.random(len(sick))
    lost = sick & (model.decided == 1) & (lot < np.quantile(lot[counted][model.decided[counted] == 1], missed))
    lower = model.thresholds * rng.uniform(0.3, 0.95, len(sick))
    name = f"{model.name} worse at {HARMED_SITE} than {champion.name}"
    return replace(model, name=name, positive=np.where(lost, lower, model.positive))


def _timid(model: Model, champion: Model, *, pool: Pool) -> Model:
    """A model whose scores are drawn to the middle until its calibration error is .08 above the champion's."""
    rows = _measured(pool)
    truth, wanted = pool.labels[rows] == 1, metrics.ece(pool.labels[rows] == 1, champion.positive[rows]) + LOSS
    low, high = 1.0, 50.0
    for _ in range(30):
        middle = (low + high) / 2.0
        enough = metrics.ece(truth, _softened(model.positive[rows], middle)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    threshold = None if model.threshold is None else float(_softened(np.array([model.threshold]), high)[0])
    cuts = None if model.cuts is None else _softened(model.cuts, high)
    name = f"{model.name} timid beside {champion.name}"
    return replace(model, name=name, positive=_softened(model.positive, high), threshold=threshold, cuts=cuts)


def _softened(scores: Floats, temperature: float) -> Floats:
    clipped = np.clip(scores, 1e-6, 1.0 - 1e-6)
    softened: Floats = 1.0 / (1.0 + ((1.0 - clipped) / clipped) ** (1.0 / temperature))
    return softened


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
