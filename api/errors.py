"""Every refusal of the API, as RFC 9457 problem documents with stable types.

A problem's `type` is `/problems/<slug>`; slugs are part of the interface and never change meaning. Those of the record
come from `registry.errors` (a class's docstring is the problem's meaning), the API's own are the table below. What is
not expected becomes `internal-error` without a word of what happened inside; the log has the rest.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from registry import errors as record

PROBLEM_MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5
_BUSY = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TooManyConnections,
)


class Refusal(Exception):
    """The API does not do what was asked; the client is told why under a stable slug."""

    def __init__(self, slug: str, detail: str | None = None, **extra: Any) -> None:
        self.problem = PROBLEMS[slug]
        self.detail = detail or self.problem.meaning
        self.extra = extra
        super().__init__(f"{slug}: {self.detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemType:
    """One kind of refusal: its slug, HTTP status, short title, and what it means for the client."""

    slug: str
    status: int
    title: str
    meaning: str


class Problem(BaseModel):
    """A refusal in the form of RFC 9457. `type` is what a program should look at; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="`/problems/<slug>`, stable for ever", examples=["/problems/not-found"])
    title: str = Field(description="The kind of problem in a few words")
    status: int = Field(description="The HTTP status, repeated")
    detail: str = Field(description="What went wrong this time, and what to do about it")


_OWN = (
    (
        "unauthenticated",
        401,
        "Nobody has signed in",
        "Send `Authorization: Bearer ovr_…` with a key that is not revoked, or sign in.",
    ),
    ("sign-in-failed", 401, "Not signed in", "Name and password do not belong together, or there is no such user."),
    (
        "sign-in-again",
        403,
        "Sign in again to sign",
        "A signature needs the signer's password, sent with it as `password`, or a sign-in of the last minute.",
    ),
    (
        "no-password",
        403,
        "The signer has no password",
        "A key alone does not sign: set a password with `overread user password NAME` first.",
    ),
    (
        "cross-site-request",
        403,
        "Asked for by another site",
        "With a session's cookie, changes are taken from this service's own pages only; programs send an API key.",
    ),
    ("too-many-requests", 429, "Too many requests", "Wait as long as `Retry-After` says, then go on more slowly."),
    ("method-not-allowed", 405, "Method not allowed", "This address does not know this HTTP method."),
    (
        "idempotency-key-missing",
        400,
        "Idempotency-Key is missing",
        "Send an `Idempotency-Key` header, 1 to 200 characters.",
    ),
    ("body-too-large", 413, "The body is too large", "Send less: split a bulk upload, crop or downsample an image."),
    ("too-many-rows", 413, "Too many rows", "Split the upload and send each part under an Idempotency-Key of its own."),
    ("unsupported-media-type", 415, "Unsupported media type", "The Content-Type is none that this operation takes."),
    (
        "invalid-request",
        422,
        "The request is not valid",
        "`errors` names each field at fault and what is wrong with it.",
    ),
    ("protocol-invalid", 422, "The protocol is not valid", "`errors` names each field of the protocol at fault."),
    (
        "image-refused",
        422,
        "The image is refused",
        "The file is damaged, of a kind that is not taken, or too large once opened.",
    ),
    (
        "no-champion",
        409,
        "The line has no champion yet",
        "No model of this line was promoted so far, so none can predict.",
    ),
    (
        "internal-error",
        500,
        "Something broke on our side",
        "Nothing was changed. Try again; if it stays, tell the operator.",
    ),
    ("inference-unavailable", 503, "The inference process is not reachable", "Try again shortly; nothing was changed."),
    (
        "identity-provider-unavailable",
        503,
        "The identity provider's keys are not at hand",
        "Tokens cannot be checked just now, so none is taken. Try again shortly; API keys and passwords go on.",
    ),
    (
        "record-unavailable",
        503,
        "No connection to the database",
        "It is down, or every connection is in use. Try again shortly with the same Idempotency-Key.",
    ),
    (
        "record-busy",
        503,
        "The database took too long",
        "Nothing was changed. Try again shortly with the same Idempotency-Key.",
    ),
    ("storage-full", 507, "The storage is full", "Nothing was stored. Tell the operator; then send it again."),
)


def _own_problems() -> Iterator[ProblemType]:
    for slug, status, title, meaning in _OWN:
        yield ProblemType(slug=slug, status=status, title=title, meaning=meaning)


def _problems_of_the_record() -> Iterator[ProblemType]:
    for kind in vars(record).values():
        if inspect.isclass(kind) and issubclass(kind, record.RegistryError) and "slug" in vars(kind):
            meaning = " ".join((kind.__doc__ or "").split())
            yield ProblemType(slug=kind.slug, status=kind.status, title=kind.title, meaning=meaning)


