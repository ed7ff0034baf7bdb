"""What the record's neighbours cost it: a broker that is killed, a worker that dies, a promotion, images that come in.

Sections of `python -m benchmarks.confirmations`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks import load
from benchmarks.measured import MILLISECONDS, Comparison, Measured, compare, show
from benchmarks.stage import LINE, Record, Stage, wait_for
from registry import candidates, db, lines, promotions, users
from tests import factories
from tests.api.service import ROOT, free_port
from tests.brokers.servers import BROKERS, Broker
from tests.brokers.worker import KIND

KILL_EVERY_SECONDS = 60.0
DOWN_SECONDS = 2.0
ASK_EVERY_SECONDS = 0.1
SETTLE_SECONDS = 120.0
PROMOTIONS = 20
IMAGE_SIDE = 1024  # of noise, which does not compress: a PNG of one MiB

# `notes` is written by the worker; `sendings` keeps when each job was sent, also those that had to be sent again.
_TRACES = """
CREATE TABLE notes (job_id bigint);
CREATE TABLE sendings (job_id bigint, at timestamptz);
GRANT INSERT, SELECT ON notes, sendings TO overread_app;
CREATE FUNCTION trace_sending() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sendings VALUES (NEW.job_id, NEW.sent_at);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_are_traced AFTER UPDATE OF sent_at ON jobs FOR EACH ROW WHEN (NEW.sent_at IS NOT NULL)
    EXECUTE FUNCTION trace_sending();
"""

_DIES = """
import sys, time
from registry import db, jobs
with db.connect(sys.argv[1]) as connection:
    (job_id,) = connection.execute("INSERT INTO jobs (kind) VALUES (%s) RETURNING job_id", (sys.argv[2],)).fetchone()
    assert jobs.claim(connection, job_id=job_id, owner="a worker that dies", lease_seconds=float(sys.argv[3]))
    connection.commit()
    print(job_id, flush=True)
    time.sleep(600)
"""


@dataclass(slots=True, kw_only=True)
class Trouble:
    """When the broker was away, from the kill to its next start."""

    spells: list[tuple[datetime, datetime]] = field(default_factory=list)

    def make(self, broker: Broker, *, every: float, stopping: threading.Event) -> None:
        """Kill the broker every so often, and start it again a little later."""
        while not stopping.wait(every):
            began = datetime.now(UTC)
            broker.kill()
            stopping.wait(DOWN_SECONDS)
            broker.start()
            self.spells.append((began, datetime.now(UTC)))

    def covers(self, moment: datetime) -> bool:
        """Whether the broker was away then."""
        return any(began <= moment <= ended for began, ended in self.spells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of confirmations and jobs; lags are seconds from asking for a job to sending it first."""

    measured: Measured
    confirmations: Comparison
    failed_at_first: dict[str, int]
    kills: int
    jobs: int
    jobs_lost: int
    jobs_doubled: int
    settle_seconds: float
    lags_with_broker: list[float]
    lags_without: list[float]


def measure_outage(stage: Stage, asked: argparse.Namespace) -> None:
    """Confirmations and jobs while the broker is killed each minute."""
    every = min(KILL_EVERY_SECONDS, asked.seconds / 3)
    found = endure(
        stage, kind=asked.kill_broker, seconds=asked.seconds, kill_every_seconds=every, connections=asked.connections
    )
    name = f"{asked.kill_broker} killed {found.kills} times, away {DOWN_SECONDS:g} s each"
    show("Confirmations while the broker is killed", {name: found.measured})
    print(f"{found.confirmations}; requests that failed at first: {found.failed_at_first or 'none'}")
    print(f"jobs: {found.jobs_lost} lost, {found.jobs_doubled} doubled of {found.jobs}", end="; ")
    print(f"all done {found.settle_seconds:.1f} s after the last was asked for")
    for when, lags in (("there", found.lags_with_broker), ("away", found.lags_without)):
        if len(lags) > 1:
            cuts = statistics.quantiles(lags, n=100)
            print(
                f"outbox lag while the broker was {when}: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s (n = {len(lags)})"
            )


