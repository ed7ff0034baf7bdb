"""What to confirm next: the cases of a line that nobody has confirmed, in the order in which an answer is worth most.

Several arms each have an order of their own and take turns by shares that are said in advance. Invariants: each case is
listed once; the ranking is a pure function of the pool, whatever its order; whether a case is `blind`, and when the
`random` arm comes to it, follows from its lot, a keyed hash that nobody can choose, so the confirmations of these two
arms are a fair sample of all cases. A blind case is listed by the blind arm and by no other.

Other arms have a share only where they beat the random one in a paired test (`earned`; `benchmarks/worklist.py`
measures, docs/worklist.md tells).

    python -m pipelines.worklist JOB_DIR     # config.json, pool.ndjson, known.ndjson in; ranking.ndjson, result.json
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import job
from pipelines.arms import ARMS, ORDERS, Arm, Pool, Rows, Shares, by_lot

SURE = 0.75
"""Above this score a reason names no number."""
ALPHA = 0.05
NICENESS = 10
"""People wait for trainings and gates before they wait for a ranking."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """The pool in order, most wanted first; `shares` is what each arm was to have of the places, the blind one too."""

    case_ids: NDArray[np.int64]
    arms: tuple[Arm, ...]
    reasons: tuple[str, ...]
    shares: dict[str, float]


RANDOM = Shares(random=1.0)
LEARNING = Shares(diverse=0.5, disagreement=0.3, random=0.2)


def earned(differences: Sequence[float], *, alpha: float = ALPHA) -> bool:
    """Say whether an arm beat the random one: paired `differences` (arm - random), one a seed, are above 0.

    Exact one-sided sign-flip test of their mean (Fisher 1935, section 21); below five pairs nothing is earned, for no
    outcome could be unlikely enough. All 2^n flips are counted, so n is at most 20.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 5 <= len(values) <= 20 or not np.isfinite(values).all():
        return False
    flips = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
    return bool((flips @ values >= values.sum() - 1e-12).mean() <= alpha)


MEASURED = (-0.0072, 0.0034, -0.0347, -0.0310, 0.0174, 0.0023)
"""What `LEARNING` gained over `RANDOM` in sealed AUROC, one number a seed (benchmarks/worklist.py): nothing, so far."""
DEFAULT = LEARNING if earned(MEASURED) else RANDOM


def rank(pool: Pool, *, blind_fraction: float, shares: Shares) -> Ranking:
    """Rank all cases of a pool.

    `blind_fraction` in [0, 1] is the share of cases to be read without the model, and of the places given to them.
    Without a champion the arms that ask it are silent, and the others take their places. Raises ValueError where a case
    comes twice or a value is no share.
    """
    if not 0.0 <= blind_fraction <= 1.0:
        raise ValueError(f"the blind fraction is a share between 0 and 1, not {blind_fraction}")
    if len(np.unique(pool.case_ids)) != len(pool.case_ids):
        raise ValueError("a case is in the pool twice")
    pool = pool.of(np.argsort(pool.case_ids, kind="stable"))  # whoever brings it in another order gets the same
    blind = pool.lots < blind_fraction
    open_rows = np.flatnonzero(~blind)
    declared = {"blind": blind_fraction} | {
        name: share * (1.0 - blind_fraction) for name, share in asdict(shares).items()
    }
    orders: dict[Arm, Rows] = {"blind": by_lot(pool, np.flatnonzero(blind)), "random": by_lot(pool, open_rows)}
    for arm, order in ORDERS.items():
        if declared[arm] > 0.0:
            orders[arm] = order(pool, open_rows)
    rows, arms = _take_turns(orders, declared, n=len(pool.case_ids))
    return Ranking(
        case_ids=pool.case_ids[rows],
        arms=arms,
        reasons=tuple(_reasons(pool, rows, arms)),
        shares={name: round(share, 6) for name, share in declared.items() if share > 0.0},
    )


def main(arguments: list[str]) -> int:
    """Rank the pool that a job directory describes."""
    os.nice(NICENESS)
    job.hide_pandas()
    return job.run(arguments, work=_work)


