"""What a run may spend: sample-gradients known before, seconds decided once and written down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import budget, network, strategies, train
from pipelines.protocol import ProtocolError, from_document
from pipelines.recipe import Recipe
from tests.pipelines.toy import DOCUMENT, cases

FEW, TUNE = cases(32, seed=0), cases(32, seed=1)
TIMED = from_document({**DOCUMENT, "recipe": {**DOCUMENT["recipe"], "epochs": 4, "maximum_seconds": 20.0}})


class Killed(Exception):
    """Stands for a kill between two batches."""


def _plan(strategy: Any, *, most: int | None) -> strategies.Plan:
    recipe = Recipe(maximum_sample_gradients=most)
    plan = strategies.plan(
        strategy,
        labels=np.arange(1000) % 2,
        sites=np.full(1000, "a"),
        label_since=np.where(np.arange(1000) < 900, 1, 2),
        base_number=1,
        recipe=recipe,
    )
    return budget.affordable(plan, recipe=recipe)


def _clock(epochs: Iterable[float]) -> Callable[[], float]:
    """A clock that is read at both ends of each epoch, and by which these last so many seconds."""
    ends = itertools.accumulate(itertools.chain.from_iterable((0.0, seconds) for seconds in epochs))
    return lambda: next(ends)


def _fit(seconds: Iterable[float], **changes: Any) -> train.Trained:
    return train.fit(FEW, TUNE, protocol=TIMED, strategy="full", seed=0, clock=_clock(seconds), **changes)


@pytest.mark.parametrize("strategy", list(strategies.PLANS))
@pytest.mark.parametrize("most", [1000, 1500])
def test_no_plan_costs_more_than_the_recipe_allows_nor_much_less(strategy: Any, most: int) -> None:
    whole, cut = _plan(strategy, most=None), _plan(strategy, most=most)
    if whole.sample_gradients <= most:
        assert (cut.sample_gradients, cut.notes) == (whole.sample_gradients, whole.notes)
        return
    assert 0.9 * most < cut.sample_gradients <= most
    assert f"cut from {whole.sample_gradients} to the recipe's {most} sample-gradients" in cut.notes
    assert cut.batches * cut.batch_size >= cut.draws / 2
    drawn = strategies.epoch_order(cut.pools, rng=np.random.default_rng(0))
    assert len(drawn) == cut.draws


def test_many_epochs_become_fewer_before_they_become_empty() -> None:
    recipe = Recipe(epochs=1000, maximum_sample_gradients=1000)
    known: dict[str, Any] = {"labels": np.arange(100) % 2, "sites": np.full(100, "a"), "base_number": None}
    plan = strategies.plan("full", label_since=np.ones(100, dtype=np.int64), recipe=recipe, **known)
    cut = budget.affordable(plan, recipe=recipe)
    assert cut.epochs < 50
    assert cut.draws >= 16
    assert 900 < cut.sample_gradients <= 1000


def test_what_cannot_be_cut_is_said_to_cost_more() -> None:
    recipe = Recipe(maximum_sample_gradients=1000, members=16)
    known: dict[str, Any] = {"labels": np.arange(1000) % 2, "sites": np.full(1000, "a"), "base_number": 1}
    since = np.where(np.arange(1000) < 500, 1, 2)
    cut = budget.affordable(strategies.plan("interpolate", label_since=since, recipe=recipe, **known), recipe=recipe)
    assert cut.sample_gradients > 1000
    assert cut.notes[-1].endswith(f"what it cannot go without costs {cut.sample_gradients}")


@pytest.mark.parametrize("field", ["maximum_seconds", "anchor_growth"])
def test_an_infinite_number_is_refused_where_the_protocol_is_read(field: str) -> None:
    with pytest.raises(ProtocolError, match=field):
        from_document({**DOCUMENT, "recipe": {field: float("inf")}})


def test_a_run_has_the_epochs_that_fit_into_its_seconds_and_says_so() -> None:
    trained = _fit([9.0, 9.0])
    assert [row["epochs"] for row in trained.history] == [2, 2]
    assert trained.metadata["epochs"] == 2
    assert trained.metadata["sample_gradients"] == 2 * 32
    assert "2 of 4 epochs: the recipe allows 20 seconds" in trained.metadata["notes"]


def test_there_is_a_first_epoch_however_long_it_takes_and_all_of_them_where_time_allows() -> None:
    assert len(_fit([1000.0]).history) == 1
    whole = _fit([1.0, 1.0, 1.0, 1.0])
    assert len(whole.history) == 4
    assert not any("seconds" in note for note in whole.metadata["notes"])


def test_a_shorter_run_is_one_that_was_planned_shorter() -> None:
    plan = _plan("full", most=None)
    rows = [{"seconds": 9.0}] * 2
    shorter = budget.in_time(plan, rows, recipe=Recipe(maximum_seconds=40.0))
    assert shorter.epochs == 4
    last = shorter.learning_rate(shorter.epochs * shorter.batches - 1)
    assert last == pytest.approx(shorter.final_share * shorter.peak_learning_rate, rel=0.1)


def test_a_resumed_run_goes_by_the_seconds_that_were_written_and_not_by_the_clock(tmp_path: Path) -> None:
    unbroken = _fit([5.0, 9.0, 5.0])
    assert [row["epochs"] for row in unbroken.history] == [4, 2]

    batches = iter(range(6))  # the plan has two batches an epoch

    def kill() -> None:
        if next(batches) == 3:
            raise Killed

    with pytest.raises(Killed):
        _fit([5.0, 999.0], checkpoints=tmp_path, keep_going=kill)
    resumed = _fit([9.0, 5.0], checkpoints=tmp_path)
    assert [row["seconds"] for row in resumed.history] == [5.0, 9.0]
    assert network.save_weights(resumed.module) == network.save_weights(unbroken.module)


@pytest.mark.parametrize("field", [{"maximum_seconds": 0.0}, {"maximum_sample_gradients": 10}])
def test_a_budget_for_nothing_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="greater than"):
        from_document({**DOCUMENT, "recipe": field})


def test_a_protocol_from_before_there_were_budgets_keeps_its_digest() -> None:
    document = from_document(DOCUMENT).document()["recipe"]
    assert not {"maximum_seconds", "maximum_sample_gradients", "initial_weights", "members"} & set(document)
