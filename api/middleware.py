"""What holds for every request before a route sees it: how much it may send, and which headers its answer carries.

Both are plain ASGI, so that a body streams through them without being gathered.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Refusal, problem_response

MEGABYTE = 1024 * 1024
DEFAULT_BODY_CAP_BYTES = 1 * MEGABYTE
IMAGE_CAP_BYTES = 64 * MEGABYTE
BODY_CAPS_BYTES: Mapping[str, int] = {
    "/v1/cases": IMAGE_CAP_BYTES,
    "/v1/predictions": IMAGE_CAP_BYTES,
    "/v1/confirmations": 16 * MEGABYTE,
}
"""Paths that take more than a form's worth of text."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
}


class LimitBody:
    """Refuse a body over its path's cap: at once where it is announced, else at the first byte too many."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cap = BODY_CAPS_BYTES.get(scope["path"], DEFAULT_BODY_CAP_BYTES)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else 0
        received, at_end = 0, announced <= cap and "transfer-encoding" not in headers

        async def counted() -> Message:
            nonlocal received, at_end
            message = await receive()
            received += len(message.get("body", b""))
            if received > cap:
                raise _too_large(cap)
            at_end = at_end or not message.get("more_body", False)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and not at_end:
                # Nobody says how much is still to come: hang up instead of reading on to keep the connection.
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if announced > cap:
            await problem_response(_too_large(cap))(scope, receive, closing)
        else:
            await self._app(scope, counted, closing)


class AddHeaders:
    """Put the security headers on every response, and forbid caches to keep what may concern a patient."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, adding headers to the response's start."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def _too_large(cap: int) -> Refusal:
    return Refusal("body-too-large", f"The body is larger than the {cap // MEGABYTE} MiB that this path takes.")
