"""What a stream of updates gained and lost: the numbers of continual learning, from one matrix.

R[i, j] is the AUROC on site j's test cases after update i, (T, S), both counted from 0, sites in order of arrival.
References: Lopez-Paz and Ranzato, NeurIPS 2017 (the matrix, BWT); Chaudhry et al., ECCV 2018 (forgetting);
Caccia et al., ICLR 2022 (average anytime accuracy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One stream in numbers. AUROC 0..1 and differences of it; NaN where a stream is too short to have the number."""

    acc: float
    """Mean over the sites after the last update."""
    worst: float
    """The worst site after the last update."""
    forgetting: float
    """Mean over the sites known before the last update of their best earlier AUROC minus the last one; below 0, old
    sites still gain."""
    bwt: float
    """Mean over the same sites of the last AUROC minus that on the day of the site's first cases: backward transfer."""
    unseen: float
    """Mean over all but the first site of the AUROC just before its first case came."""
    aaa: float
    """Mean over updates of the mean over the sites seen so far."""
    monotone: float
    """The smallest change, from one update to the next, of the mean over all sites."""


def summarise(matrix: Matrix, *, first: Sequence[int] | None = None) -> Summary:
    """Compute every number from R (T, S); `first` (S,) is the update that brought each site's first cases.

    Without it, each update brings one site: 0, 1, 2, … Raises ValueError where R does not fit, or is not finite.
    """
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError("R has one row for each update and one column for each site, all of them finite")
    t, last = len(matrix), matrix[-1]
    day = np.arange(t) if first is None else np.asarray(first)
    if matrix.shape[1] != len(day) or day.max() >= t:
        raise ValueError("R has one row for each update and one column for each site, and every site has its first day")
    several, known, later = t > 1, np.flatnonzero(day < t - 1), np.flatnonzero(day > 0)
    return Summary(
        acc=float(last.mean()),
        worst=float(last.min()),
        forgetting=float((matrix[:-1, known].max(axis=0) - last[known]).mean()) if several else float("nan"),
        bwt=float((last[known] - matrix[day[known], known]).mean()) if several else float("nan"),
        unseen=float(matrix[day[later] - 1, later].mean()) if len(later) else float("nan"),
        aaa=float(np.mean([matrix[i, day <= i].mean() for i in range(t)])),
        monotone=float(np.diff(matrix.mean(axis=1)).min()) if several else float("nan"),
    )


def gap_closed(score: float, *, naive: float, full: float) -> float:
    """Return where `score` lies between `naive` (0) and `full` (1); NaN where these two are equal."""
    return (score - naive) / (full - naive) if full != naive else float("nan")
