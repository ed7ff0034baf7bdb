"""Send confirmations as fast as a number of connections allow, from a process of its own that costs next to nothing.

Each connection has one request under way. A request without an answer, or with one that promises nothing (a 5xx, "in
flight"), is sent again under the same Idempotency-Key until it is acknowledged, as a hospital's client should; what was
acknowledged is handed back to be compared with the record. HTTP/1.1 is written by hand: httpx would cost more than the
service.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field

FINDINGS = ("normal", "pneumonia")
PAUSE_SECONDS = 0.05
GIVE_UP_SECONDS = 60.0

Acknowledged = tuple[str, int, str, int]
"""A confirmation that a client was told is recorded: its reader (one of a kind), case, finding and id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to send, to whom and for how long; `rows` above one sends uploads of so many rows."""

    port: int
    api_key: str
    prefix: str  # of Idempotency-Keys and readers: tells the rows of this load from all others
    line: str
    first_case: int
    cases: int
    connections: int
    seconds: float
    rows: int = 1


@dataclass(slots=True, kw_only=True)
class Load:
    """What came of it: seconds per acknowledged request, and what was acknowledged."""

    latencies: list[float] = field(default_factory=list)
    acknowledged: list[Acknowledged] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)  # answers and failures that were tried again
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Confirmations acknowledged a second."""
        return len(self.acknowledged) / self.seconds

    def again(self, why: str) -> None:
        """Count a request that has to be sent again."""
        self.refusals[why] = self.refusals.get(why, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    reader: str
    case_id: int
    finding: str

    def fields(self) -> dict[str, str]:
        return {
            "finding": self.finding, "evidence": "single_read", "ai_exposure": "blind", "reader": self.reader
        }  # fmt: skip


class Unexpected(Exception):
    """The service refused what it should accept: the load is wrong, or the service is."""


def start(task: Task) -> tuple[ProcessPoolExecutor, Future[Load]]:
    """Start a load in a process of its own; shut the executor down after the result."""
    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    return executor, executor.submit(drive, task)


def run(task: Task) -> Load:
    """Run a load to its end in a process of its own."""
    executor, result = start(task)
    with executor:
        return result.result()


def drive(task: Task) -> Load:
    """Be the client."""
    return asyncio.run(_drive(task))


async def _drive(task: Task) -> Load:
    load, numbers = Load(), itertools.count()
    began, used = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(task.connections):
            group.create_task(_send(task, load, numbers, until=began + task.seconds))
    load.seconds, load.cpu_seconds = time.perf_counter() - began, time.process_time() - used
    return load


async def _send(task: Task, load: Load, numbers: itertools.count[int], *, until: float) -> None:
    line = _Connection(task.port)
    while time.perf_counter() < until:
        rows = [_row(task, next(numbers)) for _ in range(task.rows)]
        request = _request(task, rows)
        began = time.perf_counter()
        while True:
            try:
                status, body = await line.ask(request)
            except (OSError, EOFError, asyncio.IncompleteReadError) as error:
                status, body = 0, b""
                await line.close()
                load.again(type(error).__name__)
            else:
                if status in {200, 201}:
                    break
                if status < 500 and status not in {409, 429}:
                    raise Unexpected(f"{status}: {body.decode()}")
                load.again(str(status))
            if time.perf_counter() - began > GIVE_UP_SECONDS:
                raise Unexpected(f"no acknowledgement after {GIVE_UP_SECONDS:g} s; last: {status} {body.decode()}")
            await asyncio.sleep(PAUSE_SECONDS)
        load.latencies.append(time.perf_counter() - began)
        answer = json.loads(body)
        answers = answer["rows"] if task.rows > 1 else [answer]
        for row, given in zip(rows, answers, strict=True):
            load.acknowledged.append((row.reader, row.case_id, row.finding, int(given["confirmation_id"])))
    await line.close()


def _row(task: Task, number: int) -> _Row:
    return _Row(
        reader=f"{task.prefix}-{number}",
        case_id=task.first_case + number % task.cases,
        finding=FINDINGS[number % 2],
    )


def _request(task: Task, rows: list[_Row]) -> bytes:
    if task.rows == 1:
        path, kind = f"/v1/cases/{rows[0].case_id}/confirmations", "application/json"
        body = json.dumps(rows[0].fields())
    else:
        path, kind = f"/v1/confirmations?line={task.line}", "application/x-ndjson"
        body = "\n".join(json.dumps({"case_id": row.case_id, **row.fields()}) for row in rows)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {task.api_key}\r\n"
        f"Idempotency-Key: {rows[0].reader}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class _Connection:
    """One kept-alive connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body of its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b"connection: close" in head:
            await self.close()
        return int(head[9:12]), body

    async def close(self) -> None:
        """Hang up; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