def _work(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    cases = _rows(Path(config["pool"]))
    shares, blind_fraction = Shares(**config["shares"]), float(config["blind_fraction"])
    pool = Pool(
        case_ids=np.array([row["case_id"] for row in cases], dtype=np.int64),
        sites=np.array([row["site"] for row in cases], dtype=str),
        age_days=np.array([row["age_days"] for row in cases], dtype=np.float64),
        lots=np.array([row["lot"] for row in cases], dtype=np.float64),
        classes=tuple(config["classes"]),
        confirmed=config["confirmed"],
    )
    if config["champion"] is not None and shares.ask_models:
        from pipelines.consult import Question, consulted  # noqa: PLC0415 - seconds of torch

        question = Question(
            shares=shares,
            blind_fraction=blind_fraction,
            champion=config["champion"],
            challenger=config["challenger"],
            blobs=Path(config["blobs"]),
            keep_going=job.orphan_watch(),
        )
        pool = consulted(pool, cases=cases, known=_rows(Path(config["known"])), question=question)
    ranking = rank(pool, blind_fraction=blind_fraction, shares=shares)
    listed = zip(ranking.case_ids.tolist(), ranking.arms, ranking.reasons, strict=True)
    lines = (json.dumps({"case_id": case, "arm": arm, "reason": reason}) + "\n" for case, arm, reason in listed)
    job.write_atomically(directory / "ranking.ndjson", "".join(lines).encode())
    return {
        "ranking": str(directory / "ranking.ndjson"),
        "shares": ranking.shares,
        "left_out": len(cases) - len(ranking.case_ids),
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _take_turns(orders: Mapping[Arm, Rows], declared: Mapping[str, float], *, n: int) -> tuple[Rows, tuple[Arm, ...]]:
    """Give each place to the arm that has most to come by its share (Webster's method), for its next free case."""
    rows: list[int] = []
    arms: list[Arm] = []
    taken = bytearray(n)
    waiting = [(0.5 / declared[arm], ARMS.index(arm), iter(orders[arm].tolist())) for arm in orders if declared[arm]]
    heapq.heapify(waiting)
    while waiting:
        turn, index, order = waiting[0]
        for row in order:
            if not taken[row]:
                taken[row] = 1
                rows.append(row)
                arms.append(ARMS[index])
                heapq.heapreplace(waiting, (turn + 1.0 / declared[ARMS[index]], index, order))
                break
        else:
            heapq.heappop(waiting)
    for arm in ("blind", "random"):  # what is left when every arm has said all it can
        left = [row for row in orders[arm].tolist() if not taken[row]]
        rows += left
        arms += [arm] * len(left)
    return np.array(rows, dtype=np.int64), tuple(arms)


def _reasons(pool: Pool, rows: Rows, arms: Sequence[Arm]) -> Iterator[str]:
    totals = dict(zip(*(part.tolist() for part in np.unique(pool.sites, return_counts=True)), strict=True))
    for row, site, arm in zip(rows.tolist(), pool.sites[rows].tolist(), arms, strict=True):
        if arm == "blind":
            yield "blind audit"
        elif arm == "random":
            yield "random, so that the rest can be trusted"
        elif arm == "unlike":
            yield f"unlike anything confirmed at site {site}"
        elif arm == "coverage":
            known = pool.confirmed.get(site, 0)
            yield f"site {site} has {known} confirmations of {known + totals[site]} cases"
        elif arm == "disagreement":
            yield "champion and candidate disagree"
        else:
            yield _uncertainty(pool, row)


def _uncertainty(pool: Pool, row: int) -> str:
    assert pool.champion is not None
    predicted = int(pool.champion.predicted[row])
    score = float(pool.champion.scores[row, predicted])
    if score > SURE:
        return "less certain than what comes after it"  # without a number that a reader might lean on
    return f"uncertain: {score:.2f}".replace("0.", ".", 1) + f" for {pool.classes[predicted]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
