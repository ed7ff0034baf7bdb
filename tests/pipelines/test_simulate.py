"""Quick versions of the simulations: no procedure lets through more than alpha, and each keeps the power it is for.

Numbers are held to what the design expects within four standard errors of this few repeats; error rates to alpha and
two.
"""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.simulate import __main__ as command
from pipelines.simulate import alarm, bio_creep, contamination, delay, reuse, shadow, slices
from pipelines.simulate.table import Row, Table, mean, median, share


def _holds(row: Row, alpha: float) -> bool:
    return row.value <= alpha + 2 * row.error


def _near(row: Row, *, slack: float = 4.0) -> bool:
    distance = row.distance
    return distance is not None and abs(distance) <= slack


def test_bio_creep_is_stopped_by_every_approved_model_and_not_by_the_rules_of_today() -> None:
    found = bio_creep.simulate(repeats=30, rng=np.random.default_rng(1))
    assert found.value("non-inferior to champion only", "approvals").value > 15.0
    assert found.value("non-inferior to champion only", "drift from the original").value < -0.15
    assert found.value("point estimate > champion", "approvals").value > 3.0
    kept = found.value("every approved model, alpha / (W + D)", "approvals")
    assert kept.value < 1.5
    assert _near(found.value("champion + original", "approvals"))
    assert _near(found.value("every approved model, alpha / T", "approvals"))
    # in 50 looks at .0025 each, a worse one is called better at most once in eight sequences, and gains still pass
    strict = "the same, and better than the champion"
    assert found.value(strict, "approvals").value <= 0.05
    assert found.value(strict, "a candidate .03 better is approved").value > 0.75


def test_an_adversary_fools_the_point_rule_always_and_the_graph_hardly_ever() -> None:
    rng = np.random.default_rng(0)
    answers = {
        name: share(name, "bad", [any(reuse._adversary(level, n=50, rng=rng)) for _ in range(40)])
        for name, level in reuse._levels().items()
    }
    assert answers["point estimate"].value > 0.98
    assert answers["level alpha each time"].value > 0.3
    assert _holds(answers["graph"], reuse.ALPHA)
    assert answers["graph"].value < 0.09


def test_a_developer_who_screens_on_tune_and_submits_rarely_gets_nearly_all_there_is_to_gain() -> None:
    rng = np.random.default_rng(0)
    found = [reuse._developer(every=5, rng=rng) for _ in range(25)]
    assert np.mean([approved for approved, _ in found]) > 1.5
    gained, there = np.array([gain for _, gain in found]).mean(axis=0)
    assert gained > 0.9 * there


def test_copied_labels_hide_a_better_candidate_and_blind_ones_show_it() -> None:
    found = contamination.simulate(repeats=300, rng=np.random.default_rng(0))
    for row in found.rows:
        if row.what.startswith(("shown", "difference")):
            assert _near(row) or abs(row.value - (row.expected or 0.0)) < 0.02, row
        if row.what.startswith("95 %"):
            assert row.value > 0.9, row


def test_a_shadow_may_be_looked_at_after_every_case() -> None:
    found = shadow.simulate(repeats=150, rng=np.random.default_rng(0))
    assert _holds(found.value("e-process, every case", "false pass at the margin"), shadow.ALPHA)
    assert found.value("z-test, every 20 cases", "false pass at the margin").value > 0.15
    for better, expected in shadow.MEDIANS.items():
        row = found.value("e-process, every case", f"median cases, better by {better:g}")
        assert row.value < 1.4 * expected, row


def test_the_alarm_is_quiet_without_cause_and_finds_harm_in_weeks() -> None:
    found = alarm.simulate(repeats=200, rng=np.random.default_rng(0))
    assert _holds(found.value("e-process", "false alarm, at the limit"), alarm.ALPHA)
    assert found.value("weekly z-test", "false alarm, at the limit").value > 0.15
    assert found.value("e-process", "weeks until harm of 0.25 is found").value <= 8
    assert found.value("e-process", "weeks, harm that begins after half a year").value <= 12


def test_late_and_selective_labels_are_corrected() -> None:
    found = delay.simulate(repeats=6, rng=np.random.default_rng(0))
    for row in found.rows:
        if row.expected is not None:
            assert row.value == pytest.approx(row.expected, abs=0.02), row
    assert found.value("naive: verified cases only", "sensitivity").value > delay.SENSITIVITY + 0.03


def test_tiers_let_an_equal_model_pass_where_twelve_tests_do_not() -> None:
    found = slices.simulate(repeats=40, rng=np.random.default_rng(0))
    for size, expected in slices.EXPECTED.items():
        row = found.value("all 12 must pass", f"equal model stopped, {size} a slice")
        assert row.value == pytest.approx(expected, abs=0.12)
    equal = found.value("tiers", "equal model not passed, 400 a slice")
    assert equal.value < 0.15
    assert found.value("tiers", "0.08 worse in a critical slice let through, 400 a slice").value < 0.05
    assert found.value("tiers", "0.08 worse in a watched slice let through, 400 a slice").value < 0.1
    assert found.value("overall only", "0.08 worse in a watched slice let through, 400 a slice").value > 0.5


def test_a_table_shows_measured_beside_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["delay", "--repeats", "2", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "| rule | what | expected | measured | standard error |" in printed
    assert "| naive: whatever has a label at 30 days | PPV | 0.883 |" in printed
    with pytest.raises(SystemExit):
        command.main(["delay", "--repeats", "1"])
    with pytest.raises(SystemExit):
        command.main(["unheard-of"])


def test_rows_carry_their_error_and_what_never_came_is_said() -> None:
    rate = share("r", "w", [True] * 25 + [False] * 75, expected=0.3)
    assert (rate.value, rate.error) == (0.25, pytest.approx(np.sqrt(0.25 * 0.75 / 100)))
    assert rate.distance == pytest.approx(-0.05 / rate.error)
    assert share("r", "w", [False] * 50).error > 0.0
    assert mean("r", "w", [1.0, 3.0]).error == pytest.approx(1.0)
    assert median("r", "w", [np.inf] * 9 + [1.0]).value == np.inf
    table = Table(title="t", setting="s", repeats=2, rows=(median("r", "w", [np.inf] * 9),))
    assert "| r | w |  | never | never |" in table.render()
    with pytest.raises(KeyError):
        table.value("r", "other")
