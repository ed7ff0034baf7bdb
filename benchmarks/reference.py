"""Measure the reference standard at a million cases: the queue of discordant ones, reading what stands, agreement.

    python -m benchmarks.reference                       # 100,000 and 1,000,000 cases
    python -m benchmarks.reference --sizes 10000

Of the cases, one in a hundred has a second read that disagrees, and nine in ten of those are adjudicated. A hundred
cases change after that. PostgreSQL and the client share the machine, so times are given as CPU time of both: a busy
machine makes everything late, and that less.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import LiteralString

import numpy as np
import psutil

from benchmarks.stage import ROOT, Record, Stage, open_stage
from pipelines.agreement import Reads, krippendorff, pairs
from registry import adjudications, cases, confirmations, db, lines
from registry.cases import Case
from registry.db import Connection
from registry.users import User
from tests import factories
from tests.conftest import as_superuser
from workers.translate import confirmed_cases

CHANGED = 100
TIMES = 200

_CASES: LiteralString = """
INSERT INTO cases (line_id, image_digest, site, submitted_by) SELECT line_id, %(digest)s, 'north', user_id
FROM lines, users, generate_series(1, %(cases)s::integer) WHERE users.name = 'bench'"""
_READ: LiteralString = """
INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by)
SELECT case_id, line_id, %(finding)s, 'single_read', 'blind', %(reader)s, now(), submitted_by FROM cases
WHERE case_id %% %(every)s = 0 ORDER BY case_id"""
_ADJUDICATED: LiteralString = """
INSERT INTO confirmations (case_id, line_id, kind, finding, evidence, ai_exposure, reader, confirmed_at, submitted_by,
    reason)
SELECT case_id, line_id, 'adjudication', 'normal', 'single_read', 'blind', 'rita', now(), submitted_by, 'why'
FROM cases WHERE case_id %% 100 = 0 AND case_id %% 1000 <> 0 ORDER BY case_id"""
_QUEUE: LiteralString = """
EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) SELECT case_id, since FROM discordances JOIN cases USING (case_id)
WHERE discordances.line_id = 1 AND since > 0 AND erasure_id IS NULL ORDER BY since LIMIT 100"""


def fill(record: Record, *, cases: int) -> None:
    """Add the cases and what is said about them; the queue is worked out by the record's own triggers."""
    with db.connect(as_superuser(record.url)) as connection:
        digest = factories.blob(connection)
        for query, values in (
            (_CASES, {"digest": digest, "cases": cases}),
            (_READ, {"finding": "normal", "reader": "reader-1", "every": 1}),
            (_READ, {"finding": "pneumonia", "reader": "reader-2", "every": 100}),
            (_ADJUDICATED, {}),
        ):
            connection.execute(query, values)
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


def measure_queue(connection: Connection) -> None:
    """A page of the queue, and how PostgreSQL finds it."""
    began = cpu_seconds(connection)
    for _ in range(TIMES):
        found = adjudications.discordances(connection, line_id=1)
    took = (cpu_seconds(connection) - began) / TIMES * 1e3
    print(f"queue: a page of {len(found)} cases in {took:.1f} ms")
    for (line,) in connection.execute(_QUEUE):
        print(f"    {line}")


def measure_reading(record: Record) -> None:
    """All that stands, and what changed, each in a process of its own: seconds and megabytes."""
    with db.connect(record.url) as connection:
        last = confirmations.last_id(connection, 1)
        sender = factories.user(connection, "submitter")
        changed = cases.list_cases(connection, line_id=1, limit=CHANGED)
        confirm(connection, changed, sender=sender, reader="another", finding="normal")
    for name, after in (("all that stands", 0), (f"what stands about {CHANGED} changed cases", last)):
        print(f"{name}: {_child(record, 'read', str(after))}", flush=True)


