"""Plots as SVG that the server makes: from the points that a gate report holds to a picture that needs no script.

Invariant: a chart says nothing that its table does not say too. It has a title and a description for who listens, no
colour or size of its own (classes, for `report.css`: light, dark and paper), and no text that is not escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 46
ROW = 22
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, *(float(2**k) for k in range(64)))
NAMES = {"candidate": "candidate", "champion": "champion", "all": "call every case positive"}
Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A chart's twin, for who cannot see it or wants the numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One plot: `key` names it in the page, `reading` says in a sentence how it is to be read."""

    key: str
    title: str
    reading: str
    svg: Markup
    table: Table


def number(value: float | None, *, signed: bool = False) -> str:
    """A number as people read it, three digits; an en dash where there is none."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.3f}"


def estimate(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """An estimate with its interval; empty where there is none."""
    if found is None:
        return ""
    low, high = number(found["low"], signed=signed), number(found["high"], signed=signed)
    return f"{number(found['value'], signed=signed)} [{low}, {high}]"


def roc(evidence: Mapping[str, Any], *, names: Mapping[str, str] = NAMES) -> list[Chart]:
    """ROC with its band and the operating points, one chart for each class; `names` are what its models are called."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for curve in evidence["curves"]:
        found.setdefault(curve["class"], []).append(curve)
    return [_roc(name, curves, grid=evidence["fpr"], names=names) for name, curves in found.items()]


