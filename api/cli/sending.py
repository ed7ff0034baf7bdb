"""Rows to the service, a chunk at a time, so that sending them again changes nothing.

A chunk first asks which of its rows are recorded, by keys that stand for image and diagnosis; sends the images of the
others, each under its external_id; then their confirmations in one upload, each row under its key. Every step may be
repeated, by this run or a later one: what the service has acknowledged is the only memory there is.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from api.cli.client import Client
from api.cli.errors import CliError, NotRunning, Refused, SetupError
from api.cli.rules import Loaded, Ready, load
from api.cli.sources import IMAGE_CAP_BYTES, Wrong

if TYPE_CHECKING:
    import httpx

CHUNK_ROWS = 50
CHUNK_BYTES = 32 * 1024**2
AGAIN = "run the same command again: it continues where it was"
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
_BROKEN_ATTEMPTS = 3
_LONGEST_PAUSE_SECONDS = 10.0
_COMPARED = ("site", "scanner", "sex", "age_band")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A row the service has: whether this run made its case, and its confirmation; None where it has no diagnosis."""

    number: int
    case_made: bool
    confirmed: bool | None


class Stopped(Exception):
    """Somebody asked to stop; what was acknowledged stays."""


def chunks(rows: Iterable[Ready]) -> Iterator[list[Ready]]:
    """Gather rows, so many or so large, that are sent together."""
    chunk: list[Ready] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == CHUNK_ROWS or size + row.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row.size
    if chunk:
        yield chunk


def pause_after(error: CliError, *, attempt: int) -> float | None:
    """Say how many seconds to wait before asking again; None where that would change nothing.

    Raises:
        SetupError: the service will take no row.
    """
    backoff = min(_LONGEST_PAUSE_SECONDS, 0.1 * 2.0**attempt) * random.uniform(0.5, 1.0)
    if not isinstance(error, Refused):
        return backoff
    if error.status in {401, 403} or error.problem == "/problems/storage-full":
        raise SetupError(error.message, fix=error.fix or AGAIN)
    if error.status in _PASSING or error.problem == "/problems/idempotency-in-flight":
        return error.retry_after_seconds or backoff
    return backoff if error.status == 500 and attempt < _BROKEN_ATTEMPTS else None


