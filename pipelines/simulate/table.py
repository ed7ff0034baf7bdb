"""What a simulation measured, beside what was expected, as values for tests and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured number with its standard error; `expected` is what the design says, None where it says nothing."""

    rule: str
    what: str
    value: float
    error: float
    expected: float | None = None

    @property
    def distance(self) -> float | None:
        """How many standard errors the number lies from what was expected."""
        if self.expected is None or self.error == 0.0:
            return None
        return (self.value - self.expected) / self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All that one simulation measured; `setting` says what was simulated."""

    title: str
    setting: str
    repeats: int
    rows: tuple[Row, ...]

    def value(self, rule: str, what: str) -> Row:
        """Return the row of a rule. Raises KeyError."""
        for row in self.rows:
            if (row.rule, row.what) == (rule, what):
                return row
        raise KeyError((rule, what))

    def render(self) -> str:
        """Write the table in Markdown."""
        lines = [f"{self.title}, {self.repeats} repeats", "", self.setting, ""]
        lines += ["| rule | what | expected | measured | standard error |", "|---|---|---|---|---|"]
        for row in self.rows:
            expected = "" if row.expected is None else _short(row.expected)
            lines.append(f"| {row.rule} | {row.what} | {expected} | {_short(row.value)} | {_short(row.error)} |")
        return "\n".join(lines) + "\n"


def share(rule: str, what: str, hits: NDArray[np.bool_] | Sequence[bool], *, expected: float | None = None) -> Row:
    """Return the share of repeats in which something happened."""
    values = np.asarray(hits, dtype=bool)
    rate = float(values.mean())
    return Row(rule=rule, what=what, value=rate, error=_binomial_error(rate, len(values)), expected=expected)


def mean(rule: str, what: str, values: NDArray[np.floating] | Sequence[float], *, expected: float | None = None) -> Row:
    """Return the mean over repeats."""
    found = np.asarray(values, dtype=np.float64)
    error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
    return Row(rule=rule, what=what, value=float(found.mean()), error=error, expected=expected)


def median(
    rule: str, what: str, values: NDArray[np.floating] | Sequence[float], *, expected: float | None = None
) -> Row:
    """Return the median over repeats, infinity for what never came; its error from the order statistics around it."""
    found = np.sort(np.asarray(values, dtype=np.float64))
    half = np.sqrt(len(found)) / 2.0
    low, high = (int(np.clip(len(found) / 2.0 + side * half, 0, len(found) - 1)) for side in (-1.0, 1.0))
    error = (found[high] - found[low]) / 2.0 if np.isfinite(found[high]) else np.inf
    return Row(rule=rule, what=what, value=float(np.median(found)), error=float(error), expected=expected)


def _binomial_error(rate: float, n: int) -> float:
    """The error of a share; of 0 or of all, as if half a repeat had gone the other way."""
    kept = min(max(rate, 0.5 / n), 1.0 - 0.5 / n)
    return float(np.sqrt(kept * (1.0 - kept) / n))


def _short(value: float) -> str:
    if not np.isfinite(value):
        return "never"
    return f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.1f}" if abs(value) >= 10.0 else f"{value:.3f}"
