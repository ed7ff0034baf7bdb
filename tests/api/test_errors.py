"""What breaks below the routes becomes a problem document too, and tells a stranger nothing."""

from __future__ import annotations

import asyncio
import errno

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from psycopg_pool import PoolTimeout

from api import errors
from registry.errors import BlobCorrupt


def answer_to(failure: Exception) -> httpx.Response:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def fail() -> None:
        raise failure

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.get("/")

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("failure", "status", "slug"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "storage-full"),
        (psycopg.errors.DiskFull("could not extend file"), 507, "storage-full"),
        (psycopg.OperationalError("server closed the connection"), 503, "record-unavailable"),
        (psycopg.errors.QueryCanceled("canceling statement due to statement timeout"), 503, "record-busy"),
        (psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"), 503, "record-busy"),
        (psycopg.errors.DeadlockDetected("deadlock detected"), 503, "record-busy"),
        (psycopg.errors.IdleInTransactionSessionTimeout("terminating connection"), 503, "record-busy"),
        (PoolTimeout("no connection after 5 s"), 503, "record-unavailable"),
        (psycopg.DataError("a NUL in a text"), 422, "invalid-request"),
        (psycopg.errors.UndefinedTable("relation secret_table does not exist"), 500, "internal-error"),
        (PermissionError(errno.EACCES, "/var/lib/secret"), 500, "internal-error"),
        (RuntimeError("password is hunter2"), 500, "internal-error"),
        (BlobCorrupt("the stored file is damaged"), 500, "blob-corrupt"),
    ],
)
def test_a_failure_has_a_stable_type_and_no_inner_words(failure: Exception, status: int, slug: str) -> None:
    answer = answer_to(failure)
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{slug}")
    assert answer.headers["content-type"] == errors.PROBLEM_MEDIA_TYPE
    assert ("retry-after" in answer.headers) == (status == 503)
    for word in ("secret", "hunter2", "server closed"):
        assert word not in answer.text


def test_extension_members_cannot_replace_the_standard_ones() -> None:
    document = errors.document_of(errors.Refusal("not-found", "no", status=200, type="x", hint="look elsewhere"))
    assert (document["status"], document["type"], document["hint"]) == (404, "/problems/not-found", "look elsewhere")