PROBLEMS: Mapping[str, ProblemType] = MappingProxyType(
    {problem.slug: problem for problem in (*_problems_of_the_record(), *_own_problems())}
)


def problem_document(problem: ProblemType, *, detail: str, **extra: Any) -> dict[str, Any]:
    """Write a problem document (RFC 9457 §3) as plain values; `extra` are its extension members."""
    own = {"type": f"/problems/{problem.slug}", "title": problem.title, "status": problem.status, "detail": detail}
    return {**extra, **own}


def document_of(error: Refusal | record.RegistryError) -> dict[str, Any]:
    """Write a refusal as a problem document."""
    if isinstance(error, Refusal):
        return problem_document(error.problem, detail=error.detail, **error.extra)
    return problem_document(PROBLEMS[error.slug], detail=str(error), **error.extra)


def problem_response(
    error: Refusal | record.RegistryError, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Write a refusal as an HTTP response."""
    document = document_of(error)
    sent = dict(headers or {})
    if document["status"] == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if document["status"] == 503:
        sent["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if document["status"] == 429:
        sent["Retry-After"] = str(document["retry_after_seconds"])
    return JSONResponse(document, status_code=document["status"], media_type=PROBLEM_MEDIA_TYPE, headers=sent)


def field_errors(errors: Sequence[Any]) -> list[dict[str, str]]:
    """Say which fields are at fault, from pydantic's list. The values are left out: they may name a patient."""
    return [
        {
            "field": ".".join(str(part) for part in item["loc"]) or "body",
            "message": item["msg"].removeprefix("Value error, "),
        }
        for item in errors
    ]


def invalid(errors: Sequence[Any]) -> Refusal:
    """Make the refusal of a request whose fields are at fault, from pydantic's list."""
    wrong = field_errors(errors)
    summary = "; ".join(f"{item['field']}: {item['message']}" for item in wrong)
    return Refusal("invalid-request", summary, errors=wrong)


def unstorable() -> Refusal:
    """Make the refusal of a value that PostgreSQL cannot hold, for example a text with a NUL in it."""
    message = "a value cannot be stored: is there a NUL character in a text, or a number out of range?"
    return Refusal("invalid-request", message, errors=[{"field": "body", "message": message}])


def documented(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """Describe refusals for OpenAPI: one entry per status, one example per slug, all kept in `components`."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in (PROBLEMS[slug] for slug in slugs):
        content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        entry = responses.setdefault(problem.status, {"description": "", "content": {PROBLEM_MEDIA_TYPE: content}})
        entry["description"] = " · ".join(filter(None, (entry["description"], problem.title)))
        example = {"$ref": f"#/components/examples/{problem.slug}"}
        entry["content"][PROBLEM_MEDIA_TYPE]["examples"][problem.slug] = example
    return responses


def components() -> dict[str, Any]:
    """Write what `documented` refers to: the schema of a problem, and an example of each."""
    examples = {
        slug: {"summary": problem.title, "value": problem_document(problem, detail=problem.meaning)}
        for slug, problem in PROBLEMS.items()
    }
    return {"schemas": {"Problem": Problem.model_json_schema()}, "examples": examples}


def install(app: FastAPI) -> None:
    """Turn whatever a route raises into a problem document."""
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(record.RegistryError, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(psycopg.Error, _answer_database)
    app.add_exception_handler(ClientDisconnect, _answer_disconnect)
    app.add_exception_handler(OSError, _answer_storage)
    app.add_exception_handler(Exception, _answer_crash)


def _answer_refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal | record.RegistryError)
    return problem_response(error)


def _answer_validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem_response(invalid(error.errors()))


def _answer_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if _is_full(error.__cause__):  # a body that found no space on its way in: FastAPI calls that the sender's fault
        return problem_response(Refusal("storage-full"))
    slug = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}.get(
        error.status_code, "invalid-request"
    )
    refusal = Refusal(slug) if slug != "invalid-request" else Refusal(slug, str(error.detail), errors=[])
    return problem_response(refusal, headers=error.headers)


def _answer_database(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, psycopg.errors.DiskFull):
        return problem_response(Refusal("storage-full"))
    if isinstance(error, _BUSY):
        return problem_response(Refusal("record-busy"))
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):  # PoolTimeout is an OperationalError
        return problem_response(Refusal("record-unavailable"))
    if isinstance(error, psycopg.DataError):  # for example a NUL inside a text
        return problem_response(unstorable())
    raise error


def _answer_storage(_request: Request, error: Exception) -> JSONResponse:
    if _is_full(error):
        return problem_response(Refusal("storage-full"))
    raise error


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _answer_disconnect(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(Refusal("invalid-request", "The connection ended before the body did.", errors=[]))


def _answer_crash(_request: Request, _error: Exception) -> JSONResponse:
    return problem_response(Refusal("internal-error"))
