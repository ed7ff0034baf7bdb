"""Looking at the champion in use: what counts, in which order, and when the alarm rises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines import alarm, betting, watch
from pipelines.protocol import Monitoring, Protocol, ProtocolError, from_document
from pipelines.watch import Sample, Sealed
from tests.pipelines.saying import read

DOCUMENT: dict[str, Any] = {
    "line": "toy",
    "title": "A toy line",
    "intended_use": "To test the watch on numbers that a computer has made.",
    "classes": ["normal", "pneumonia"],
    "input": {"rows": 28, "columns": 28},
    "monitoring": {"tolerance": 0.036, "alpha": 0.1},
}
ASKED = from_document(DOCUMENT)
RULE = ASKED.monitoring or Monitoring()
SEALED = Sealed(errors=200, n=2000)
"""With this the limit is .15: an upper bound of .112 at .05, and the tolerance."""


def sample(wrong: Any, *, verified: Any = None, sites: Any = None, scores: Any = None) -> Sample:
    """Cases of which the champion was wrong where `wrong` says so; all confirmed unless told otherwise."""
    wrong = np.asarray(wrong, dtype=bool)
    n = len(wrong)
    decided = np.arange(n) % 2
    labels = np.where(wrong, 1 - decided, decided)
    positive = np.where(decided == 1, 0.8, 0.2) if scores is None else np.asarray(scores)
    return Sample(
        case_ids=np.arange(100, 100 + n),
        sites=np.full(n, "north") if sites is None else sites,
        scores=np.stack([1.0 - positive, positive], axis=1),
        decided=decided,
        labels=labels if verified is None else np.where(verified, labels, -1),
        delays=np.full(n, 2.0),
        ages=np.full(n, 40.0),
    )


def look(found: Sample, *, sealed: Sealed | None = SEALED, rule: Monitoring = RULE, asked: Protocol = ASKED) -> Any:
    return watch.look(found, sealed=sealed, rule=rule, asked=asked)


def wrongs(risk: float, n: int, *, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random(n) < risk


def test_the_limit_is_the_sealed_tests_bound_at_half_of_alpha_and_the_tolerance() -> None:
    seen = look(sample(wrongs(0.1, 200)))
    assert seen["risk_limit"] == pytest.approx(0.036 + alarm.limit_of(errors=200, n=2000, tolerance=0.0, alpha=0.05))
    assert seen["risk_limit"] == pytest.approx(0.148, abs=0.002)


def test_an_honest_champion_is_in_order_after_a_year() -> None:
    seen = look(sample(wrongs(0.12, 1040)))
    assert (seen["verdict"], seen["n"], seen["raised_at"]) == ("in_order", 1040, None)
    assert seen["lower_bound"] < seen["risk"] < seen["risk_limit"]


def test_harm_raises_the_alarm_within_weeks_and_names_what_to_look_at() -> None:
    wrong = wrongs(0.25, 1040)
    seen = look(sample(wrong))
    assert seen["verdict"] == "alarm"
    assert seen["raised_at"] <= 20 * 12
    assert seen["lower_bound"] > 0.15
    assert seen["cases_to_see"] == (100 + np.flatnonzero(wrong))[::-1][:20].tolist()
    until = look(sample(wrong[: seen["raised_at"]]))
    before = look(sample(wrong[: seen["raised_at"] - 1]))
    assert (until["verdict"], before["verdict"]) == ("alarm", "in_order")


def test_an_alarm_stays_though_the_cases_after_it_are_right() -> None:
    wrong = wrongs(0.25, 400)
    later = np.concatenate([wrong, np.zeros(2000, dtype=bool)])
    assert look(sample(later))["raised_at"] == look(sample(wrong))["raised_at"]


def test_half_of_alpha_pays_for_the_watch() -> None:
    wrong = wrongs(0.25, 1040)
    seen = look(sample(wrong))
    limit = seen["risk_limit"]
    capital = betting.capital(
        wrong.astype(float), limit, expected=limit, spread=limit * (1 - limit), weight=alarm.WEIGHT, memory=alarm.MEMORY
    )
    assert seen["raised_at"] == int(np.flatnonzero(capital >= 1 / 0.05)[0]) + 1


@pytest.mark.parametrize("n", [0, 1, 19])
def test_a_few_cases_that_show_no_harm_show_nothing(n: int) -> None:
    seen = look(sample(np.zeros(n, dtype=bool)))
    assert seen["verdict"] == "insufficient"
    assert seen["reason"].startswith("no blind case" if n == 0 else f"only {n} blind cases")
    assert seen["risk"] == (None if n == 0 else 0.0)


def test_harm_that_few_cases_show_is_an_alarm_all_the_same() -> None:
    assert look(sample(np.ones(19, dtype=bool)))["verdict"] == "alarm"


@pytest.mark.parametrize("sealed", [None, Sealed(errors=1, n=19)])
def test_without_a_sealed_test_nothing_is_said_to_be_in_order(sealed: Sealed | None) -> None:
    seen = look(sample(wrongs(0.1, 500)), sealed=sealed)
    assert (seen["verdict"], seen["risk_limit"]) == ("insufficient", None)


def test_a_sealed_test_that_allows_everything_is_an_alarm() -> None:
    seen = look(sample(wrongs(0.1, 500)), sealed=Sealed(errors=20, n=20))
    assert (seen["verdict"], seen["risk_limit"], seen["raised_at"]) == ("alarm", 1.0, None)
    assert "too small to watch by" in seen["reason"]


def test_cases_that_nobody_read_or_that_cannot_be_read_do_not_count_as_right() -> None:
    wrong = wrongs(0.25, 400)
    verified = np.arange(400) % 2 == 0
    found = sample(wrong, verified=verified)
    found.scores[0] = np.nan
    seen = look(found)
    assert (seen["sample"], seen["n"], seen["errors"]) == (400, 199, int(wrong[verified].sum() - wrong[0]))
    assert seen["verified_share"] == pytest.approx(199 / 400)


def test_confirmed_cases_stand_for_those_like_them_that_nobody_read() -> None:
    # Sure cases (.9) are read one in four, and it is right in them; unsure ones (.6) are all read, and it errs in half.
    sure = np.arange(800) < 400
    wrong = ~sure & (np.arange(800) % 2 == 0)
    verified = ~sure | (np.arange(800) % 4 == 0)
    seen = look(sample(wrong, verified=verified, scores=np.where(sure, 0.9, 0.6)))
    assert seen["risk"] == pytest.approx(200 / 500)
    assert seen["weighted_risk"]["value"] == pytest.approx(200 / 800)
    unread = look(sample(wrong, verified=~sure, scores=np.where(sure, 0.9, 0.6)))
    assert "have more of them read" in unread["weighted_risk"]["missing"]


def test_the_age_at_which_labels_have_come_is_told() -> None:
    found = sample(wrongs(0.1, 400))
    found.delays[:] = np.where(found.labels == 1, 3.0, 21.0)
    assert look(found)["mature_after_days"] == 21.0
    assert look(sample(np.zeros(0, dtype=bool)))["mature_after_days"] is None


def challenger(found: Sample, *, wrong: Any) -> Any:
    return np.where(wrong, 1 - found.labels, found.labels)


def follow(found: Sample, decided: Any, *, unknown: Any = True, margin: float = 0.02) -> Any:
    rows = np.broadcast_to(np.asarray(unknown), found.labels.shape)
    return watch.follow(found, decided=decided, unknown=rows, margin=margin, alpha=0.05)


def test_a_challenger_that_is_better_passes_in_the_shadow_and_a_worse_one_does_not() -> None:
    found = sample(wrongs(0.12, 1500))
    better = follow(found, challenger(found, wrong=wrongs(0.06, 1500, seed=1)))
    assert better["verdict"] == "pass"
    assert better["passed_at"] < better["n"] == 1500
    assert better["difference"] == pytest.approx(0.06, abs=0.02)
    worse = follow(found, challenger(found, wrong=wrongs(0.2, 1500, seed=1)))
    assert (worse["verdict"], worse["passed_at"]) == ("insufficient", None)


def test_the_shadow_falls_on_no_case_that_the_challenger_may_have_learned_from() -> None:
    found = sample(np.ones(400, dtype=bool))
    learned = np.arange(400) < 300
    decided = challenger(found, wrong=~learned)  # right where it learned, and only there
    assert follow(found, decided)["verdict"] == "pass"
    fair = follow(found, decided, unknown=~learned)
    assert (fair["n"], fair["difference"]) == (100, 0.0)
    none = follow(found, decided, unknown=False)
    assert (none["verdict"], none["n"], none["difference"]) == ("insufficient", 0, None)


def test_only_blind_words_make_a_label() -> None:
    blind, aided = read("pneumonia", number=1), read("normal", number=2, exposure="aided", evidence="consensus")
    assert watch.label_of([blind, aided], asked=ASKED) == 1
    assert watch.label_of([aided], asked=ASKED) == -1
    assert watch.label_of([], asked=ASKED) == -1
    assert watch.label_of([blind, read("normal", number=3, reader="ben")], asked=ASKED) == -1
    assert watch.label_of([blind, read("normal", number=3, evidence="pathology")], asked=ASKED) == 0
    assert watch.label_of([read("normal", evidence="report_text")], asked=ASKED) == -1


def test_a_lower_bound_is_below_the_risk_in_nearly_every_year_and_rises_with_evidence() -> None:
    bounds = [alarm.lower_bound(wrongs(0.2, 500, seed=seed).astype(float), alpha=0.05) for seed in range(40)]
    assert sum(bound > 0.2 for bound in bounds) <= 4
    assert np.median(bounds) > 0.1
    assert alarm.lower_bound(np.zeros(500), alpha=0.05) == 0.0
    assert alarm.lower_bound(np.empty(0), alpha=0.05) == 0.0
    assert alarm.lower_bound(np.ones(500), alpha=0.05) > 0.9


def test_a_protocol_that_says_nothing_of_monitoring_keeps_its_digest() -> None:
    silent = from_document({name: value for name, value in DOCUMENT.items() if name != "monitoring"})
    assert "monitoring" not in silent.document()
    assert silent.digest == "86072760eb3ddad257edc5f8a647e4064173e627d40a5631182d069163bad332"
    assert from_document({**silent.document(), "monitoring": {}}).monitoring == Monitoring()


def test_a_sample_that_is_always_empty_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no case is blind where blind_fraction is 0"):
        from_document({**DOCUMENT, "blind_fraction": 0.0})
    every = {**DOCUMENT, "blind_fraction": 0.0, "monitoring": {"sample": "every_case"}}
    assert from_document(every).monitoring == Monitoring(sample="every_case")
