"""Plans: what is drawn, how often, and at what cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines import strategies
from pipelines.recipe import Recipe

RECIPE = Recipe()


def _plan(
    strategy: Any, *, base: int | None = 1, new: int = 100, old: int = 900, recipe: Recipe = RECIPE
) -> strategies.Plan:
    """900 old cases, 9 in 10 of class 1 and 5 in 6 of site a; 100 new ones of site c."""
    n = old + new
    return strategies.plan(
        strategy,
        labels=np.array([0 if k % 10 == 0 else 1 for k in range(n)]),
        sites=np.array(["c" if k >= old else "b" if k % 6 == 0 else "a" for k in range(n)]),
        label_since=np.array([2 if k >= old else 1 for k in range(n)]),
        base_number=base,
        recipe=recipe,
    )


def test_full_starts_from_nothing_and_draws_the_classes_evenly() -> None:
    plan = _plan("full")
    assert plan.start == "nothing"
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert len(order) == 1000
    assert np.mean(order % 10 == 0) == pytest.approx(0.5, abs=0.01)


def test_finetune_sees_only_what_is_new() -> None:
    plan = _plan("finetune")
    assert plan.start == "champion"
    assert strategies.epoch_order(plan.pools, rng=np.random.default_rng(0)).min() >= 900


def test_replay_is_half_new_and_rehearses_every_site_and_class_alike() -> None:
    plan = _plan("replay")
    order = np.concatenate([strategies.epoch_order(plan.pools, rng=np.random.default_rng(k)) for k in range(40)])
    assert np.mean(order >= 900) == pytest.approx(0.5, abs=0.01)
    archive = order[order < 900]
    strata = [np.mean((archive % 6 == 0) == b) for b in (True, False)]
    assert strata == pytest.approx([0.5, 0.5], abs=0.03)
    assert np.mean(archive % 10 == 0) == pytest.approx(0.5, abs=0.03)


def test_each_batch_is_mixed_from_the_first_to_the_last() -> None:
    order = strategies.epoch_order(_plan("replay").pools, rng=np.random.default_rng(0))
    shares = [np.mean(part >= 900) for part in np.array_split(order, 10)]
    assert min(shares) > 0.3
    assert max(shares) < 0.7


def test_the_cost_of_an_update_does_not_grow_with_the_archive() -> None:
    small, large = _plan("replay", old=900), _plan("replay", old=9000)
    assert small.sample_gradients == large.sample_gradients == 16 * 100
    assert large.sample_gradients < 0.02 * _plan("full", old=9000).sample_gradients


def test_an_update_never_costs_more_than_half_a_training_from_nothing() -> None:
    update, full = _plan("replay", old=50, new=950), _plan("full", old=50, new=950)
    assert update.sample_gradients <= 0.5 * full.sample_gradients
    assert update.epochs == RECIPE.update_epochs


@pytest.mark.parametrize("strategy", [name for name in strategies.PLANS if name != "full"])
def test_without_a_champion_or_anything_new_every_strategy_is_full_and_says_so(strategy: str) -> None:
    first = _plan(strategy, base=None)
    assert first.start == "nothing"
    assert "no champion" in first.notes[0]
    assert "no case is new since dataset version 2" in _plan(strategy, base=2).notes[0]


def _share_of_strata(order: Any, *, every: int = 6) -> list[float]:
    """Share of site b among the drawn, and of class 0."""
    return [float(np.mean(order % every == 0)), float(np.mean(order % 10 == 0))]


def test_warm_sees_every_case_with_the_sites_and_classes_alike_for_three_epochs() -> None:
    plan = _plan("warm", old=3000)
    assert (plan.start, plan.epochs, plan.sample_gradients) == ("champion", 3, 3 * 3100)
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert np.mean(order >= 3000) == pytest.approx(1 / 3, abs=0.02)
    old = order[order < 3000]
    assert _share_of_strata(old) == pytest.approx([0.5, 0.5], abs=0.03)


def test_auto_draws_all_sites_and_classes_alike_and_costs_a_fifth_of_a_training_from_nothing() -> None:
    plan, full = _plan("auto", old=3000, new=640), _plan("full", old=3000, new=640)
    assert plan.start == "champion"
    assert plan.sample_gradients == pytest.approx(0.2125 * full.sample_gradients, rel=0.01)
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert np.mean(order >= 3000) == pytest.approx(1 / 3, abs=0.01)  # one site of three
    assert _share_of_strata(order[order < 3000]) == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize(("old", "new", "share"), [(200, 800, 0.8), (600, 400, 0.4), (900, 100, 0.25)])
def test_of_one_site_auto_draws_new_cases_as_often_as_old_ones_and_a_quarter_at_the_least(
    old: int, new: int, share: float
) -> None:
    labels = np.arange(old + new) % 2
    since = np.where(np.arange(old + new) < old, 1, 2)
    sites = np.full(old + new, "a")
    plan = strategies.plan("auto", labels=labels, sites=sites, label_since=since, base_number=1, recipe=RECIPE)
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert np.mean(order >= old) == pytest.approx(share, abs=0.02)
    assert np.mean(order % 2) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("strategy", ["auto", "warm"])
def test_few_epochs_of_a_small_update_are_made_of_smaller_batches_and_not_of_fewer_steps(strategy: Any) -> None:
    small, large = _plan(strategy), _plan(strategy, new=5000, old=45_000)
    assert small.batches * small.epochs >= 80
    assert small.batch_size < RECIPE.batch_size
    assert large.batch_size == RECIPE.batch_size


def test_the_cost_of_auto_stops_growing_once_the_archive_is_large() -> None:
    assert _plan("auto", old=900).sample_gradients == _plan("auto", old=90_000).sample_gradients
    assert _plan("auto", old=300).sample_gradients < _plan("auto", old=900).sample_gradients


def test_auto_without_an_archive_sees_what_is_new() -> None:
    plan = _plan("auto", old=0, new=100)
    assert [len(pool.rows) for pool in plan.pools] == [100]


def test_gdumb_starts_from_nothing_on_500_cases_evenly_over_sites_and_classes() -> None:
    plan = _plan("gdumb", old=3000, new=300)
    assert plan.start == "nothing"
    assert plan.sample_gradients == 500 * RECIPE.epochs
    kept = plan.pools[0].rows
    assert len(np.unique(kept)) == 500
    counts = [np.sum(kept >= 3000), np.sum((kept < 3000) & (kept % 6 == 0)), np.sum((kept < 3000) & (kept % 6 != 0))]
    assert min(counts) >= 100
    assert np.mean(kept % 10 == 0) > 0.3  # one case in ten is of class 0, and there are not enough for half


def test_gdumb_costs_the_same_however_large_the_archive() -> None:
    assert _plan("gdumb", old=9000).sample_gradients == _plan("gdumb", old=3000).sample_gradients


def test_derpp_keeps_200_cases_and_holds_the_network_to_the_champion_on_them_only() -> None:
    plan = _plan("derpp", old=3000)
    assert len(plan.pools[1].rows) == 200
    assert plan.pools[1].rows.max() < 3000
    assert plan.teaching is not None
    assert plan.teaching.distance == "logits"
    assert set(plan.taught.tolist()) == set(plan.pools[1].rows.tolist())
    assert plan.sample_gradients == round((2 + 1 / 3) * RECIPE.update_epochs * 100)


def test_lwf_sees_no_past_case_and_is_held_to_the_champion_on_every_new_one() -> None:
    plan = _plan("lwf")
    assert plan.taught.tolist() == list(range(900, 1000))
    assert strategies.epoch_order(plan.pools, rng=np.random.default_rng(0)).min() >= 900
    assert plan.sample_gradients == round((1 + 1 / 3) * RECIPE.update_epochs * 100)


def test_interpolate_is_finetune_and_half_the_way_back() -> None:
    plan, tuned = _plan("interpolate"), _plan("finetune")
    assert plan.pools[0].rows.tolist() == tuned.pools[0].rows.tolist()
    assert plan.blending is not None
    assert plan.blending.shares == (0.5,)
    assert plan.sample_gradients == tuned.sample_gradients + round(512 / 3)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_share() -> None:
    plan = _plan("replay", old=9000, new=640)
    rates = [plan.learning_rate(step) for step in range(plan.batches * plan.epochs)]
    assert max(rates) == pytest.approx(RECIPE.learning_rate / 2)
    assert rates.index(max(rates)) == pytest.approx(0.1 * len(rates), abs=2)
    assert rates[-1] == pytest.approx(0.02 * plan.peak_learning_rate, rel=0.05)
    assert rates[0] < 0.1 * plan.peak_learning_rate


def test_a_corrected_label_counts_as_new() -> None:
    plan = strategies.plan(
        "finetune",
        labels=np.array([0, 1, 0, 1]),
        sites=np.array(["a"] * 4),
        label_since=np.array([1, 1, 3, 1]),
        base_number=2,
        recipe=RECIPE,
    )
    assert plan.pools[0].rows.tolist() == [2]


def test_a_single_case_of_a_small_site_is_not_rehearsed_dozens_of_times() -> None:
    n = 1000
    plan = strategies.plan(
        "replay",
        labels=np.arange(n) % 2,
        sites=np.array(["lonely"] + ["a"] * (n - 1)),
        label_since=np.array([1] * 900 + [2] * 100),
        base_number=1,
        recipe=RECIPE,
    )
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert np.sum(order == 0) <= 10


@pytest.mark.parametrize("strategy", ["full", "auto", "warm", "replay", "derpp", "gdumb", "finetune"])
def test_a_case_of_less_weight_is_drawn_less_and_its_class_as_often(strategy: Any) -> None:
    n = 1200
    labels, doubted = np.arange(n) % 2, np.arange(n) % 6 == 0
    plan = strategies.plan(
        strategy,
        labels=labels,
        sites=np.full(n, "a"),
        label_since=np.where(np.arange(n) < n // 2, 1, 2),
        base_number=1,
        recipe=RECIPE,
        weights=np.where(doubted, 0.25, 1.0),
    )
    order = np.concatenate([strategies.epoch_order(plan.pools, rng=np.random.default_rng(k)) for k in range(60)])
    drawn, able = np.bincount(order, minlength=n), np.isin(np.arange(n), np.concatenate([p.rows for p in plan.pools]))
    same_class = able & (labels == 0)
    assert drawn[same_class & doubted].mean() == pytest.approx(0.25 * drawn[same_class & ~doubted].mean(), rel=0.12)
    assert np.mean(labels[order] == 0) == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_draws_the_same_epoch() -> None:
    pools = _plan("replay").pools
    first, again, other = (strategies.epoch_order(pools, rng=np.random.default_rng(k)) for k in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


def test_derpp_without_old_cases_to_draw_has_no_teacher() -> None:
    assert _plan("derpp", recipe=Recipe(replay_share=0.0)).teaching is None
    assert _plan("derpp", old=0).teaching is None


def test_what_an_escalation_may_need_is_measured_beforehand_and_no_case_is_counted_twice() -> None:
    assert _plan("replay", recipe=Recipe(strategy="replay")).consolidates is None
    escalating = _plan("replay", recipe=Recipe(strategy="replay", escalation=("ewc",)))
    assert escalating.consolidates is not None
    assert len(escalating.consolidates.rows) == 1000
    assert not escalating.carries
    new_alone = _plan("ewc")
    assert new_alone.consolidates is not None
    assert (len(new_alone.consolidates.rows), new_alone.carries) == (100, True)
    assert not _plan("full", recipe=Recipe(strategy="ewc")).carries


def test_a_class_of_doubted_cases_is_drawn_as_often_as_the_other() -> None:
    labels = np.arange(100) % 2
    plan = strategies.plan(
        "full",
        labels=labels,
        sites=np.full(100, "a"),
        label_since=np.ones(100, dtype=np.int64),
        base_number=None,
        recipe=RECIPE,
        weights=np.where(labels == 0, 0.02, 1.0),
    )
    order = strategies.epoch_order(plan.pools, rng=np.random.default_rng(0))
    assert np.mean(labels[order] == 0) == pytest.approx(0.5, abs=0.02)


def test_no_batch_is_of_a_single_case() -> None:
    for strategy in ("finetune", "interpolate", "ewc", "lwf"):
        plan = _plan(strategy, new=1)
        assert plan.draws // plan.batches >= 2
    three = strategies.Pool(rows=np.arange(3), weights=np.ones(3), draws=3)
    assert strategies.Plan(start="nothing", pools=(three,), epochs=1, batch_size=2, peak_learning_rate=0.1).batches == 1
