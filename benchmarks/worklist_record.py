"""The list of what to confirm next in a record of a million cases: reading it, asking whether it is due, replacing it.

    nice -n 10 python -m benchmarks.worklist_record [--cases 1000000] [--listed 100000]

A PostgreSQL of its own, fsync on. A tenth of the cases is confirmed; the first thousand places of the list were
confirmed after it was made: half of the worst that a reader meets before the next ranking.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import LiteralString

from benchmarks.stage import Record, open_stage
from registry import db, lines, worklists

_FILL: tuple[LiteralString, ...] = (
    """INSERT INTO cases (line_id, image_digest, site, submitted_by)
    SELECT line_id, digest, 'site-' || n %% 20, user_id
    FROM lines, blobs, users, generate_series(1, %(cases)s::integer) n
    WHERE users.name = 'bench'""",
    """INSERT INTO confirmations
        (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by)
    SELECT case_id, line_id, 'normal', 'single_read', 'blind', 'filled', now(), submitted_by FROM cases
    WHERE case_id %% 10 = 0""",
)
_CONFIRM_THE_FIRST: LiteralString = (
    "INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by)"
    " SELECT case_id, line_id, 'normal', 'single_read', 'blind', 'filled', now(), submitted_by"
    " FROM worklist_cases JOIN cases USING (case_id, line_id) WHERE place <= 1000"
)


def measure(record: Record, *, listed: int) -> None:
    """Print what each step costs."""
    with db.connect(record.url) as connection:
        line = lines.list_lines(connection)[0]
        protocol_id = lines.current_protocol(connection, line.line_id).protocol_id
        begun = time.perf_counter()
        pool = worklists.pool(connection, line=line, candidate_id=None, limit=listed)
        _tell(f"draw a pool of {len(pool):,}", time.perf_counter() - begun)
        last_case_id, last_confirmation_id = worklists.reach(connection, line.line_id)

        def replace() -> None:
            worklists.replace(
                connection,
                line_id=line.line_id,
                candidate_id=None,
                protocol_id=protocol_id,
                shares={"random": 1.0},
                left_out=0,
                last_case_id=last_case_id,
                last_confirmation_id=last_confirmation_id,
                case_ids=[case.case_id for case in pool],
                arms=["random"] * len(pool),
                reasons=["random, so that the rest can be trusted"] * len(pool),
            )
            connection.commit()

        for words in ("write the first list", "replace it"):
            begun = time.perf_counter()
            replace()
            _tell(f"{words}, {len(pool):,} cases", time.perf_counter() - begun)
    with db.connect(record.url) as connection:
        connection.execute(_CONFIRM_THE_FIRST)
        connection.commit()
        asked: dict[str, Callable[[], object]] = {
            "read 100 cases": lambda: worklists.entries(connection, line_id=line.line_id),
            "of one site of twenty": lambda: worklists.entries(connection, line_id=line.line_id, site="site-3"),
            "of one site and arm": lambda: worklists.entries(
                connection, line_id=line.line_id, site="site-3", arm="random"
            ),
            "is a ranking due?": lambda: worklists.due(connection),
            "is an image blind?": lambda: worklists.is_blind(connection, line=line, image_digest="0" * 64),
        }
        for words, question in asked.items():
            _tell(words, *_repeated(question))


def _repeated(question: Callable[[], object], *, times: int = 50) -> list[float]:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        question()
        seconds.append(time.perf_counter() - begun)
    return seconds


def _tell(words: str, *seconds: float) -> None:
    milliseconds = sorted(one * 1000.0 for one in seconds)
    worst = f" | {milliseconds[int(len(milliseconds) * 0.95)]:.1f}" if len(milliseconds) > 1 else " | "
    print(f"| {words} | {statistics.median(milliseconds):.1f}{worst} |", flush=True)


def main(arguments: list[str]) -> int:
    """Fill a record and measure."""
    parser = argparse.ArgumentParser(description="the worklist in a record of a million cases")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--listed", type=int, default=100_000)
    options = parser.parse_args(arguments)
    with open_stage() as made:
        record = made.record("worklist", cases=1)
        with made.admin("worklist") as connection:
            with connection.transaction():
                connection.execute("SET LOCAL session_replication_role = replica")  # right by construction
                for statement in _FILL:
                    connection.execute(statement, {"cases": options.cases})
            connection.execute("VACUUM ANALYZE")
        print(f"{options.cases:,} cases\n\n| | median ms | p95 ms |\n|---|---|---|")
        measure(record, listed=options.listed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
