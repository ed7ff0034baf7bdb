"""What signing a candidate and signing an amendment have in common over HTTP.

A signature is given by a person at the keyboard, in their own name and with a reason; it is bound to the digests of
exactly what was signed (21 CFR Part 11 §11.50, §11.70, §11.200).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Literal

from fastapi import Request as HttpRequest
from fastapi import Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from api import once
from api.sign_in import sign_again
from api.v1 import examples
from api.v1.views import Digest, Password, Reason, Request, View, shown_as
from registry import db
from registry.users import User

PROBLEMS = (
    *once.PROBLEMS,
    *("sign-in-again", "no-password", "not-found", "not-distinct-approver", "already-signed", "state-moved"),
)
"""How signing may be refused, whatever is signed."""


class Decision(Request):
    """A decision for or against a candidate or an amendment, to be signed."""

    model_config = shown_as(examples.DECISION)

    decision: Literal["approve", "reject"]
    reason: Reason
    password: Password | None = Field(
        default=None, description="The signer's, once more. May be left out within a minute of signing in"
    )


class SignatureView(View):
    """What every signature says: who, when, what it means, and the digest of exactly what was signed."""

    printed_name: str
    decision: Literal["approve", "reject"]
    meaning: str
    reason: str
    bound_digest: Digest
    created_at: datetime


async def sign_once(
    request: HttpRequest,
    *,
    user: User,
    pool: db.Pool,
    key: str | None,
    what: str,
    decision: Decision,
    work: Callable[[db.Connection], BaseModel],
) -> Response:
    """Do `work`, which signs `what` is named, once, and only if the signer is there; answer with what it returns.

    Raises Refusal (no-password, sign-in-again, too-many-requests), and what `work` raises.
    """
    password = decision.password.get_secret_value() if decision.password is not None else None
    await sign_again(request, password=password)
    asked = f"sign {what} {decision.model_dump_json(exclude={'password'})}"  # its hash is kept
    return await run_in_threadpool(once.once, pool, user=user, key=key, request=asked, work=work)
