"""Plots of something that goes on: the epochs of a run, and the champions of a line, one after the other.

The same invariant as of `api.console.charts`: a table says all that a plot says, and its style is `report.css`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.console.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Chart,
    Point,
    Scale,
    Table,
    dot,
    estimate,
    legend,
    number,
    picture,
    polyline,
    rule,
    text_at,
    ticks,
)

HEIGHT = 240
FIRST, SECOND = "candidate", "champion"
"""The classes of the two lines of a plot: they differ by colour, dashes and the shape of their marks."""
LOSSES = (("loss", FIRST, "while training"), ("tune_log_loss", SECOND, "on tune, worst site"))
MEASURES = {"auroc": "AUROC", "sensitivity": "Sensitivity", "specificity": "Specificity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reign:
    """A champion on a line's plot: its number, since when, and the rows of the gate report that let it in."""

    number: int
    since: datetime
    results: Sequence[Mapping[str, Any]]

    def measured(self, name: str) -> Mapping[str, Any] | None:
        """What its gate report measured of it, None where it did not."""
        return next((row.get("candidate") for row in self.results if row["name"] == name), None)


def of_run(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss and AUROC by epoch; nothing before the second epoch has ended."""
    charts = []
    known = [(key, name, words) for key, name, words in LOSSES if len(_points(history, key)) > 1]
    if known:
        charts.append(_curves("loss", "Log loss by epoch", "Lower is better. What counts is tune.", history, known))
    if len(_points(history, "tune_auroc")) > 1:
        only = [("tune_auroc", FIRST, "on tune")]
        charts.append(_curves("tune-auroc", "AUROC by epoch", "Higher is better.", history, only))
    return charts


def of_line(reigns: Sequence[Reign]) -> list[Chart]:
    """Each measure of the champions, the first on the left; nothing before there were two of them."""
    charts = [_reigns(name, title, reigns) for name, title in MEASURES.items()]
    return [chart for chart in charts if chart is not None]


def _curves(
    key: str,
    title: str,
    reading: str,
    history: Sequence[Mapping[str, Any]],
    known: Sequence[tuple[str, str, str]],
) -> Chart:
    lines = [(name, words, _points(history, column)) for column, name, words in known]
    epochs = [at for _, _, points in lines for at, _ in points]
    values = [value for _, _, points in lines for _, value in points]
    x = _across(min(epochs), max(epochs))
    y = _up(min(values), max(values))
    parts = _grid(y)
    step = max(1, round((max(epochs) - min(epochs)) / 8))
    for epoch in range(int(min(epochs)), int(max(epochs)) + 1, step):
        parts.append(text_at(x(epoch), HEIGHT - BOTTOM + 16, str(epoch), "tick middle"))
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "epoch", "name middle"))
    for place, (name, words, points) in enumerate(lines):
        parts.append(polyline(points, x, y, f"curve {name}"))
        parts += [dot(x(at), y(value), name) for at, value in points[-1:]]
        parts.append(legend([name], across=x(max(epochs)) - 150, down=TOP + 10 + 16 * place, words={name: words}))
    told = "; ".join(f"{words}: {number(points[-1][1])} after epoch {points[-1][0]:g}" for _, words, points in lines)
    rows = tuple(
        (f"{row['epoch']}", *(number(row.get(column)) for column, _, _ in known)) for row in history if "epoch" in row
    )
    return Chart(
        key=key,
        title=title,
        reading=f"{reading} {told[0].upper()}{told[1:]}.",
        svg=picture(key, title, told, parts, height=HEIGHT),
        table=Table(head=("epoch", *(words for _, _, words in known)), rows=rows),
    )


def _reigns(name: str, title: str, reigns: Sequence[Reign]) -> Chart | None:
    found = [(one, measured) for one in reigns if (measured := one.measured(name)) is not None]
    if len(found) < 2:
        return None
    x = _across(0.0, float(len(found) - 1), inset=24)
    y = _up(min(measured["low"] for _, measured in found), max(measured["high"] for _, measured in found))
    parts = _grid(y)
    step = max(1, len(found) // 8)
    for place, (one, measured) in enumerate(found):
        parts.append(rule(x(place), y(measured["low"]), x(place), y(measured["high"]), "whisker candidate"))
        parts.append(dot(x(place), y(measured["value"]), FIRST))
        if place % step == 0:
            parts.append(text_at(x(place), HEIGHT - BOTTOM + 16, f"model {one.number}", "tick middle"))
    parts.append(polyline([(place, m["value"]) for place, (_, m) in enumerate(found)], x, y, "curve candidate"))
    first, last = found[0], found[-1]
    told = (
        f"from {estimate(first[1])} of model {first[0].number} to {estimate(last[1])} of model {last[0].number}, "
        "each on the sealed test of its own dataset version"
    )
    rows = tuple(
        (f"model {one.number}", f"{one.since:%Y-%m-%d %H:%M} UTC", estimate(measured), str(measured["n"]))
        for one, measured in found
    )
    return Chart(
        key=f"trend-{name}",
        title=title,
        reading=f"{told[0].upper()}{told[1:]}.",
        svg=picture(f"trend-{name}", f"{title} of the champions", told, parts, height=HEIGHT),
        table=Table(head=("champion", "since", title, "n"), rows=rows),
    )


def _points(history: Sequence[Mapping[str, Any]], column: str) -> list[Point]:
    return [(row["epoch"], row[column]) for row in history if "epoch" in row and row.get(column) is not None]


def _grid(y: Scale) -> list[Any]:
    """Rules and numbers of the upright axis, over the range that the plot shows."""
    low, high = _value_at(y, HEIGHT - BOTTOM), _value_at(y, TOP)
    parts = []
    for tick in ticks(low, high):
        parts.append(rule(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(text_at(LEFT - 6, y(tick) + 4, f"{round(tick, 4):g}", "tick end"))
    return parts


def _across(low: float, high: float, *, inset: float = 4) -> Scale:
    wide = WIDTH - LEFT - RIGHT - 2 * inset
    return lambda value: LEFT + inset + (value - low) / ((high - low) or 1.0) * wide


def _up(low: float, high: float) -> Scale:
    spare = 0.08 * (high - low) or 0.05
    bottom, reach = low - spare, high - low + 2 * spare
    return lambda value: HEIGHT - BOTTOM - (value - bottom) / reach * (HEIGHT - TOP - BOTTOM)


def _value_at(y: Scale, down: float) -> float:
    zero, one = y(0.0), y(1.0)
    return (down - zero) / (one - zero)