def _roc(name: str, curves: Sequence[Mapping[str, Any]], *, grid: Sequence[float], names: Mapping[str, str]) -> Chart:
    x, y = _across(0.0, 1.0), _up(0.0, 1.0)
    parts = [
        *_axes(x, y, "false positive rate (1 − specificity)", "sensitivity"),
        polyline([(0, 0), (1, 1)], x, y, "chance"),
    ]
    for curve in curves:
        parts.append(_band(grid, curve, x, y))
    for curve in curves:
        parts.append(polyline(_steps(grid, curve["tpr"]), x, y, f"curve {curve['model']}"))
    for curve in curves:
        if point := curve["point"]:
            parts += _cross(point, x, y, curve["model"])
    parts.append(legend([curve["model"] for curve in curves], across=x(0.52), down=y(0.16), words=names))
    told = "; ".join(f"{names[curve['model']]}: AUROC {estimate(curve['auroc'])}" for curve in curves)
    step = max(1, (len(grid) - 1) // 10)
    rows = tuple((number(grid[k]), *(_banded(curve, k) for curve in curves)) for k in range(0, len(grid), step))
    head = ("false positive rate", *(f"sensitivity, {names[curve['model']]}" for curve in curves))
    key = "-".join(("roc", name, *(curve["model"] for curve in curves)))
    return Chart(
        key=key,
        title=f"ROC, {name}",
        reading=f"Higher is better. Bands hold 95 % of resamples of patients; crosses are operating points. {told}.",
        svg=picture(key, f"ROC of {name}", told, parts),
        table=Table(head=head, rows=rows),
    )


def reliability(evidence: Mapping[str, Any], *, names: Mapping[str, str] = NAMES) -> Chart:
    """How often it is so where a model says so: ten equal groups of cases, each with its interval."""
    x, y = _across(0.0, 1.0), _up(0.0, 1.0)
    parts = [*_axes(x, y, "mean score", f"share of {evidence['of']}"), polyline([(0, 0), (1, 1)], x, y, "chance")]
    rows = []
    for name, bins in evidence["models"].items():
        parts.append(polyline([(one["score"], one["value"]) for one in bins], x, y, f"curve {name}"))
        for one in bins:
            parts.append(polyline([(one["score"], one["low"]), (one["score"], one["high"])], x, y, f"whisker {name}"))
            parts.append(dot(x(one["score"]), y(one["value"]), name))
            rows.append((names[name], number(one["score"]), estimate(one), str(one["n"])))
    parts.append(legend(list(evidence["models"]), across=x(0.04), down=y(0.96), words=names))
    key = "-".join(("reliability", *evidence["models"]))
    return Chart(
        key=key,
        title="Reliability",
        reading="On the dotted line a score means what it says; below it the model is too sure.",
        svg=picture(key, "Reliability diagram", "Observed share against mean score in ten groups", parts),
        table=Table(head=("model", "mean score", "observed", "n"), rows=tuple(rows)),
    )


def decision_curve(evidence: Mapping[str, Any]) -> Chart:
    """Net benefit by threshold, against calling every case and calling none."""
    thresholds, curves = evidence["thresholds"], evidence["curves"]
    highest = max(max(values) for values in curves.values())
    lowest = -0.25 * highest
    x, y = _across(0.0, 1.0), _up(lowest, highest * 1.05)
    parts = [*_axes(x, y, "threshold", "net benefit a case"), polyline([(0, 0), (1, 0)], x, y, "chance")]
    for name, values in curves.items():
        points = [(at, value) for at, value in zip(thresholds, values, strict=True) if value >= lowest]
        parts.append(polyline(points, x, y, f"curve {name}"))
    parts.append(legend(list(curves), across=x(0.04), down=y(highest * 0.30)))
    step = max(1, len(thresholds) // 10)
    rows = tuple(
        (number(thresholds[k]), *(number(values[k], signed=True) for values in curves.values()))
        for k in range(0, len(thresholds), step)
    )
    return Chart(
        key="decision",
        title="Decision curve",
        reading="At each threshold, cases found less false alarms at what they are worth there. Calling none is 0.",
        svg=picture("decision", "Decision curve", "Net benefit against threshold", parts),
        table=Table(head=("threshold", *(NAMES.get(name, name) for name in curves)), rows=rows),
    )


def forest(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Each slice's difference from the champion, or its value where there is no champion."""
    compared = any(row["difference"] for row in rows)
    key = "difference" if compared else "candidate"
    shown = [row for row in rows if row[key]]
    reach = max((max(abs(row[key]["low"]), abs(row[key]["high"])) for row in shown), default=0.1)
    low, high = (-max(reach, 0.05), max(reach, 0.05)) if compared else (0.0, 1.0)
    left, height = 210, TOP + ROW * len(shown) + BOTTOM
    x: Scale = lambda value: left + (value - low) / (high - low) * (640 - left - RIGHT)  # noqa: E731 - a scale
    parts = [
        text_at(x(tick), height - BOTTOM + 18, number(tick, signed=compared), "tick middle")
        for tick in ticks(low, high)
    ]
    parts += [rule(x(tick), TOP, x(tick), height - BOTTOM, "grid") for tick in ticks(low, high)]
    if compared:
        parts.append(rule(x(0.0), TOP, x(0.0), height - BOTTOM, "zero"))
    for place, row in enumerate(shown):
        down, found = TOP + ROW * place + ROW / 2, row[key]
        label = f"{row['slice']} · {row['endpoint']} · n {row['n']}"
        parts.append(text_at(left - 10, down + 4, label, f"label end {row['tier']}"))
        parts.append(rule(x(found["low"]), down, x(found["high"]), down, "whisker candidate"))
        parts.append(dot(x(found["value"]), down, "candidate"))
    words = "difference, candidate − champion" if compared else "share of right decisions"
    parts.append(text_at((left + 640 - RIGHT) / 2, height - 8, words, "name middle"))
    table = tuple(
        (row["slice"], row["tier"], row["endpoint"], str(row["n"]), estimate(row["candidate"]))
        + ((estimate(row["difference"], signed=True),) if compared else ())
        for row in rows
    )
    head = ("slice", "tier", "endpoint", "n", "candidate") + (("difference",) if compared else ())
    return Chart(
        key="forest",
        title="Subgroups",
        reading=(
            "Left of the line the candidate is worse than the champion in that slice. Whiskers are 95 % intervals, "
            "slice by slice: with many slices, one in twenty misses the line by chance."
            if compared
            else "Share of right decisions in each slice, with its 95 % interval."
        ),
        svg=picture("forest", "Subgroups", f"{len(shown)} slices: {words}", parts, width=640, height=height),
        table=Table(head=head, rows=table),
    )


def forgetting(evidence: Mapping[str, Any]) -> Chart:
    """Candidate against champion on each site and each batch of sealed cases."""
    names = [f"v{first}" if first == last else f"v{first}–{last}" for first, last in evidence["versions"]]
    left, wide, high = 130, max(44, min(90, 480 // max(len(names), 1))), 30
    parts, rows = [], []
    for column, name in enumerate(names):
        parts.append(text_at(left + wide * (column + 0.5), 16, name, "tick middle"))
    for place, (site, cells) in enumerate(zip(evidence["sites"], evidence["cells"], strict=True)):
        down = 24 + high * place
        parts.append(text_at(left - 8, down + high / 2 + 4, site or "unknown site", "label end"))
        for column, cell in enumerate(cells):
            parts += _heat(cell, across=left + wide * column, down=down, wide=wide, high=high)
            value, other = cell.get("candidate"), cell.get("champion")  # absent where there are too few cases
            rows.append((site or "unknown", names[column], str(cell["n"]), number(value), number(other)))
    size = {"width": max(640, left + wide * len(names) + 8), "height": 30 + high * len(evidence["sites"])}
    return Chart(
        key="forgetting",
        title="Forgetting",
        reading=(
            "Share of right decisions on the sealed cases of each site, by the dataset version in which they came. In "
            "a cell: candidate less champion, or the candidate's share without one; strong colour where more than "
            "two standard errors. Cells of fewer than 5 cases are empty."
        ),
        svg=picture("forgetting", "Forgetting", "Right decisions by site and dataset version", parts, **size),
        table=Table(head=("site", "came in", "n", "candidate", "champion"), rows=tuple(rows)),
    )


def _heat(cell: Mapping[str, Any], *, across: float, down: float, wide: float, high: float) -> list[Markup]:
    value, other = cell.get("candidate"), cell.get("champion")
    if value is None:
        return [_box(across, down, wide, high, "cell none")]
    change = None if other is None else value - other
    words = f"{value:.2f}" if change is None else f"{change:+.2f}"
    return [
        _box(across, down, wide, high, f"cell {_shade(cell, change)}"),
        text_at(across + wide / 2, down + high / 2 + 4, words, "tick middle inside"),
    ]


def _shade(cell: Mapping[str, Any], change: float | None) -> str:
    if change is None or abs(change) < 0.01:
        return "same"
    lost, gained = cell["lost"], cell["gained"]
    strong = abs(lost - gained) > 2.0 * (lost + gained) ** 0.5  # of discordant cases, half would go either way
    return ("worse" if change < 0 else "better") + ("2" if strong else "1")


def _across(low: float, high: float) -> Scale:
    return lambda value: LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _up(low: float, high: float) -> Scale:
    return lambda value: HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within a range."""
    step = next(s for s in _STEPS if (high - low) / s <= 8)
    first = int(low / step) - 1
    return [k * step for k in range(first, first + 20) if low - 1e-9 <= k * step <= high + 1e-9]


def _axes(x: Scale, y: Scale, across: str, up: str) -> list[Markup]:
    parts = []
    for tick in ticks(0.0, 1.0):
        parts.append(rule(x(tick), TOP, x(tick), HEIGHT - BOTTOM, "grid"))
        parts.append(text_at(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "tick middle"))
    low, high = _inverse(y, HEIGHT - BOTTOM), _inverse(y, TOP)
    for tick in ticks(low, high):
        parts.append(rule(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(text_at(LEFT - 6, y(tick) + 4, f"{round(tick, 3):g}", "tick end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text_at((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across, "name middle"))
    turned = Markup('<text class="name middle" x="14" y="{0:.1f}" transform="rotate(-90 14 {0:.1f})">{1}</text>')
    return [*parts, turned.format(middle, up)]


def _inverse(y: Scale, at: float) -> float:
    zero, one = y(0.0), y(1.0)
    return (at - zero) / (one - zero)


def _steps(across: Sequence[float], up: Sequence[float]) -> list[Point]:
    return [(0.0, 0.0), *zip(across, up, strict=True)]


def _banded(curve: Mapping[str, Any], k: int) -> str:
    return f"{number(curve['tpr'][k])} [{number(curve['low'][k])}, {number(curve['high'][k])}]"


def _band(across: Sequence[float], curve: Mapping[str, Any], x: Scale, y: Scale) -> Markup:
    there, back = zip(across, curve["high"], strict=True), reversed(list(zip(across, curve["low"], strict=True)))
    return Markup('<polygon class="band {}" points="{}"/>').format(curve["model"], _points([*there, *back], x, y))


def polyline(points: Iterable[Point], x: Scale, y: Scale, names: str) -> Markup:
    """A line through points, in classes by name."""
    return Markup('<polyline class="{}" points="{}"/>').format(names, _points(points, x, y))


def _points(points: Iterable[Point], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in points)


def _cross(point: Mapping[str, Any], x: Scale, y: Scale, name: str) -> list[Markup]:
    """The operating point, with the intervals of sensitivity and specificity as its arms."""
    sensitivity, specificity = point["sensitivity"], point["specificity"]
    across, up = 1.0 - specificity["value"], sensitivity["value"]
    return [
        polyline([(1.0 - specificity["high"], up), (1.0 - specificity["low"], up)], x, y, f"arm {name}"),
        polyline([(across, sensitivity["low"]), (across, sensitivity["high"])], x, y, f"arm {name}"),
        dot(x(across), y(up), name),
    ]


def legend(
    names: Sequence[str], *, across: float, down: float, words: Mapping[str, str] = MappingProxyType(NAMES)
) -> Markup:
    """Names beside a piece of their line."""
    parts = []
    for place, name in enumerate(names):
        at = down + 16 * place
        parts.append(rule(across, at, across + 22, at, f"curve {name}"))
        parts.append(text_at(across + 28, at + 4, words.get(name, name), "tick"))
    return Markup("").join(parts)


def dot(across: float, down: float, name: str) -> Markup:
    """A circle for the candidate, a square for the champion: told apart without colour too."""
    if name == "champion":
        return _box(across - 3.5, down - 3.5, 7, 7, "dot champion")
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(name, across, down)


def _box(across: float, down: float, wide: float, high: float, names: str) -> Markup:
    shape = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    return shape.format(names, across, down, wide, high)


def rule(x1: float, y1: float, x2: float, y2: float, names: str) -> Markup:
    """A straight line, in pixels."""
    shape = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return shape.format(names, x1, y1, x2, y2)


def text_at(across: float, down: float, words: str, names: str) -> Markup:
    """Words at a place, in pixels."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(names, across, down, words)


def picture(
    key: str, title: str, description: str, parts: Iterable[Markup], *, width: float = WIDTH, height: float = HEIGHT
) -> Markup:
    """A whole plot, with a title and a description for who listens; `key` is its own on the page."""
    start = Markup(
        '<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{key}-title {key}-desc">'
        '<title id="{key}-title">{title}</title><desc id="{key}-desc">{description}</desc>'
    ).format(key=key, title=title, description=description, width=width, height=height)
    return start + Markup("").join(escape(part) for part in parts) + Markup("</svg>")
