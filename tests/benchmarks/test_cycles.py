"""The twenty cycles on scores that a computer has made: what gets through, and that harms are as large as said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import cycles
from benchmarks.cycles_models import EARLY, LEVELS, MALLORY, SITES, SUBMITTERS, Model, Pool, Spec, at_its_points, deal
from pipelines import calibrate, metrics

SKILLS = (0.8, 1.3, 1.8, 2.3)
LABELS = (np.random.default_rng(5).random(LEVELS[-1] + 4000) < 0.6).astype(np.int64)
POOL = deal(LABELS, seed=0)
PROTOCOL = cycles.example_protocol()


def models(spec: Spec, _champion: Model | None = None) -> Model:
    """A calibrated model, better with more cases, and half as good at a site that it was not shown."""
    shared = np.random.default_rng(6).normal(size=len(LABELS))
    own = np.random.default_rng([spec.level, spec.seed]).normal(size=len(LABELS))
    skill = np.full(len(LABELS), SKILLS[spec.level])
    skill[(POOL.sites == EARLY) & (spec.made == "without_early")] /= 2.0
    reading = skill * (2 * LABELS - 1) + 0.9 * shared + 0.4 * own
    positive = 1.0 / (1.0 + np.exp(-2.0 * skill * reading))
    return Model(name=f"{spec.level}-{spec.made}-{spec.seed}", positive=positive, threshold=0.5)


def tallies(*kinds: str, riding: bool = False, rules: tuple[str, ...] = cycles.RULES) -> dict[str, cycles.Tally]:
    """What each rule does with candidates of these kinds in turn."""
    found = {rule: cycles.Tally() for rule in rules}
    cycles.replay(POOL, models, protocol=PROTOCOL, kinds=kinds, riding=riding, tallies=found)
    return found


def test_a_gain_gets_in_and_a_harm_that_rides_on_a_gain_does_not() -> None:
    found = tallies("gain", cycles.SUBGROUP, cycles.MISCALIBRATED, riding=True)
    for rule in ("ours", "ours, screened on tune"):
        assert {kind for kind, n in found[rule].approved.items() if n} == {"gain"}
        assert found[rule].end[0] > 0.02
    assert found["candidate > champion"].approved[cycles.SUBGROUP] == 1
    assert found["fixed floors"].approved[cycles.MISCALIBRATED] == 1


def test_a_wallet_that_is_spent_is_a_refusal_and_not_an_approval() -> None:
    ours = tallies(*["null"] * 9, rules=("ours",))["ours"]
    assert (ours.approved["null"], ours.refused) == (0, 5)
    screened = tallies(*["null"] * 9, rules=(cycles.SCREENED,))[cycles.SCREENED]
    assert (screened.approved["null"], screened.refused) == (0, 0)


def test_labels_copied_from_the_champion_hide_how_much_better_a_candidate_is() -> None:
    standing = cycles.Standing(level=0, champions=(models(Spec(level=0)),), ledger=cycles.Ledger(plan=cycles.Plan()))
    one = cycles.offer("contaminated", 0, standing=standing, pool=POOL, models=models, riding=True)
    copied, honest = (
        cycles.area_difference(comparison, comparison.champion).value
        for comparison in (
            cycles.compare(offered, standing=standing, pool=POOL, protocol=PROTOCOL, level=None)
            for offered in (one, replace(one, labels=POOL.labels))
        )
        if comparison.champion is not None
    )
    assert 0.0 < copied < honest - 0.03


@pytest.mark.parametrize("riding", [False, True])
def test_harms_are_as_large_as_they_are_called(riding: bool) -> None:
    champion = models(Spec(level=0))
    standing = cycles.Standing(level=0, champions=(champion,), ledger=cycles.Ledger(plan=cycles.Plan()))

    def offered(kind: str) -> Model:
        return cycles.offer(kind, 0, standing=standing, pool=POOL, models=models, riding=riding).model

    def found(model: Model, site: str, pool: Pool = POOL) -> float:
        rows = cycles._measured(pool)
        rows = rows[(pool.labels[rows] == 1) & (pool.sites[rows] == site)]
        return float((model.positive[rows] >= 0.5).mean())

    harmed = offered(cycles.SUBGROUP)
    assert found(harmed, cycles.HARMED_SITE) - found(champion, cycles.HARMED_SITE) == pytest.approx(-0.08, abs=0.02)
    for site in set(SITES) - {cycles.HARMED_SITE}:
        assert found(harmed, site) > found(champion, site) - 0.03
    rows = cycles._measured(POOL)
    truth = POOL.labels[rows] == 1
    timid = offered(cycles.MISCALIBRATED)
    grown = metrics.ece(truth, timid.positive[rows]) - metrics.ece(truth, champion.positive[rows])
    assert grown == pytest.approx(0.08, abs=0.01)
    assert timid.threshold == pytest.approx(0.5)
    if riding:
        assert found(offered(cycles.FORGETFUL), EARLY) < found(champion, EARLY)


def test_thresholds_by_site_are_those_of_what_a_model_was_shown() -> None:
    spec = Spec(level=1, made="without_early")
    model = at_its_points(models(spec), spec, pool=POOL, protocol=PROTOCOL)
    assert model.cuts is not None
    cuts = {site: set(model.cuts[POOL.sites == site].tolist()) for site in SITES}
    assert cuts[EARLY] == {0.5}
    rows = POOL.tune[POOL.sites[POOL.tune] == "A"]
    chosen = calibrate.choose_operating_point(LABELS[rows] == 1, model.positive[rows], rule="youden").threshold
    assert cuts["A"] == {chosen} != {0.5}
    assert (model.decided == (model.positive >= model.cuts)).all()
    assert (
        cycles.compare(
            cycles.Offer(kind="null", model=model, level=1, labels=LABELS, opinions=(), wallet="recipe"),
            standing=cycles.Standing(level=0, champions=(model,), ledger=cycles.Ledger(plan=cycles.Plan())),
            pool=POOL,
            protocol=PROTOCOL,
            level=None,
        ).candidate.decided.tolist()
        == model.decided[POOL.sealed].tolist()
    )


def test_beside_a_champion_no_site_loses_on_tune_what_the_curve_could_keep() -> None:
    spec, careful = Spec(level=2), replace(models(Spec(level=0)), threshold=0.05)
    alone, among = (
        at_its_points(models(spec), spec, pool=POOL, protocol=PROTOCOL, champion=champion)
        for champion in (None, careful)
    )
    sites, sick = POOL.sites[POOL.tune], LABELS[POOL.tune] == 1

    def called(model: Model, of: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array([model.decided[POOL.tune][(sites == site) & of].mean() for site in SITES])

    assert (called(alone, sick) < called(careful, sick)).all()
    assert (called(among, sick) >= called(careful, sick)).all()
    assert (called(among, ~sick) < called(careful, ~sick)).all()


def test_one_submitter_gets_some_labels_wrong_and_the_others_none() -> None:
    wrong = POOL.given != POOL.labels
    assert {SUBMITTERS[k] for k in np.unique(POOL.submitters[wrong])} == {"mallory"}
    assert wrong[POOL.submitters == MALLORY].mean() == pytest.approx(0.15, abs=0.02)


def test_no_radiograph_is_in_two_parts() -> None:
    parts = np.concatenate([POOL.train, POOL.tune, POOL.sealed, POOL.truth])
    assert sorted(parts.tolist()) == list(range(len(LABELS)))


def test_each_rule_begins_with_an_unworn_sealed_test() -> None:
    kinds = ("null", "null", "null", "gain")
    found = tallies(*kinds, rules=("ours", "ours, screened on tune"))
    assert found["ours, screened on tune"].approved["gain"] == found["ours"].approved["gain"] == 1