def endure(
    stage: Stage, *, kind: str, seconds: float, kill_every_seconds: float, connections: int, **settings: str
) -> Outcome:
    """Load the API and the outbox while the broker is killed and started again; compare all with the record."""
    record = stage.record("outage", cases=200)
    trouble, stopping, job_ids = Trouble(), threading.Event(), list[int]()
    with ExitStack() as stack:
        broker = _system(stage, record, kind=kind, stack=stack, **settings)
        api = stack.enter_context(stage.api(record))
        with ThreadPoolExecutor(2) as pool:
            sides = [
                pool.submit(_ask, record, job_ids, stopping=stopping),
                pool.submit(trouble.make, broker, every=kill_every_seconds, stopping=stopping),
            ]
            before = api.cpu_seconds()
            try:
                one = load.run(
                    load.Task(
                        port=api.port,
                        api_key=stage.api_key,
                        prefix="outage",
                        line=LINE,
                        first_case=1,
                        cases=record.cases,
                        connections=connections,
                        seconds=seconds,
                    )
                )
            finally:
                stopping.set()
            for side in sides:
                side.result()
        measured = Measured()
        measured.add(one, api_cpu_seconds=api.cpu_seconds() - before)
        settle_seconds = _settle(record, job_ids)
    with db.connect(record.url) as connection:
        rows = connection.execute(
            "SELECT created_at, extract(epoch FROM (SELECT min(at) FROM sendings WHERE sendings.job_id = jobs.job_id)"
            " - created_at)::float, (SELECT count(*) FROM notes WHERE notes.job_id = jobs.job_id) FROM jobs"
            " WHERE job_id = ANY(%s)",
            (job_ids,),
        ).fetchall()
    return Outcome(
        measured=measured,
        confirmations=compare(record, one.acknowledged),
        failed_at_first=one.refusals,
        kills=len(trouble.spells),
        jobs=len(job_ids),
        jobs_lost=sum(done == 0 for _, _, done in rows) + len(job_ids) - len(rows),
        jobs_doubled=sum(done > 1 for _, _, done in rows),
        settle_seconds=settle_seconds,
        lags_with_broker=[lag for at, lag, _ in rows if lag is not None and not trouble.covers(at)],
        lags_without=[lag for at, lag, _ in rows if lag is not None and trouble.covers(at)],
    )


def measure_recovery(stage: Stage, asked: argparse.Namespace) -> None:
    """How long after the death of its worker a job is done by another, with leases as the service has them."""
    record, lease_seconds = stage.record("recovery", cases=1), 15.0
    waits = []
    with ExitStack() as stack:
        _system(stage, record, kind=asked.kill_broker, stack=stack)
        for _ in range(3):
            arguments = [sys.executable, "-c", _DIES, record.url, KIND, str(lease_seconds)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment) as dying:
                assert dying.stdout is not None
                job_id = int(dying.stdout.readline())
                dying.kill()
            began = time.monotonic()
            _settle(record, [job_id])
            waits.append(time.monotonic() - began)
    print(f"\nA job whose worker was killed (lease {lease_seconds:g} s) was done by another after", end=" ")
    print(", ".join(f"{wait:.1f}" for wait in sorted(waits)), "s", flush=True)


def measure_promotion(stage: Stage, asked: argparse.Namespace) -> None:
    """How long a promotion takes, in the record and over HTTP."""
    del asked
    record = stage.record("promotion", cases=1)
    taken: dict[str, list[float]] = {"in the record": [], "over HTTP": []}
    with stage.api(record) as api, db.connect(record.url) as connection:
        line, actor = lines.get_line(connection, LINE), users.by_name(connection, "bench")
        headers = {"Authorization": f"Bearer {stage.api_key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{api.port}", headers=headers, timeout=60) as client:
            for number in range(2 * PROMOTIONS):
                champion = promotions.champion(connection, line.line_id)
                expected = None if champion is None else champion.candidate_id
                candidate = factories.approved_candidate(connection, line)
                connection.commit()
                began = time.perf_counter()
                if number % 2:
                    wish = {"expected_champion": expected, "reason": "measured"}
                    client.post(f"/v1/candidates/{candidate.candidate_id}/promotion", json=wish).raise_for_status()
                else:
                    promotions.promote(
                        connection,
                        candidate_id=candidate.candidate_id,
                        expected_champion_id=expected,
                        actor=actor,
                        reason="measured",
                    )
                    connection.commit()
                taken["over HTTP" if number % 2 else "in the record"].append(time.perf_counter() - began)
                assert candidates.get(connection, candidate.candidate_id).state == "champion"
    for name, seconds in taken.items():
        low, high = (value * MILLISECONDS for value in (statistics.median(seconds), max(seconds)))
        print(f"A promotion {name}: median {low:.1f} ms, longest {high:.1f} ms (n = {len(seconds)})", flush=True)


