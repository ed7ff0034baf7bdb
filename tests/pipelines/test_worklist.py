"""What is listed, in which order, and why: by tables and by properties."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import diversity, worklist
from pipelines.arms import Opinion, Pool, Shares
from pipelines.worklist import earned, rank

CLASSES = ("normal", "pneumonia")
EVERY = Shares(random=0.2, uncertain=0.2, diverse=0.2, unlike=0.1, coverage=0.1, disagreement=0.2)


def opinion(pneumonia: Sequence[float]) -> Opinion:
    values = np.array(pneumonia, dtype=np.float32)
    return Opinion(scores=np.stack([1.0 - values, values], axis=1), predicted=(values >= 0.5).astype(np.int64))


def small(**changes: object) -> Pool:
    """Four cases, numbered from 1: the second is the least certain, the last is of a site nobody knows."""
    pool = Pool(
        case_ids=np.arange(1, 5),
        sites=np.array(["north", "north", "north", "south"]),
        age_days=np.zeros(4),
        lots=np.array([0.9, 0.8, 0.3, 0.6]),
        classes=CLASSES,
        confirmed={"north": 12},
        champion=opinion([0.99, 0.52, 0.3, 0.05]),
    )
    return replace(pool, **changes)  # type: ignore[arg-type]


def large(seed: int, n: int) -> Pool:
    """A made-up pool in which every arm has something to say."""
    rng = np.random.default_rng(seed)
    sites = rng.choice(["north", "south", "east"], n, p=[0.7, 0.2, 0.1])
    return Pool(
        case_ids=rng.choice(10 * n, n, replace=False),
        sites=sites,
        age_days=np.round(rng.random(n) * 50.0),
        lots=rng.random(n),
        classes=CLASSES,
        confirmed={"north": 100, "south": 4},
        champion=opinion(rng.random(n).tolist()),
        second=opinion(rng.random(n).tolist()),
        embeddings=rng.standard_normal((n, 8)).astype(np.float32),
        known_embeddings=rng.standard_normal((20, 8)).astype(np.float32),
        known_sites=rng.choice(["north", "south"], 20),
    )


pools = st.builds(large, seed=st.integers(0, 2**31), n=st.integers(1, 300))


def first(pool: Pool, blind_fraction: float = 0.0, **shares: float) -> tuple[list[int], tuple[str, ...]]:
    ranking = rank(pool, blind_fraction=blind_fraction, shares=Shares(**shares))
    return ranking.case_ids.tolist(), ranking.reasons


def test_the_uncertain_arm_asks_for_the_least_margin_and_says_the_score_of_those_alone_that_are_open() -> None:
    cases, reasons = first(small(), uncertain=1.0)
    assert cases == [2, 3, 4, 1]
    assert reasons[:2] == ("uncertain: .52 for pneumonia", "uncertain: .70 for normal")
    assert set(reasons[2:]) == {"less certain than what comes after it"}


def test_of_equally_uncertain_cases_the_oldest_comes_first() -> None:
    pool = small(champion=opinion([0.51, 0.511, 0.509, 0.51]), age_days=np.array([1.0, 2.0, 9.0, 3.0]))
    assert first(pool, uncertain=1.0)[0] == [3, 4, 2, 1]


def test_the_random_arm_goes_by_lot() -> None:
    cases, reasons = first(small(), random=1.0)
    assert cases == [3, 4, 2, 1]
    assert set(reasons) == {"random, so that the rest can be trusted"}


def test_the_coverage_arm_asks_at_the_site_with_the_fewest_confirmations_and_says_how_few() -> None:
    cases, reasons = first(small(confirmed={"north": 2, "south": 1}), coverage=1.0)
    assert cases == [4, 3, 2, 1]
    assert reasons[0] == "site south has 1 confirmations of 2 cases"
    assert reasons[1] == "site north has 2 confirmations of 5 cases"


def test_the_disagreement_arm_lists_only_where_two_models_decide_differently_the_farthest_apart_first() -> None:
    pool = small(second=opinion([0.2, 0.51, 0.9, 0.04]))
    cases, reasons = first(pool, disagreement=1.0)
    by_case = dict(zip(cases, reasons, strict=True))
    assert cases[:2] == [1, 3]
    assert {by_case[2], by_case[4]} == {"random, so that the rest can be trusted"}


def test_the_unlike_arm_asks_for_what_is_far_from_all_that_is_confirmed_at_its_site() -> None:
    pool = small(
        embeddings=np.array([[0.0], [1.0], [5.0], [0.1]], dtype=np.float32),
        known_embeddings=np.array([[0.0], [0.1]], dtype=np.float32),
        known_sites=np.array(["north", "north"]),
    )
    cases, reasons = first(pool, unlike=1.0)
    assert cases[:2] == [4, 3]  # of south nothing is known, and 5 is far from 0 and .1
    assert reasons[0] == "unlike anything confirmed at site south"


def test_the_diverse_arm_takes_turns_between_sites_and_predicted_classes() -> None:
    rng = np.random.default_rng(1)
    n = 400
    sites = np.where(np.arange(n) < 380, "north", "south")
    pool = replace(large(1, n), sites=sites, champion=opinion(rng.uniform(0.3, 0.7, n).tolist()))
    ranking = rank(pool, blind_fraction=0.0, shares=Shares(diverse=1.0))
    site_of = dict(zip(pool.case_ids.tolist(), sites, strict=True))
    assert Counter(site_of[case] for case in ranking.case_ids[:20].tolist()) == {"north": 10, "south": 10}


def test_gradients_picks_one_of_each_heap_before_a_second_of_any() -> None:
    rng = np.random.default_rng(0)
    heaps = np.repeat(np.eye(4) * 10.0, 25, axis=0) + rng.normal(0.0, 0.01, (100, 4))
    errors = np.tile([0.5, -0.5], (100, 1))
    picks = diversity.gradients(errors, heaps, rng.random(100), count=4)
    assert sorted(picks // 25) == [0, 1, 2, 3]


def test_gradients_measures_as_if_the_outer_products_were_written_out() -> None:
    rng = np.random.default_rng(2)
    a, h, lots = rng.normal(size=(40, 3)), rng.normal(size=(40, 5)), rng.random(40)
    whole = (a[:, :, None] * h[:, None, :]).reshape(40, 15)
    assert (
        diversity.gradients(a, h, lots, count=12) == diversity.gradients(np.ones((40, 1)), whole, lots, count=12)
    ).all()


def test_equal_images_do_not_stop_the_picking() -> None:
    picks = diversity.gradients(np.ones((6, 2)), np.ones((6, 3)), np.linspace(0.0, 0.9, 6), count=5)
    assert len(set(picks.tolist())) == 5
    assert diversity.gradients(np.ones((0, 2)), np.ones((0, 3)), np.ones(0), count=5).tolist() == []


def test_without_a_champion_whoever_asks_no_model_takes_the_places() -> None:
    pool = small(champion=None)
    ranking = rank(pool, blind_fraction=0.0, shares=worklist.LEARNING)
    assert set(ranking.arms) == {"random"}
    assert rank(pool, blind_fraction=0.0, shares=Shares(diverse=1.0)).arms == ("random",) * 4


def test_a_blind_case_says_nothing_of_what_the_model_thinks() -> None:
    ranking = rank(small(), blind_fraction=0.7, shares=Shares(uncertain=1.0))
    blind = {case for case, arm in zip(ranking.case_ids.tolist(), ranking.arms, strict=True) if arm == "blind"}
    assert blind == {3, 4}
    assert {reason for reason, arm in zip(ranking.reasons, ranking.arms, strict=True) if arm == "blind"} == {
        "blind audit"
    }


@settings(deadline=None, max_examples=60)
@given(pools, st.floats(0.0, 1.0))
def test_every_case_is_listed_once(pool: Pool, blind_fraction: float) -> None:
    ranking = rank(pool, blind_fraction=blind_fraction, shares=EVERY)
    assert sorted(ranking.case_ids.tolist()) == sorted(pool.case_ids.tolist())
    assert len(ranking.arms) == len(ranking.reasons) == len(pool.case_ids)


@settings(deadline=None, max_examples=60)
@given(pools, st.integers(0, 2**31))
def test_the_order_in_which_cases_come_changes_nothing(pool: Pool, seed: int) -> None:
    shuffled = pool.of(np.random.default_rng(seed).permutation(len(pool.case_ids)))
    one, other = (rank(each, blind_fraction=0.1, shares=EVERY) for each in (pool, shuffled))
    assert one.case_ids.tolist() == other.case_ids.tolist()
    assert (one.arms, one.reasons) == (other.arms, other.reasons)


@settings(deadline=None, max_examples=60)
@given(pools, st.floats(0.02, 0.5))
def test_every_arm_has_its_share_of_every_beginning_while_it_has_something_to_say(
    pool: Pool, blind_fraction: float
) -> None:
    ranking = rank(pool, blind_fraction=blind_fraction, shares=EVERY)
    lists = Counter(ranking.arms)
    blind = int((pool.lots < blind_fraction).sum())
    assert lists["blind"] == blind
    assert ranking.shares["blind"] == pytest.approx(blind_fraction, abs=1e-6)
    assert sum(ranking.shares.values()) == pytest.approx(1.0, abs=1e-5)
    until = min((k for k, arm in _last_places(ranking.arms).items()), default=0)
    for places in range(1, until + 1):
        given_so_far = Counter(ranking.arms[:places])
        for arm, share in ranking.shares.items():
            assert abs(given_so_far[arm] - share * places) <= len(ranking.shares)  # type: ignore[index]


def _last_places(arms: Sequence[str]) -> dict[int, str]:
    return {max(place for place, name in enumerate(arms) if name == arm): arm for arm in set(arms)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_the_blind_cases_are_those_whose_lot_is_low_and_as_many_as_chance_allows(seed: int, fraction: float) -> None:
    pool = large(seed, 1000)
    ranking = rank(pool, blind_fraction=fraction, shares=EVERY)
    blind = {case for case, arm in zip(ranking.case_ids.tolist(), ranking.arms, strict=True) if arm == "blind"}
    assert blind == set(pool.case_ids[pool.lots < fraction].tolist())
    assert abs(len(blind) - 1000 * fraction) <= 6.0 * np.sqrt(1000 * fraction * (1.0 - fraction)) + 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"case_ids": np.array([1, 2, 2, 3])}, "twice"), ({"blind_fraction": 1.5}, "between 0 and 1")],
)
def test_what_is_no_pool_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    blind_fraction = float(changes.pop("blind_fraction", 0.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        rank(small(**changes), blind_fraction=blind_fraction, shares=EVERY)


@pytest.mark.parametrize("shares", [{"random": 0.9}, {"random": 1.2, "uncertain": -0.2}])
def test_shares_are_of_a_whole(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        Shares(**shares)


@pytest.mark.parametrize(
    ("differences", "yes"),
    [
        ([0.01] * 5, True),  # 1 of 32 flips is as large
        ([0.01] * 4, False),  # too few to be unlikely
        ([0.01, 0.01, 0.01, 0.01, -0.001], False),  # 2 of 32
        ([0.02, 0.01, 0.03, 0.01, 0.02, 0.01, -0.001], True),  # 2 of 128
        ([-0.01] * 8, False),
        ([0.0] * 8, False),
        ([float("nan")] * 8, False),
    ],
)
def test_an_arm_earns_its_share_by_an_exact_paired_test(differences: list[float], yes: bool) -> None:
    assert earned(differences) is yes


def test_the_default_follows_from_what_was_measured() -> None:
    assert (worklist.LEARNING if earned(worklist.MEASURED) else worklist.RANDOM) == worklist.DEFAULT
    assert asdict(worklist.DEFAULT)["random"] > 0.0
