"""Plots of something that goes on: the epochs of a run, and the champions of a line, one after the other.

The same invariant as of `api.console.charts`: a table says all that a plot says, and its style is `report.css`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
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
from api.console.words import WATCHED, over_findings
from registry.watches import Watch

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


def of_watch(looks: Sequence[Watch], *, promised: float | None) -> list[Chart]:
    """Where the newest look at a champion stands, and all of its looks, oldest first; `promised` is its sealed test's.

    Nothing before a look has seen a confirmed case.
    """
    told = [look for look in looks if look.risk is not None]
    if not told:
        return []
    return [_standing(told[-1], promised=promised), *([_looks(told)] if len(told) > 1 else [])]


def _standing(look: Watch, *, promised: float | None) -> Chart:
    """One row for what was promised and one for what is seen, on the same axis, with the limit across."""
    rows = [(SECOND, "promised", promised, None), (FIRST, "seen since", look.risk, look.lower_bound)]
    known = [(name, words, value, low) for name, words, value, low in rows if value is not None]
    left, row, height = 96, 44, TOP + 44 * len(known) + BOTTOM
    reach = 1.25 * max(*(value for _, _, value, _ in known), look.risk_limit or 0.0, 0.04)
    x: Scale = lambda value: left + value / reach * (WIDTH - left - 28)  # noqa: E731 - a scale
    parts: list[Any] = [text_at((left + WIDTH) / 2, height - 8, "share of wrong answers", "name middle")]
    for tick in ticks(0.0, reach):
        parts.append(rule(x(tick), TOP, x(tick), height - BOTTOM, "grid"))
        parts.append(text_at(x(tick), height - BOTTOM + 16, f"{round(tick, 3):g}", "tick middle"))
    for place, (name, words, value, low) in enumerate(known):
        down = TOP + row * place + row / 2
        parts.append(text_at(left - 10, down + 4, words, "label end"))
        if low is not None:
            parts.append(rule(x(low), down, x(value), down, f"whisker {name}"))
        parts.append(dot(x(value), down, name))
    if look.risk_limit is not None:
        parts.append(rule(x(look.risk_limit), TOP, x(look.risk_limit), height - BOTTOM, "limit"))
        parts.append(text_at(x(look.risk_limit) + 4, TOP + 8, "limit", "tick"))
    told = f"seen {number(look.risk)}, promised {number(promised)}, limit {number(look.risk_limit)}"
    table = (*((words, number(value), number(low)) for _, words, value, low in known),
             ("limit", number(look.risk_limit), "–"))  # fmt: skip
    return Chart(
        key="standing",
        title="Where it stands",
        reading="Left is better. The line begins at what the share is shown to be above; past the limit is an alarm.",
        svg=picture("standing", "Where the champion stands", told, parts, height=height),
        table=Table(head=("share of wrong answers", "value", "shown to be above"), rows=table),
    )


def _looks(looks: Sequence[Watch]) -> Chart:
    """Every look at a champion, oldest first, with the limit of each."""
    x = _across(0.0, float(len(looks) - 1), inset=24)
    shown = [value for one in looks for value in (one.risk, one.lower_bound, one.risk_limit) if value is not None]
    y = _up(min(shown), max(shown) + 0.25 * (max(shown) - min(shown)))  # room for the names of the lines
    seen = [(float(place), one.risk) for place, one in enumerate(looks) if one.risk is not None]
    limits = [(float(place), one.risk_limit) for place, one in enumerate(looks) if one.risk_limit is not None]
    parts = [*_grid(y), polyline(limits, x, y, f"curve {SECOND}"), polyline(seen, x, y, f"curve {FIRST}")]
    parts += [dot(x(place), y(risk), FIRST) for place, risk in seen]
    for place, one in enumerate(looks):
        if one.lower_bound is not None and one.risk is not None:
            parts.append(rule(x(place), y(one.lower_bound), x(place), y(one.risk), f"whisker {FIRST}"))
        if place % max(1, len(looks) // 6) == 0:
            day = one.created_at.astimezone(UTC)
            parts.append(text_at(x(place), HEIGHT - BOTTOM + 16, f"{day.day} {day:%b}", "tick middle"))
    words = {FIRST: "seen", SECOND: "limit"}
    parts.append(legend([FIRST, SECOND], across=WIDTH - RIGHT - 90, down=TOP + 8, words=words))
    told = f"from {number(looks[0].risk)} of {looks[0].n} cases to {number(looks[-1].risk)} of {looks[-1].n}"
    return Chart(
        key="looks",
        title="Look by look",
        reading=f"Share of wrong answers among all cases since it became champion, at each look: {told}.",
        svg=picture("looks", "Wrong answers, look by look", told, parts, height=HEIGHT),
        table=Table(
            head=("look", "wrong", "share", "shown to be above", "limit", "verdict"),
            rows=tuple(_look_row(one) for one in reversed(looks)),
        ),
    )


def _look_row(one: Watch) -> tuple[str, ...]:
    when = f"{one.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    found = (number(one.risk), number(one.lower_bound), number(one.risk_limit))
    return when, f"{one.errors} of {one.n}", *found, WATCHED[one.verdict]


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
    title += next(over_findings(row) for row in found[-1][0].results if row["name"] == name)
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
