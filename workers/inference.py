"""The inference process: predictions of the champions, heat maps, and the jailed decoder, over loopback HTTP.

Invariant: it writes nothing but alarms about the weights it serves. The API asks it (it may not import torch or an
image decoder itself), proves itself with the shared token, and writes down what was answered.

    OVERREAD_DATABASE_URL=… OVERREAD_INFERENCE_TOKEN=… python -m workers.inference
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import numpy as np
import psycopg
import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from pipelines import images, protocol, wording
from workers.batching import Scored
from workers.champions import Champions, NoChampion, Serving, UnknownLine
from workers.decoder import DecoderError, DecoderPool
from workers.settings import SettingsError, WorkerSettings

MAX_BODY_BYTES = 64 * 1024**2
NPY_MEDIA_TYPE = "application/x-npy"

P = ParamSpec("P")
T = TypeVar("T")


class Problem(Exception):
    """An answer other than 200: a status, a stable code and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


def make_app(settings: WorkerSettings) -> FastAPI:
    """Build the application; models and decoders live from its start to its end. Raises SettingsError."""
    if not settings.inference_token:
        raise SettingsError("OVERREAD_INFERENCE_TOKEN is not set; give the API and this process the same long secret")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.champions, app.state.decoders = Champions(settings), DecoderPool()
        await run_in_threadpool(app.state.champions.start)
        yield
        await run_in_threadpool(app.state.champions.stop)
        await run_in_threadpool(app.state.decoders.close)

    app = FastAPI(title="Overread inference", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.token = settings.inference_token
    app.include_router(_open)
    app.include_router(_guarded)
    app.add_exception_handler(Problem, _answer_problem)
    return app


_open = APIRouter()


def _require_token(request: Request, authorization: Annotated[str, Header()] = "") -> None:
    expected = f"Bearer {request.app.state.token}"
    if not hmac.compare_digest(authorization.encode(), expected.encode()):
        raise HTTPException(401, "send the inference token", {"WWW-Authenticate": "Bearer"})


_guarded = APIRouter(dependencies=[Depends(_require_token)])


@_open.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Say that the process is up, who serves which line (null where nobody does), and which weights to look at."""
    champions: Champions = request.app.state.champions
    return {
        "status": "ok",
        "lines": {
            name: serving and {"candidate": serving.candidate.number, "digest": serving.candidate.weights_digest}
            for name, serving in champions.lines().items()
        },
        "alarms": champions.alarms(),
    }


@_guarded.post("/decode")
async def decode(request: Request, kind: Literal["image", "volume"] = "image") -> Response:
    """Turn bytes from outside into NPY bytes, and the attributes that survive into a header.

    `kind` is what the line reads; the other one is refused.
    """
    data = await _body(request)
    decoders: DecoderPool = request.app.state.decoders
    try:
        decoded = await run_in_threadpool(decoders.decode, data, request.headers.get("content-type"))
        images.check_kind(images.from_npy(decoded.npy), volume=kind == "volume")
    except images.ImageRefused as refusal:
        raise Problem(422, refusal.code, str(refusal)) from None
    except DecoderError as error:
        raise Problem(503, "decoder-unavailable", str(error)) from error
    headers = {"X-Overread-Attributes": json.dumps(decoded.attributes, ensure_ascii=True)}
    return Response(decoded.npy, media_type=NPY_MEDIA_TYPE, headers=headers)


@_guarded.post("/lines/{line}/predictions")
async def predict(line: str, request: Request, site: str | None = None) -> dict[str, Any]:
    """Score one stored image with the champion of now; `site` is where it was taken, None where that is not known."""
    started = time.perf_counter()
    pixels = _pixels(await _body(request))
    champions: Champions = request.app.state.champions
    serving, scored = await _asking(champions.score, line, pixels)
    return _prediction(serving, scored, site=site, latency_seconds=time.perf_counter() - started)


@_guarded.post("/lines/{line}/heat-map")
async def heat_map(
    line: str, finding: str, request: Request, at: Annotated[int | None, Query(alias="slice", ge=0)] = None
) -> Response:
    """Picture where the champion looked for a finding: PNG of the network's input size, brighter is more.

    Of a volume it is the slice of the heat map that lies where `slice` of the volume does, the middle one if None.
    """
    pixels = _pixels(await _body(request))
    champions: Champions = request.app.state.champions
    serving = await _asking(champions.serving, line)
    if finding not in serving.model.classes:
        raise Problem(422, "unknown-finding", f"{finding!r} is not one of {', '.join(serving.model.classes)}")
    picture = await _asking(serving.heat_map, pixels, finding=finding)
    if picture.ndim == 3:
        place = len(pixels) // 2 if at is None else min(at, len(pixels) - 1)
        picture = picture[place * len(picture) // len(pixels)]
    headers = {"X-Overread-Weights-Digest": serving.candidate.weights_digest}
    return Response(images.png_bytes(picture), media_type="image/png", headers=headers)


@_guarded.post("/protocols/check")
async def check_protocol(request: Request) -> Response:
    """Check a protocol written in YAML: its normalised document and digest, or each field at fault."""
    try:
        checked = protocol.parse((await _body(request)).decode("utf-8"))
    except UnicodeDecodeError:
        return JSONResponse({"errors": [{"field": "document", "message": "a protocol is UTF-8 text"}]}, 422)
    except protocol.ProtocolError as error:
        return _at_fault(error)
    return JSONResponse({"document": checked.document(), "digest": checked.digest})


@_guarded.post("/protocols/compare")
async def compare_protocol(request: Request) -> Response:
    """Check a protocol (`text`, YAML) and tell each clause of it that is another than in the document `before`."""
    asked = json.loads(await _body(request))
    try:
        checked = protocol.parse(asked["text"])
    except protocol.ProtocolError as error:
        return _at_fault(error)
    changes = wording.differences(wording.as_read_today(asked["before"]), checked.document())
    return JSONResponse({"document": checked.document(), "digest": checked.digest, "changes": changes})


def main() -> int:
    """Serve until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = WorkerSettings.from_environment()
        app = make_app(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # training runs beside us
    uvicorn.run(app, host=settings.inference_host, port=settings.inference_port, access_log=False, log_level="warning")
    return 0


def _at_fault(error: protocol.ProtocolError) -> Response:
    return JSONResponse({"errors": [{"field": item.field, "message": item.message} for item in error.errors]}, 422)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(413, "too-large", f"more than {MAX_BODY_BYTES // 1024**2} MB; send a smaller image")
    return bytes(body)


def _pixels(data: bytes) -> images.Pixels:
    try:
        return images.from_npy(data)
    except images.ImageRefused as refusal:
        raise Problem(422, refusal.code, str(refusal)) from None


async def _asking(question: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Ask about a line in a thread; turn what the champions raise into problems."""
    try:
        return await run_in_threadpool(question, *arguments, **named)
    except UnknownLine as error:
        raise Problem(404, "unknown-line", str(error)) from None
    except NoChampion as error:
        raise Problem(409, "no-champion", str(error)) from None
    except images.ImageRefused as refusal:  # the line reads volumes now and read images before, or the other way round
        raise Problem(422, refusal.code, str(refusal)) from None
    except psycopg.Error:
        raise Problem(503, "record-unavailable", "the record cannot be asked about this line now; try again") from None


def _prediction(serving: Serving, scored: Scored, *, site: str | None, latency_seconds: float) -> dict[str, Any]:
    point, sites = serving.model.point(site), np.array([site or ""])
    return {
        "candidate_id": serving.candidate.candidate_id,
        "number": serving.candidate.number,
        "weights_digest": serving.candidate.weights_digest,
        "scores": dict(zip(serving.model.classes, map(float, scored.scores), strict=True)),
        "decision": serving.model.decision(scored.scores[None], sites=sites)[0],
        "operating_point": point,
        "threshold": None if point is None or serving.model.several else point["threshold"],
        "second_look": bool(serving.model.unclear(scored.scores[None])[0]),
        "latency_seconds": latency_seconds,
        "batch": scored.batch,
    }


async def _answer_problem(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return JSONResponse({"code": problem.code, "message": str(problem)}, problem.status)


if __name__ == "__main__":
    sys.exit(main())
