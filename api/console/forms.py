"""What forms have in common: their values become the API's own requests, and a refusal stands beside what was typed.

A page does nothing itself: it calls the function behind the API's route with the request that a program would send.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Form, Response
from pydantic import BaseModel, Field, SecretStr, ValidationError
from starlette.concurrency import run_in_threadpool

from api.console.route import see
from api.errors import Refusal, document_of, invalid
from api.v1.signing import Decision
from registry.errors import RegistryError

REFUSALS = (Refusal, RegistryError)
"""What the function behind a route may raise for the person at the form to read."""

Key = Annotated[str, Form(min_length=1, max_length=200)]
"""Every form that adds to the record has one of its own, made with the page: sent twice, it is done once."""

Asked = TypeVar("Asked", bound=BaseModel)


class Signature(BaseModel):
    """The form under which people sign: as it was typed, whether or not it can be taken."""

    key: str = Field(min_length=1, max_length=200)
    decision: str = ""
    reason: str = ""
    password: SecretStr = SecretStr("")


UNSIGNED = Signature(key="none")
"""What a form of signature shows before anybody typed."""


def asked(model: type[Asked], **values: Any) -> Asked:
    """Make a request of the API from a form's values. Raises Refusal (invalid-request) naming each field at fault."""
    try:
        return model(**values)
    except ValidationError as error:
        raise invalid(error.errors()) from None


def refusal(error: Exception) -> dict[str, Any]:
    """A refusal as a page shows it: the problem document of the API."""
    assert isinstance(error, REFUSALS)
    return document_of(error)


def done(work: Callable[[], str], *, again: Callable[[dict[str, Any]], Response]) -> Response:
    """Do what a form asks for and lead on to the path that `work` returns.

    Where it is refused, its page is shown `again`, with the refusal and what was typed.
    """
    try:
        return see(work())
    except REFUSALS as error:
        return again(refusal(error))


async def signed(
    form: Signature,
    sign: Callable[..., Awaitable[Response]],
    *,
    to: str,
    again: Callable[[dict[str, Any]], Response],
) -> Response:
    """Sign by the function behind the API's route, with `key` and `decision`, and lead on `to` a path.

    Where it is refused, its page is shown `again`, with the refusal and what was typed; never with the password.
    """
    try:
        await sign(
            key=form.key,
            decision=asked(Decision, decision=form.decision, reason=form.reason, password=form.password),
        )
    except REFUSALS as error:
        return await run_in_threadpool(again, refusal(error))
    return see(to)


def answer_of(response: Response) -> dict[str, Any]:
    """What the function behind a route answered."""
    found: dict[str, Any] = json.loads(bytes(response.body))
    return found
