"""Plots of a run and of a line's champions: all that they show stands in their tables too."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

from api.console import trends
from api.console.charts import ticks

HISTORY = [
    {"epoch": epoch, "epochs": 4, "loss": 0.8 / epoch, "tune_log_loss": 0.9 / epoch, "tune_auroc": 0.8 + epoch / 50}
    for epoch in range(1, 5)
]


def measured(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 300}


def reign(number: int, value: float) -> trends.Reign:
    rows = [{"name": "auroc", "candidate": measured(value)}, {"name": "leakage", "candidate": None}]
    return trends.Reign(number=number, since=datetime(2026, 3, number, 9, 30, tzinfo=UTC), results=rows)


def points(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)  # noqa: S314 - made here
    lines = [line.attrib["points"].split() for line in root.iter("polyline")]
    return [[(float(x), float(y)) for x, _, y in (pair.partition(",") for pair in line)] for line in lines]


def test_a_run_is_drawn_epoch_by_epoch_with_its_table() -> None:
    loss, auroc = trends.of_run(HISTORY)
    assert loss.table.head == ("epoch", "while training", "on tune, worst site")
    assert loss.table.rows[1] == ("2", "0.400", "0.450")
    assert auroc.table.rows[-1] == ("4", "0.880")
    training, tune = points(loss.svg)
    assert len(training) == len(tune) == 4
    assert [y for _, y in training] == sorted(y for _, y in training)  # it falls, and down is more
    assert all(up < down for (_, down), (_, up) in zip(training, tune, strict=True))  # tune is the worse
    assert "0.880 after epoch 4" in auroc.reading


@pytest.mark.parametrize("history", [[], HISTORY[:1], [{"stage": "freezing"}], [{"epoch": 1, "loss": None}] * 2])
def test_nothing_is_drawn_before_the_second_epoch(history: list[dict[str, object]]) -> None:
    assert trends.of_run(history) == []


def test_the_champions_of_a_line_are_drawn_from_the_first_to_the_last() -> None:
    (chart,) = trends.of_line([reign(1, 0.90), reign(4, 0.93), reign(7, 0.95)])
    assert chart.table.rows[0] == ("model 1", "2026-03-01 09:30 UTC", "0.900 [0.880, 0.920]", "300")
    assert [row[0] for row in chart.table.rows] == ["model 1", "model 4", "model 7"]
    (line,) = points(chart.svg)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)
    assert "model 7" in chart.svg
    assert trends.of_line([reign(1, 0.9)]) == []


def test_of_several_findings_what_is_drawn_is_called_a_mean() -> None:
    several = [
        replace(one, results=[{**one.results[0], "details": {"findings": []}}])
        for one in (reign(1, 0.9), reign(4, 0.93))
    ]
    (chart,) = trends.of_line(several)
    assert chart.title == "AUROC (mean of the findings)"
    (plain,) = trends.of_line([reign(1, 0.9), reign(4, 0.93)])
    assert plain.title == "AUROC"


@pytest.mark.parametrize(("low", "high"), [(0.9, 0.902), (0.0, 1.0), (-0.3, 0.3), (0.0, 40.0), (0.0, 1e9)])
def test_an_axis_of_any_range_has_a_few_round_numbers(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 10
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