def measure_images(stage: Stage, asked: argparse.Namespace) -> None:
    """How many images of one MiB a second become cases: sent, decoded in the jail, stored, recorded."""
    record, port = stage.record("images", cases=1), free_port()
    settings = stage.environment(
        record, OVERREAD_INFERENCE_PORT=str(port), OVERREAD_INFERENCE_URL=f"http://127.0.0.1:{port}"
    )
    with ExitStack() as stack:
        inference = stack.enter_context(
            stage.process("inference", "workers.inference", environment=settings, port=port)
        )
        wait_for(f"http://127.0.0.1:{port}/health", inference)
        api = stack.enter_context(stage.api(record, environment=settings))
        numbers, taken = itertools.count(), list[float]()
        end = time.perf_counter() + asked.seconds

        def send() -> None:
            headers = {"Authorization": f"Bearer {stage.api_key}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{api.port}", headers=headers, timeout=60) as client:
                while time.perf_counter() < end:
                    image = _picture(next(numbers))
                    began = time.perf_counter()
                    form = {"line": LINE, "site": "north"}
                    client.post("/v1/cases", data=form, files={"image": image}).raise_for_status()
                    taken.append(time.perf_counter() - began)

        began = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            for sending in [pool.submit(send) for _ in range(4)]:
                sending.result()
        seconds = time.perf_counter() - began
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"\nImages of {len(_picture(0)) / 2**20:.2f} MiB over 4 connections: {len(taken) / seconds:.1f} a second,"
        f" p50 {cuts[49] * MILLISECONDS:.0f} ms, p99 {cuts[98] * MILLISECONDS:.0f} ms (n = {len(taken)});"
        f" load average {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _system(stage: Stage, record: Record, *, kind: str, stack: ExitStack, **more: str) -> Broker:
    folder = Path(tempfile.mkdtemp(prefix="broker-", dir=stage.folder))
    folder.chmod(0o711)
    broker = BROKERS[kind](folder)
    stack.callback(broker.close)
    broker.start()
    with stage.admin(record.name) as connection:
        connection.execute(_TRACES)
    settings = stage.environment(record, OVERREAD_BROKER_URL=broker.url, **more)
    worker = ("tests.brokers.worker", "worker", "--loglevel", "WARNING")
    stack.enter_context(stage.process(f"worker-{record.name}", *worker, environment=settings))
    stack.enter_context(stage.process(f"relay-{record.name}", "workers.relay", environment=settings))
    return broker


def _ask(record: Record, job_ids: list[int], *, stopping: threading.Event) -> None:
    with db.connect(record.url) as connection:
        while not stopping.wait(ASK_EVERY_SECONDS):
            row = connection.execute("INSERT INTO jobs (kind) VALUES (%s) RETURNING job_id", (KIND,)).fetchone()
            connection.commit()
            assert row is not None
            job_ids.append(row[0])


def _settle(record: Record, job_ids: list[int]) -> float:
    began = time.monotonic()
    with db.connect(record.url) as connection:
        while time.monotonic() < began + SETTLE_SECONDS:
            row = connection.execute(
                "SELECT count(*) FROM jobs WHERE job_id = ANY(%s) AND state <> 'succeeded'", (job_ids,)
            ).fetchone()
            connection.commit()
            if row == (0,):
                break
            time.sleep(0.02)
    return time.monotonic() - began


def _picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (IMAGE_SIDE, IMAGE_SIDE), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
