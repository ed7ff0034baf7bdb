"""Two pictures of a stream, as SVG written by hand: does every batch make it better, and what was forgotten.

Numbers stand in the pictures too, so that no colour alone carries meaning. Colours: Okabe and Ito, 2008.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from benchmarks.forgetting import Matrix

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 770, 400, 60, 40, 240, 50
CELL = 62


def every_batch(curves: Mapping[str, Sequence[Matrix]], *, order: str) -> str:
    """Draw the mean AUROC over all sites after each update: a line a strategy, its band one standard deviation.

    `curves` maps a strategy to the matrices R (T, S) of its streams.
    """
    means = {name: np.array([matrix.mean(axis=1) for matrix in matrices]) for name, matrices in curves.items()}
    values = np.concatenate([curve.ravel() for curve in means.values()])
    low, high = np.floor(values.min() * 50) / 50, np.ceil(values.max() * 50) / 50
    steps = next(iter(means.values())).shape[1]

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, steps - 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [_text(LEFT, 20, "Mean AUROC over all sites after each update", size=15, weight="bold")]
    for tick in np.linspace(low, high, round((high - low) / 0.02) + 1):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y(tick) + 4, f"{tick:.2f}", anchor="end"))
    for step in range(0, steps, 1 + steps // 14):
        parts.append(_text(x(step), HEIGHT - BOTTOM + 20, _update(step, steps=steps, order=order), anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "update", anchor="middle"))
    ranked = sorted(means, key=lambda name: -means[name][:, -1].mean())
    label = -np.inf
    for name in ranked:
        colour, curve = COLOURS[list(means).index(name) % len(COLOURS)], means[name]
        middle, spread = curve.mean(axis=0), curve.std(axis=0)
        band = [f"{x(k):.1f},{y(middle[k] + spread[k]):.1f}" for k in range(steps)]
        band += [f"{x(k):.1f},{y(middle[k] - spread[k]):.1f}" for k in reversed(range(steps))]
        line = " ".join(f"{x(k):.1f},{y(middle[k]):.1f}" for k in range(steps))
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.12"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = max(label + 15, y(middle[-1]) + 4)  # labels never lie on each other
        parts.append(_text(WIDTH - RIGHT + 10, label, f"{name} {middle[-1]:.3f}", fill=colour))
    return _svg(WIDTH, HEIGHT, parts, title="Mean AUROC over all sites after each update")


def forgetting_map(matrices: Sequence[Matrix], *, name: str, order: str, first: Sequence[int]) -> str:
    """Draw R as a table of shades, mean over streams; `first` is the update that brought each site, which is framed."""
    mean = np.mean(matrices, axis=0)
    steps = len(mean)
    low, high = 0.75, 0.97
    title = f"AUROC of {name} on each site after each update"
    parts = [_text(LEFT, 20, title, size=15, weight="bold")]
    parts += [_text(LEFT + CELL * (j + 0.5), 44, f"on {site}", anchor="middle") for j, site in enumerate(order)]
    for i in range(steps):
        update = _update(i, steps=steps, order=order)
        parts.append(_text(LEFT - 8, 50 + CELL * (i + 0.5) + 4, update, anchor="end"))
        for j in range(len(order)):
            share = float(np.clip((mean[i, j] - low) / (high - low), 0.0, 1.0))
            shade = f"rgb({round(240 - 240 * share)},{round(244 - 130 * share)},{round(250 - 72 * share)})"
            left, top = LEFT + CELL * j, 50 + CELL * i
            edge = ' stroke="#D55E00" stroke-width="2"' if i == first[j] else ""
            parts.append(
                f'<rect x="{left + 1}" y="{top + 1}" width="{CELL - 3}" height="{CELL - 3}" fill="{shade}"{edge}/>'
            )
            ink = "#fff" if share > 0.55 else "#000"
            parts.append(_text(left + CELL / 2, top + CELL / 2 + 4, f"{mean[i, j]:.3f}", anchor="middle", fill=ink))
    bottom = 50 + CELL * steps + 20
    parts.append(_text(LEFT, bottom, "framed: the day a site first came; above it: not seen yet"))
    return _svg(LEFT + CELL * len(order) + 20, bottom + 15, parts, title=title)


def _update(step: int, *, steps: int, order: str) -> str:
    """The site that an update brought, or its number where sites come more than once."""
    return f"+ {order[step]}" if steps == len(order) else str(step + 1)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", fill: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        f' fill="{fill}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str], *, title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
        f' font-family="system-ui, sans-serif"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])