class Sender:
    """Sends chunks; safe to share between threads."""

    def __init__(self, client: Client, *, line: str, patience_seconds: float) -> None:
        self._client, self._line, self._patience_seconds = client, line, patience_seconds
        self._stop = threading.Event()
        self._patients: dict[bytes, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Have every thread end between two requests."""
        self._stop.set()

    def send(self, rows: Sequence[Ready]) -> list[Sent | Wrong]:
        """Send a chunk; say of each row what became of it.

        Raises:
            Stopped: somebody asked to.
            NotRunning: the service did not answer for as long as it is waited for.
            SetupError: the service will take no row at all.
        """
        read = [self._load(row) for row in rows]
        outcomes: list[Sent | Wrong] = [row for row in read if isinstance(row, Wrong)]
        loaded = [row for row in read if isinstance(row, Loaded)]
        recorded = self._recorded(loaded)
        outcomes += [
            Sent(number=one.row.number, case_made=False, confirmed=False) for one in loaded if one.key in recorded
        ]
        waiting: list[tuple[Loaded, dict[str, Any]]] = []
        for one in loaded:
            if one.key not in recorded:
                case = self._submit(one)
                if isinstance(case, Wrong):
                    outcomes.append(case)
                elif one.row.diagnosis is None:
                    outcomes.append(Sent(number=one.row.number, case_made=case["made"], confirmed=None))
                else:
                    waiting.append((one, case))
        return outcomes + (self._confirm(waiting) if waiting else [])

    def _load(self, row: Ready) -> Loaded | Wrong:
        try:
            loaded = load(row, line=self._line)
        except OSError as error:
            return _wrong(row, "import/no-such-file", f"the image cannot be read: {error.strerror}")
        if len(loaded.image) > IMAGE_CAP_BYTES:
            return _wrong(row, "import/image-too-large", f"larger than {IMAGE_CAP_BYTES // 1024**2} MiB")
        if "external_id" not in row.case:
            twin = self._twin(loaded)
            if twin is not None:
                detail = f"row {twin} has the same image and another patient: give the rows an external_id each"
                return _wrong(row, "import/same-image-other-patient", detail)
        return loaded

    def _twin(self, loaded: Loaded) -> int | None:
        """Find an earlier row that is the same case by its image, and another by its patient."""
        mine = (hash(loaded.row.case.get("patient")), loaded.row.number)
        with self._lock:
            patient, number = self._patients.setdefault(bytes.fromhex(loaded.external_id[-64:])[:16], mine)
        return None if patient == mine[0] else number

    def _recorded(self, loaded: Sequence[Loaded]) -> set[str]:
        keys = [one.key for one in loaded if one.row.diagnosis is not None]
        if not keys:
            return set()
        rows = self._insist("GET", "/v1/confirmations", params={"idempotency_key": keys}).json()
        return {row["idempotency_key"] for row in rows}

    def _submit(self, one: Loaded) -> dict[str, Any] | Wrong:
        form = one.row.case | {"line": self._line, "external_id": one.external_id}
        image = ("image", one.image, one.row.media_type)
        try:
            response = self._ask("POST", "/v1/cases", data=form, files={"image": image})
        except Refused as refusal:
            return _wrong(one.row, refusal.problem or f"http/{refusal.status}", " ".join(refusal.message.split()))
        case: dict[str, Any] = response.json() | {"made": response.status_code == 201}
        differs = [name for name in _COMPARED if form.get(name, case[name]) != case[name]]
        if ("patient" in form) != (case["patient"] is not None):
            differs.append("patient")
        if differs and not case["made"]:
            known = ", ".join(f"{name} {case[name]!r}" if name in _COMPARED else name for name in differs)
            detail = f"case {case['case_id']} is there already with another {known}; a case is never edited"
            return _wrong(one.row, "import/case-differs", detail)
        return case

    def _confirm(self, waiting: Sequence[tuple[Loaded, dict[str, Any]]]) -> list[Sent | Wrong]:
        rows = [
            {"case_id": case["case_id"], "idempotency_key": one.key} | (one.row.diagnosis or {})
            for one, case in waiting
        ]
        response = self._insist(
            "POST",
            "/v1/confirmations",
            params={"line": self._line},
            content="\n".join(json.dumps(row) for row in rows),
            # The rows' own keys outlive this run. A key made of the whole would repeat yesterday's refusals too.
            headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": str(uuid.uuid4())},
        )
        outcomes: list[Sent | Wrong] = []
        for (one, case), result in zip(waiting, response.json()["rows"], strict=True):
            if result["status"] == "accepted":
                confirmed = not result.get("replayed", False)
                outcomes.append(Sent(number=one.row.number, case_made=case["made"], confirmed=confirmed))
            else:
                outcomes.append(_wrong(one.row, result["problem"]["type"], result["problem"]["detail"]))
        return outcomes

    def _insist(self, method: Literal["GET", "POST"], path: str, **options: Any) -> httpx.Response:
        """Ask what no single row can be to blame for; SetupError where the answer is no."""
        try:
            return self._ask(method, path, **options)
        except Refused as refusal:
            raise SetupError(refusal.message, fix=refusal.fix or AGAIN) from refusal

    def _ask(self, method: Literal["GET", "POST"], path: str, **options: Any) -> httpx.Response:
        """Ask until there is an answer that will stay; Refused means that it is no."""
        begun, attempt = time.monotonic(), 0
        while not self._stop.is_set():
            attempt += 1
            try:
                return self._client.send(method, path, **options)
            except (NotRunning, Refused) as error:
                pause = pause_after(error, attempt=attempt)
                if pause is None:
                    raise
                if time.monotonic() - begun + pause > self._patience_seconds:
                    raise NotRunning(f"gave up after {attempt} attempts: {error.message}", fix=AGAIN) from error
                self._stop.wait(pause)
        raise Stopped


def _wrong(row: Ready, kind: str, detail: str) -> Wrong:
    return Wrong(number=row.number, name=row.name, kind=kind, detail=detail)
