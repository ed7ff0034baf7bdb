"""What a load measured: rounds of several sides in turns, a table of them, and the comparison with the record."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import load
from benchmarks.stage import LINE, Process, Record, Stage, chain_is_whole
from registry import db

ROUND_SECONDS = 5.0
MILLISECONDS = 1000

Side = tuple[Record, Process, int]
"""One side of a comparison: a record, the API that serves it, how many rows a request has."""


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was measured of one side of a comparison, round by round."""

    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    acknowledged: list[load.Acknowledged] = field(default_factory=list)
    tried_again: int = 0
    client_cpu: list[float] = field(default_factory=list)
    api_cpu_ms: list[float] = field(default_factory=list)

    def add(self, one: load.Load, *, api_cpu_seconds: float) -> None:
        """Take in a round."""
        self.rates.append(one.per_second)
        self.latencies += one.latencies
        self.acknowledged += one.acknowledged
        self.tried_again += sum(one.refusals.values())
        self.client_cpu.append(one.cpu_seconds / one.seconds)
        self.api_cpu_ms.append(api_cpu_seconds / len(one.acknowledged) * MILLISECONDS)

    @property
    def rate(self) -> float:
        """Confirmations a second: the median of the rounds."""
        return statistics.median(self.rates)

    def percentile(self, percent: int) -> float:
        """Milliseconds within which so many per cent of the requests were acknowledged."""
        return statistics.quantiles(self.latencies, n=100)[percent - 1] * MILLISECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What clients were told against what the record holds; `whole` is the chain, None where it was left out."""

    acknowledged: int
    lost: int  # told, and not there as told
    doubled: int
    whole: bool | None

    def __str__(self) -> str:
        chain = {True: "; chain whole", False: "; chain BROKEN", None: ""}[self.whole]
        return f"{self.lost} lost, {self.doubled} doubled of {self.acknowledged} acknowledged{chain}"


def in_turns(stage: Stage, sides: Mapping[str, Side], *, connections: int, seconds: float) -> dict[str, Measured]:
    """Load each side (a record, its API, rows a request) for `seconds` altogether, a round at a time, in turns."""
    found = {name: Measured() for name in sides}
    rounds = max(1, round(seconds / ROUND_SECONDS))
    for number in range(rounds):
        for name, (record, api, rows) in sides.items():
            before = api.cpu_seconds()
            one = load.run(
                load.Task(
                    port=api.port,
                    api_key=stage.api_key,
                    prefix=f"{record.name}-{rows}-{number}",
                    line=LINE,
                    first_case=1,
                    cases=record.cases,
                    connections=connections if rows == 1 else 1,
                    seconds=seconds / rounds,
                    rows=rows,
                )
            )
            found[name].add(one, api_cpu_seconds=api.cpu_seconds() - before)
    return found


def show(title: str, found: Mapping[str, Measured]) -> None:
    """Print a table; ratios are to its first row."""
    print(f"\n{title}\n")
    print("| | a second | ratio | p50 ms | p99 ms | n | API CPU ms | client CPU |")
    print("|---|---|---|---|---|---|---|---|")
    first = next(iter(found.values()))
    for name, one in found.items():
        print(
            f"| {name} | {one.rate:.0f} | {one.rate / first.rate:.2f} | {one.percentile(50):.1f} |"
            f" {one.percentile(99):.1f} | {len(one.acknowledged)} | {statistics.median(one.api_cpu_ms):.2f} |"
            f" {statistics.median(one.client_cpu):.0%} |"
        )
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)


def compare(record: Record, acknowledged: Sequence[load.Acknowledged], *, chained: bool = True) -> Comparison:
    """Compare what clients were told with what the record holds."""
    with db.connect(record.url) as connection:
        held = connection.execute(
            "SELECT reader, case_id, finding, confirmation_id FROM confirmations WHERE reader <> 'filled'"
        ).fetchall()
    readers = [row[0] for row in held]
    return Comparison(
        acknowledged=len(acknowledged),
        lost=len(set(acknowledged) - set(held)),
        doubled=len(readers) - len(set(readers)),
        whole=chain_is_whole(record) if chained else None,
    )
