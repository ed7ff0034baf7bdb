"""A request that carries an Idempotency-Key is done once, and whoever repeats it gets the first answer.

Invariant: effect and stored answer are one transaction, and the answer is sent after its commit. Confirmations need a
key; every other change may have one, and after a cut connection its sender then learns what became of it
(draft-ietf-httpapi-idempotency-key-header-07).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from registry import db, idempotency
from registry.users import User

REPLAYED = {"Idempotent-Replayed": "true"}
PROBLEMS = ("idempotency-key-missing", "idempotency-in-flight", "idempotency-key-reused")
"""How a route that uses this may refuse, besides its own ways."""


def once(
    pool: db.Pool,
    *,
    user: User,
    key: str | None,
    request: str,
    work: Callable[[db.Connection], BaseModel],
    status: int = 201,
    pipelined: bool = False,
    exclude_none: bool = False,
) -> Response:
    """Do `work` in one transaction and answer with what it returns, or repeat the answer given under `key` before.

    `request` is all that was asked, in one line, and without secrets: its hash is kept. Under None nothing is kept.
    Raises IdempotencyInFlight, IdempotencyConflict, and what `work` raises; nothing is done or kept then.
    """
    digest = hashlib.sha256(request.encode()).hexdigest()
    with db.transaction(pool, pipelined=pipelined) as connection:
        if key is not None:
            replay = idempotency.begin(connection, user_id=user.user_id, key=key, request_digest=digest)
            if replay is not None:
                return JSONResponse(replay.body, status_code=replay.status, headers=REPLAYED)
        body = work(connection).model_dump(mode="json", exclude_none=exclude_none)
        if key is not None:
            idempotency.finish(
                connection, user_id=user.user_id, key=key, request_digest=digest, status=status, body=body
            )
    return JSONResponse(body, status_code=status)