def measure_adding(record: Record) -> None:
    """What keeping the queue costs a confirmation: with and without its trigger, in turns, in the database alone."""
    with db.connect(as_superuser(record.url)) as connection:
        sender, line = factories.user(connection, "submitter"), lines.line_by_id(connection, 1)
        image = factories.blob(connection)
        for rows in (0, 1, 3, 10, 100):
            took = {}
            for switch in ("DISABLE", "ENABLE"):
                connection.execute(f"ALTER TABLE confirmations {switch} TRIGGER confirmations_are_followed".encode())
                made = [factories.case(connection, line, actor=sender, image_digest=image) for _ in range(TIMES)]
                for reader in range(rows):
                    confirm(connection, made, sender=sender, reader=f"reader-{reader}", finding="normal")
                began = cpu_seconds(connection)
                for case in made:
                    confirm(connection, [case], sender=sender, reader="another", finding="pneumonia")
                took[switch] = (cpu_seconds(connection) - began) / TIMES * 1e3
            print(
                f"the next confirmation after {rows}: {took['DISABLE']:.2f} ms, with the queue {took['ENABLE']:.2f} ms"
            )
        connection.rollback()


def confirm(connection: Connection, them: Sequence[Case], *, sender: User, reader: str, finding: str) -> None:
    """Add a blind single read of each case."""
    read = {"finding": finding, "evidence": "single_read", "ai_exposure": "blind", "reader": reader}
    diagnoses = [
        confirmations.Diagnosis(case_id=case.case_id, confirmed_at=None, supersedes=None, **read) for case in them
    ]
    confirmations.confirm_many(connection, diagnoses, actor=sender)


def measure_agreement() -> None:
    """A million reads by twenty readers, three of each case."""
    generator = np.random.default_rng(0)
    cases = np.repeat(np.arange(333_334), 3)[:1_000_000]
    first = generator.integers(0, 20, size=333_334)
    readers = (first[cases] + np.tile(np.arange(3), 333_334)[:1_000_000]) % 20
    truth = generator.integers(0, 2, size=333_334)[cases]
    said = np.where(generator.random(1_000_000) < 0.9, truth, 1 - truth)
    reads = Reads(
        cases=cases, readers=readers, findings=said, exposures=np.full(1_000_000, "blind"),
        names=tuple(f"reader-{number}" for number in range(20)),
    )  # fmt: skip
    for name, work in (
        ("alpha", lambda: krippendorff(reads)),
        ("alpha with 1,000 resamples", lambda: krippendorff(reads, generator=generator, resamples=1000)),
        ("tables of all pairs of readers", lambda: list(pairs(reads))),
    ):
        began = time.process_time()
        work()
        print(f"{name} of 1,000,000 reads: {time.process_time() - began:.2f} s")


def cpu_seconds(connection: Connection) -> float:
    """CPU time of this process and of the server's side of the connection."""
    return time.process_time() + sum(psutil.Process(connection.info.backend_pid).cpu_times()[:2])


def _child(record: Record, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.reference", "--child", record.url, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _read(url: str, after: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with db.connect(url) as connection:
        began, found, rows = cpu_seconds(connection), 0, 0
        standing = confirmations.standing_for_line(connection, line_id=1, up_to=2**62, after=int(after))
        for case in confirmed_cases(standing):
            found += 1
            rows += len(case.confirmations)
        took = cpu_seconds(connection) - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{found:,} cases, {rows:,} rows in {took:.3f} s, {more:.0f} MB more than before")


def _measure(stage: Stage, cases: int) -> None:
    record = stage.record(f"reference_{cases}", cases=0)
    began = time.perf_counter()
    fill(record, cases=cases)
    print(f"\n{cases:,} cases, filled in {time.perf_counter() - began:.0f} s", flush=True)
    with db.connect(record.url) as connection:
        measure_queue(connection)
    measure_reading(record)
    measure_adding(record)


def main() -> None:
    """Measure at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=(100_000, 1_000_000), help="how many cases")
    parser.add_argument("--child", nargs=3, metavar=("URL", "WHAT", "AFTER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        _read(asked.child[0], asked.child[2])
        return
    measure_agreement()
    with open_stage() as stage:
        for cases in asked.sizes:
            _measure(stage, cases)


if __name__ == "__main__":
    main()
