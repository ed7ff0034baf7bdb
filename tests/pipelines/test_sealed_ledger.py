"""The ledger of the sealed test: the levels of the graph by hand, and that no history spends more than alpha."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics import MetricError
from pipelines.sealed_ledger import Ledger, LedgerError, Plan, Spent, level_from, local_level
from pipelines.thresholdout import answer
from pipelines.types import Digest

PLAN = Plan(alpha=0.10, uses=50, recipe_share=0.6)


def _level(*answers: bool, uses: int = 50) -> float:
    return local_level(answers, alpha=0.10, plan=Plan(alpha=0.10, uses=uses))


def test_the_levels_are_those_of_the_graph() -> None:
    assert _level() == pytest.approx(0.08)
    assert _level(False) == pytest.approx(0.016)
    assert _level(False, False) == pytest.approx(0.0032)
    assert _level(True) == pytest.approx(0.064)  # what passed hands its weight on
    assert _level(True, True) == pytest.approx(0.0512)
    assert _level(False, True) == pytest.approx(0.016 * 0.8)
    assert _level(False, True, False) == pytest.approx(0.016 * 0.16)


def test_the_last_test_gets_all_that_is_left() -> None:
    assert _level(uses=1) == pytest.approx(0.10)
    assert _level(False, uses=2) == pytest.approx(0.02)
    assert _level(False, False, uses=3) == pytest.approx(0.004)
    assert _level(True, False, uses=3) == pytest.approx(0.08 * 0.2)
    assert _level(False, True, uses=3) == pytest.approx(0.016)


@settings(deadline=None)
@given(uses=st.integers(1, 9), rho=st.floats(0.05, 0.95))
def test_failing_all_the_way_spends_alpha_exactly(uses: int, rho: float) -> None:
    plan = Plan(alpha=0.05, uses=uses, success_weight=rho)
    levels = [local_level([False] * k, alpha=0.05, plan=plan) for k in range(uses)]
    assert sum(levels) == pytest.approx(0.05)
    assert local_level([False] * uses, alpha=0.05, plan=plan) == 0.0


def test_after_any_history_what_is_left_to_fail_with_is_what_the_last_success_had() -> None:
    plan = Plan(alpha=0.05, uses=6)
    for history in product([True, False], repeat=3):
        last = max((k for k, passed in enumerate(history) if passed), default=None)
        weight = 0.05 if last is None else local_level(history[:last], alpha=0.05, plan=plan)
        since = history[: 0 if last is None else last + 1]
        left = [local_level([*since, *[False] * k], alpha=0.05, plan=plan) for k in range(6 - len(since))]
        assert sum(left) == pytest.approx(weight)


@settings(deadline=None)
@given(history=st.lists(st.booleans(), max_size=7), uses=st.integers(1, 8), rho=st.floats(0.05, 0.95))
def test_the_level_that_follows_from_what_is_left_is_that_of_the_graph(
    history: list[bool], uses: int, rho: float
) -> None:
    plan, remaining = Plan(alpha=0.05, uses=uses, success_weight=rho), 0.05
    for k, passed in enumerate([*history, True]):
        level = level_from(remaining, uses_left=uses - k, success_weight=rho)
        assert level == pytest.approx(local_level(history[:k], alpha=0.05, plan=plan), abs=1e-15)
        remaining = level if passed else remaining - level


def test_what_is_left_goes_whole_to_the_last_use_and_to_none_after_it() -> None:
    left = [level_from(0.04, uses_left=uses, success_weight=0.8) for uses in (-1, 0, 1, 2, 3)]
    assert left == pytest.approx([0.0, 0.0, 0.04, 0.032, 0.032])


def test_a_use_of_the_recipe_costs_the_tinkerer_nothing_and_the_other_way_round() -> None:
    ledger = Ledger(plan=PLAN)
    for k, wallet in enumerate(("recipe", "recipe", "adaptive")):
        ledger = ledger.record(candidate=Digest(f"{k:064x}"), hypothesis="auroc", wallet=wallet, passed=False)  # type: ignore[arg-type]
    assert [use.level for use in ledger.uses] == pytest.approx([0.048, 0.0096, 0.032])
    assert ledger.next_level("adaptive") == pytest.approx(0.0064)
    assert ledger.next_level("recipe") == pytest.approx(0.00192)
    assert (PLAN.wallet("recipe"), PLAN.wallet("adaptive")) == pytest.approx((0.06, 0.04))


def test_a_level_just_as_small_as_is_allowed_is_allowed() -> None:
    level = local_level([False], alpha=PLAN.wallet("adaptive"), plan=PLAN)
    for smallest, spent in ((level, False), (level * 1.001, True)):
        plan = replace(PLAN, smallest_level=smallest)
        ledger = Ledger(plan=plan).record(candidate=Digest("a" * 64), hypothesis="x", wallet="adaptive", passed=False)
        assert isinstance(ledger.next_level("adaptive"), Spent) == spent


def _ledger(*answers: bool) -> Ledger:
    ledger = Ledger(plan=PLAN)
    for k, passed in enumerate(answers):
        ledger = ledger.record(candidate=Digest(f"{k:064x}"), hypothesis="auroc", wallet="adaptive", passed=passed)
    return ledger


def test_a_plan_that_says_nothing_is_that_of_the_paper_on_fifty_uses() -> None:
    assert Plan() == Plan(alpha=0.05, success_weight=0.8, uses=50, recipe_share=0.6, smallest_level=1e-6)


def test_the_two_wallets_are_spent_apart_and_hold_alpha_together() -> None:
    assert PLAN.wallet("recipe") + PLAN.wallet("adaptive") == pytest.approx(0.10)
    spent = _ledger(False, False, False)
    assert spent.next_level("recipe") == pytest.approx(0.06 * 0.8)
    assert spent.next_level("adaptive") == pytest.approx(0.04 * 0.8 * 0.2**3)
    assert [use.level for use in spent.uses] == pytest.approx([0.032, 0.0064, 0.00128])


def test_a_spent_wallet_is_refused_with_the_way_out() -> None:
    worn = _ledger(*[False] * 7)
    found = worn.next_level("adaptive")
    assert isinstance(found, Spent)
    assert "worn out for adaptive candidates after 7 uses: open a new epoch" in found.reason
    with pytest.raises(LedgerError, match="new epoch"):
        worn.record(candidate=Digest("f" * 64), hypothesis="auroc", wallet="adaptive", passed=True)
    assert isinstance(worn.next_level("recipe"), float)


def test_a_new_epoch_needs_new_cases() -> None:
    worn = _ledger(*[False] * 7)
    assert worn.new_epoch(new_cases=300, minimum=200).epoch == 2
    fresh = worn.new_epoch(new_cases=200, minimum=200)
    assert (fresh.epoch, fresh.uses) == (2, ())
    assert fresh.next_level("adaptive") == pytest.approx(0.032)
    for too_few in (199, 0):
        with pytest.raises(LedgerError, match=f"there are {too_few}"):
            worn.new_epoch(new_cases=too_few, minimum=200)
    with pytest.raises(LedgerError, match="needs 1 newly"):
        worn.new_epoch(new_cases=0, minimum=0)
    assert worn.new_epoch(new_cases=1, minimum=0).epoch == 2


def test_alpha_is_any_level_below_a_half() -> None:
    assert Plan(alpha=0.49).wallet("recipe") == pytest.approx(0.49 * 0.6)
    for spoilt in (0.0, 0.5):
        with pytest.raises(LedgerError, match="alpha"):
            Plan(alpha=spoilt)


def test_a_candidate_is_answered_once() -> None:
    ledger = _ledger(True)
    use = ledger.earlier(Digest(f"{0:064x}"))
    assert use is not None
    assert use.passed
    assert ledger.earlier(Digest("f" * 64)) is None
    asked_later = ledger.record(candidate=Digest("e" * 64), hypothesis="auroc", wallet="recipe", passed=False)
    for unknown in ("d" * 64, "f" * 64):
        assert asked_later.earlier(Digest(unknown)) is None
    with pytest.raises(LedgerError, match="has had its answer"):
        ledger.record(candidate=Digest(f"{0:064x}"), hypothesis="auroc", wallet="recipe", passed=False)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"alpha": 0.0},
        {"alpha": -0.1},
        {"alpha": 0.5},
        {"alpha": 0.6},
        {"success_weight": 1.0},
        {"success_weight": 1.5},
        {"success_weight": 0.0},
        {"success_weight": -0.5},
        {"recipe_share": 1.1},
        {"recipe_share": -0.1},
        {"uses": 0},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(spoilt: dict[str, float]) -> None:
    with pytest.raises(LedgerError):
        Plan(**spoilt)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_wallet_may_have_it_all(share: float) -> None:
    plan = Plan(alpha=0.1, recipe_share=share)
    assert (plan.wallet("recipe"), plan.wallet("adaptive")) == pytest.approx((0.1 * share, 0.1 * (1.0 - share)))


def test_the_board_answers_from_the_training_data_while_the_two_agree() -> None:
    rng = np.random.default_rng(0)
    board = answer(np.full(4, 0.70), np.full(4, 0.701), threshold=0.04, tolerance=0.005, left=10, rng=rng)
    assert board.values.tolist() == [0.70] * 4
    assert board.left == 10


def test_the_board_answers_with_noise_where_they_part_until_its_budget_is_gone() -> None:
    rng = np.random.default_rng(0)
    board = answer(np.full(3, 0.95), np.full(3, 0.60), threshold=0.04, tolerance=0.01, left=2, rng=rng)
    assert board.values[:2] == pytest.approx([0.60, 0.60], abs=0.05)
    assert not np.isin(0.60, board.values)
    assert np.isnan(board.values[2])
    assert board.left == 0


@pytest.mark.parametrize(
    ("train", "threshold", "tolerance"),
    [([float("nan")], 0.04, 0.01), ([0.5, 0.5], 0.04, 0.01), ([0.5], 0.0, 0.01), ([0.5], 0.04, 0.0)],
)
def test_the_board_refuses_what_it_cannot_answer(train: list[float], threshold: float, tolerance: float) -> None:
    with pytest.raises(MetricError):
        answer(
            np.array(train),
            np.array([0.5]),
            threshold=threshold,
            tolerance=tolerance,
            left=1,
            rng=np.random.default_rng(0),
        )
