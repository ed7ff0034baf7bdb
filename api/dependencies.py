"""What routes ask for by type: the record's pool, the inference process, the settings, the caller, an uploaded body.

Routes open their transactions themselves (`with db.transaction(pool) as connection`), so that an answer is sent only
after its commit, and none is open while the inference process works.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated

from fastapi import Depends, Header, Path, Query, Request
from starlette.datastructures import UploadFile

from api.auth import Caller
from api.errors import Refusal
from api.inference import InferenceClient
from api.settings import ApiSettings
from registry import db, reads
from registry.users import User

_IN_MEMORY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A body, or one file of it, on disk beyond the first MiB; `digest` is the SHA-256 of a whole body, else empty."""

    file: IO[bytes]
    media_type: str
    digest: str


async def _pool(request: Request) -> db.Pool:
    pool: db.Pool = request.app.state.pool
    return pool


async def _inference(request: Request) -> InferenceClient:
    client: InferenceClient = request.app.state.inference
    return client


async def _settings(request: Request) -> ApiSettings:
    settings: ApiSettings = request.app.state.settings
    return settings


async def _current_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


async def _current_user(request: Request) -> User:
    caller: Caller = request.state.caller
    return caller.user


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Whoever is about to see something of a patient, and what for."""

    user: User
    purpose: str | None

    def sees(
        self,
        connection: db.Connection,
        action: str,
        *,
        case_id: int | None = None,
        line_id: int | None = None,
        **details: object,
    ) -> None:
        """Write the look down, in the transaction that ends before the answer is sent."""
        reads.record(
            connection,
            user_id=self.user.user_id,
            action=action,
            case_id=case_id,
            line_id=line_id,
            purpose=self.purpose,
            details=details,
        )


async def _reader(
    user: Annotated[User, Depends(_current_user)],
    overread_purpose: Annotated[
        str | None,
        Header(
            alias="Overread-Purpose",
            max_length=200,
            description="What the patient's data is looked at for; kept with who looked, at what and when",
            examples=["tumour board of 2 March"],
        ),
    ] = None,
) -> Reader:
    return Reader(user=user, purpose=(overread_purpose or "").strip() or None)


_KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Any text of 1 to 200 characters, new for each new thing you send. After a time-out, send the "
        "same request with the same key: it is done once, and you get the first answer again.",
        examples=["ris-export-2026-03-02-0001"],
    ),
]


async def _idempotency_key(idempotency_key: _KeyHeader = None) -> str:
    if idempotency_key is None or not 1 <= len(idempotency_key) <= 200:
        raise Refusal("idempotency-key-missing")
    return idempotency_key


async def _optional_key(idempotency_key: _KeyHeader = None) -> str | None:
    return None if idempotency_key is None else await _idempotency_key(idempotency_key)


@asynccontextmanager
async def _spooled(request: Request) -> AsyncIterator[Upload]:
    digest = hashlib.sha256()
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
        async for chunk in request.stream():
            digest.update(chunk)
            file.write(chunk)
        file.seek(0)
        yield Upload(
            file=file, media_type=_media_type(request.headers.get("content-type", "")), digest=digest.hexdigest()
        )


async def _body(request: Request) -> AsyncIterator[Upload]:
    async with _spooled(request) as upload:
        yield upload


async def _image(request: Request) -> AsyncIterator[Upload]:
    if _media_type(request.headers.get("content-type", "")) != "multipart/form-data":
        async with _spooled(request) as upload:
            yield upload
        return
    async with request.form(max_files=1, max_fields=16) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise Refusal("invalid-request", "image: the form needs a file of this name", errors=[_NO_IMAGE])
        yield Upload(file=image.file, media_type=_media_type(image.content_type or ""), digest="")


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower() or "application/octet-stream"


_NO_IMAGE = {"field": "image", "message": "the form needs a file of this name"}

Pool = Annotated[db.Pool, Depends(_pool)]
Inference = Annotated[InferenceClient, Depends(_inference)]
Settings = Annotated[ApiSettings, Depends(_settings)]
CurrentCaller = Annotated[Caller, Depends(_current_caller)]
CurrentUser = Annotated[User, Depends(_current_user)]
CurrentReader = Annotated[Reader, Depends(_reader)]
IdempotencyKey = Annotated[str, Depends(_idempotency_key)]
OptionalKey = Annotated[str | None, Depends(_optional_key)]
Body = Annotated[Upload, Depends(_body)]
Image = Annotated[Upload, Depends(_image)]
LineName = Annotated[
    str, Query(alias="line", description="Name of the line", examples=["cxr-pneumonia"], max_length=60)
]
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]
After = Annotated[
    int, Query(ge=0, le=2**63 - 1, description="Give those with an id above this one; 0 starts at the first")
]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most")]
